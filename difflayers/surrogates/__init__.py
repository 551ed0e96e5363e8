"""Smooth and convex stand-ins for combinatorial problems."""

from .projections import project_box, project_capped_simplex, project_l1_ball, project_l2_ball, project_simplex

__all__ = [
    "CaVE",
    "ContrastiveMAP",
    "FenchelYoung",
    "ListwiseRanking",
    "MaximumOptimalityMargin",
    "NCE",
    "PairwiseRanking",
    "PerturbationGradient",
    "PointwiseRanking",
    "SPOPlus",
    "StructuredSVM",
    "normalized_regret",
    "project_box",
    "project_capped_simplex",
    "project_l1_ball",
    "project_l2_ball",
    "project_simplex",
    "regret",
    "unambiguous_regret",
]
