"""k of n, and orders: relaxations of subsets, sorting and ranking."""

from .projections import (
    PermutahedronRank,
    PermutahedronSort,
    ProjectionTopK,
    projection_topk,
    soft_rank,
    soft_sort,
)

__all__ = [
    "PermutahedronRank",
    "PermutahedronSort",
    "ProjectionTopK",
    "projection_topk",
    "soft_rank",
    "soft_sort",
]
