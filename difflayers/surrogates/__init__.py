"""Smooth and convex stand-ins for combinatorial problems."""

from .projections import project_box, project_capped_simplex, project_l1_ball, project_l2_ball, project_simplex

__all__ = [
    "CaVE",
    "ContrastiveMAP",
    "FenchelYoung",
    "ListwiseRanking",
    "MaximumOptimalityMargin",
    "NCE",
    "ObjectiveError",
    "PairwiseRanking",
    "PerturbationGradient",
    "PointwiseRanking",
    "PriorRecord",
    "SPOPlus",
    "StructuredSVM",
    "SurCo",
    "SurCoPrior",
    "SurCoRecord",
    "SurCoResult",
    "normalized_regret",
    "project_box",
    "project_capped_simplex",
    "project_l1_ball",
    "project_l2_ball",
    "project_simplex",
    "regret",
    "unambiguous_regret",
]
