"""k of n, and orders: relaxations of subsets, sorting and ranking."""

from .projections import PermutahedronRank, PermutahedronSort, soft_rank, soft_sort
from .topk_projection import ProjectionTopK, projection_topk

__all__ = [
    "PermutahedronRank",
    "PermutahedronSort",
    "ProjectionTopK",
    "projection_topk",
    "soft_rank",
    "soft_sort",
]
