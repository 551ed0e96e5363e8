"""difflayers: differentiable combinatorial layers for PyTorch."""

from . import estimators, losses, protocols, schedules, sorting
from ._checks import debug
from ._ops import build_info
from .errors import Error, UnsupportedOperationError
from .estimators import GumbelSoftmax, ReinMax, StraightThrough, gumbel_softmax, reinmax, straight_through
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
    "GumbelSoftmax",
    "Network",
    "Rank",
    "ReinMax",
    "RelativeSteepness",
    "Sort",
    "Sorted",
    "SortingNetwork",
    "StraightThrough",
    "TopK",
    "TopKResult",
    "UnsupportedOperationError",
    "build_info",
    "debug",
    "estimators",
    "gumbel_softmax",
    "losses",
    "median",
    "permutation",
    "protocols",
    "quantile",
    "rank",
    "reinmax",
    "schedules",
    "sort",
    "sort_by",
    "sorting",
    "straight_through",
    "swaps",
    "topk",
]
