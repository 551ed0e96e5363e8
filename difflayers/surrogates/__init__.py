"""Decision-focused losses: what costs should be learned so that the decisions for them are good."""

from .cave import CaVE
from .contrastive_map import ContrastiveMAP
from .fenchel_young import FenchelYoung
from .listwise_ranking import ListwiseRanking
from .maximum_optimality_margin import MaximumOptimalityMargin
from .nce import NCE
from .pairwise_ranking import PairwiseRanking
from .perturbation_gradient import PerturbationGradient
from .pointwise_ranking import PointwiseRanking
from .regret import normalized_regret, regret, unambiguous_regret
from .spo_plus import SPOPlus
from .structured_svm import StructuredSVM

__all__ = [
    "NCE",
    "CaVE",
    "ContrastiveMAP",
    "FenchelYoung",
    "ListwiseRanking",
    "MaximumOptimalityMargin",
    "PairwiseRanking",
    "PerturbationGradient",
    "PointwiseRanking",
    "SPOPlus",
    "StructuredSVM",
    "normalized_regret",
    "regret",
    "unambiguous_regret",
]
