"""difflayers: differentiable combinatorial layers for PyTorch."""

from . import losses, sorting
from ._checks import debug
from ._ops import build_info
from .errors import Error, UnsupportedOperationError
from .sorting import (
    Network,
    Rank,
    RelativeSteepness,
    Sort,
    Sorted,
    SortingNetwork,
    TopK,
    TopKResult,
    median,
    permutation,
    quantile,
    rank,
    sort,
    sort_by,
    swaps,
    topk,
)

__version__ = "0.1.0.dev0"

__all__ = [
    "Error",
    "Network",
    "Rank",
    "RelativeSteepness",
    "Sort",
    "Sorted",
    "SortingNetwork",
    "TopK",
    "TopKResult",
    "UnsupportedOperationError",
    "build_info",
    "debug",
    "losses",
    "median",
    "permutation",
    "quantile",
    "rank",
    "sort",
    "sort_by",
    "sorting",
    "swaps",
    "topk",
]
