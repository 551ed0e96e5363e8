"""Every loss of the library under one name; each family owns its own."""

from ..sorting.losses import NDCGLoss, PermutationCrossEntropy, SpearmanLoss, permutation_cross_entropy
from ..sorting.topk_cross_entropy import TopKCrossEntropy

__all__ = ["NDCGLoss", "PermutationCrossEntropy", "SpearmanLoss", "TopKCrossEntropy", "permutation_cross_entropy"]
