"""Surrogates: losses and linear costs that make decisions good, and convex stand-ins for combinatorial problems."""

from .cave import CaVE
from .contrastive_map import ContrastiveMAP
from .convex import ConvexLayer
from .fenchel_young import FenchelYoung
from .listwise_ranking import ListwiseRanking
from .local_search import LocalSearch
from .maximum_optimality_margin import MaximumOptimalityMargin
from .nce import NCE
from .objective import ObjectiveError
from .pairwise_ranking import PairwiseRanking
from .perturbation_gradient import PerturbationGradient
from .pointwise_ranking import PointwiseRanking
from .prior import PriorRecord, SurCoPrior
from .projections import project_box, project_capped_simplex, project_l1_ball, project_l2_ball, project_simplex
from .quadratic_program import QuadraticProgram
from .regret import normalized_regret, regret, unambiguous_regret
from .result import SurCoRecord, SurCoResult
from .spo_plus import SPOPlus
from .structured_svm import StructuredSVM
from .surco import SurCo

__all__ = [
    "NCE",
    "CaVE",
    "ContrastiveMAP",
    "ConvexLayer",
    "FenchelYoung",
    "ListwiseRanking",
    "LocalSearch",
    "MaximumOptimalityMargin",
    "ObjectiveError",
    "PairwiseRanking",
    "PerturbationGradient",
    "PointwiseRanking",
    "PriorRecord",
    "QuadraticProgram",
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
