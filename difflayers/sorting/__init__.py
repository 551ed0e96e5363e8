"""Relaxed sorting networks: sort, rank, top-k, quantiles, and losses for ranking supervision."""

from . import swaps
from .functional import TopKResult, median, permutation, quantile, rank, sort, sort_by, topk
from .networks import NETWORKS, Network
from .steepness import RelativeSteepness

__all__ = [
    "NETWORKS",
    "Network",
    "RelativeSteepness",
    "TopKResult",
    "median",
    "permutation",
    "quantile",
    "rank",
    "sort",
    "sort_by",
    "swaps",
    "topk",
]
