"""Every loss of the library under one name; each family owns its own."""

from ..ransac.losses import EpipolarLoss, ExpectedLoss, InlierCrossEntropy
from ..sorting.losses import NDCGLoss, PermutationCrossEntropy, SpearmanLoss, permutation_cross_entropy
from ..sorting.topk_cross_entropy import TopKCrossEntropy
from ..surrogates import (
    NCE,
    CaVE,
    ContrastiveMAP,
    FenchelYoung,
    ListwiseRanking,
    MaximumOptimalityMargin,
    PairwiseRanking,
    PerturbationGradient,
    PointwiseRanking,
    SPOPlus,
    StructuredSVM,
)

__all__ = [
    "NCE",
    "CaVE",
    "ContrastiveMAP",
    "EpipolarLoss",
    "ExpectedLoss",
    "FenchelYoung",
    "InlierCrossEntropy",
    "ListwiseRanking",
    "MaximumOptimalityMargin",
    "NDCGLoss",
    "PairwiseRanking",
    "PermutationCrossEntropy",
    "PerturbationGradient",
    "PointwiseRanking",
    "SPOPlus",
    "SpearmanLoss",
    "StructuredSVM",
    "TopKCrossEntropy",
    "permutation_cross_entropy",
]
