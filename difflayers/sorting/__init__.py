"""Relaxed sorting networks: sort, rank, top-k, quantiles, and losses for ranking supervision."""

from . import swaps
from .functional import permutation, rank, sort, sort_by
from .layers import Rank, Sort, Sorted, SortingNetwork, TopK
from .losses import NDCGLoss, PermutationCrossEntropy, SpearmanLoss, permutation_cross_entropy
from .networks import NETWORKS, Network
from .scorer import EquivariantScorer
from .selection import TopKResult, median, quantile, topk
from .steepness import RelativeSteepness
from .topk_cross_entropy import TopKCrossEntropy

__all__ = [
    "NETWORKS",
    "EquivariantScorer",
    "NDCGLoss",
    "Network",
    "PermutationCrossEntropy",
    "Rank",
    "RelativeSteepness",
    "Sort",
    "Sorted",
    "SortingNetwork",
    "SpearmanLoss",
    "TopK",
    "TopKCrossEntropy",
    "TopKResult",
    "median",
    "permutation",
    "permutation_cross_entropy",
    "quantile",
    "rank",
    "sort",
    "sort_by",
    "swaps",
    "topk",
]
