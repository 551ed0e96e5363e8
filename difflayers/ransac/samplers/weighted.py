"""Sampling by weights, without replacement."""

from __future__ import annotations

import torch
from torch import Tensor

from ._draw import plackett_luce
from .base import Sampler, checked

__all__ = ["Weighted"]


class Weighted(Sampler):
    r"""Draws point after point, each with probability $\propto e^{\theta_i}$ among those not drawn yet.

    $$p(i_1, \dots, i_k) = \prod_{j=1}^{k} e^{\theta_{i_j}} / \sum_{i \notin \{i_1, \dots, i_{j-1}\}} e^{\theta_i},$$

    the Plackett-Luce distribution, exactly, with no gradient by the logits: for weights that are given and not
    trained. To train them take `GumbelTopK`, which draws in the same way.

    Returns:
        Of `sample(logits, size, count)`: `[B, count, size]` int64, in the order drawn.

    Raises:
        ValueError: of `sample`: NaN or +inf in logits, fewer finite ones than `size`, a shape other than `[B, N]`.

    Cost, transforms:
        A sort of the logits, then O(size^2 + size log N) a sample; no noise for each point. No gradient.

    References:
        Plackett, "The Analysis of Permutations", Applied Statistics, 1975.

    Example:
        >>> import torch, difflayers as dl
        >>> logits = torch.tensor([[0.0, 50.0, -torch.inf, 50.0]])
        >>> dl.ransac.Weighted().sample(logits, 2, 1).sort().values
        tensor([[[1, 3]]])
    """

    def sample(
        self, logits: Tensor, size: int, count: int, *, first: int = 0, generator: torch.Generator | None = None
    ) -> Tensor:
        """Draws `[B, count, size]` different points."""
        return plackett_luce(checked(self, logits, size, count, first), size, count, generator)
