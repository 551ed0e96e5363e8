"""Which points make a minimal sample."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

__all__ = ["Sampler"]


class Sampler(ABC):
    """Draws minimal samples: the base of those that are ready, and of a user's own."""

    @abstractmethod
    def sample(
        self, logits: Tensor, size: int, count: int, *, first: int = 0, generator: torch.Generator | None = None
    ) -> Tensor:
        """Draws `count` sets of `size` different points for each problem.

        Args:
            logits: `[B, N]` float, no gradient; -inf where a point must not be drawn. At least `size` are finite.
            first: how many sets were drawn for these problems before (a sampler may change with it).
            generator: of the noise.

        Returns:
            `[B, count, size]` int64.
        """

    def log_prob(self, logits: Tensor, samples: Tensor) -> Tensor | None:
        """The log-probability of each drawn set, `[B, count]`, differentiable by logits; None if it has no gradient."""
        return None

    def gather(self, points: Tensor, logits: Tensor, samples: Tensor) -> Tensor:
        """The points `[B, N, d]` of the samples, `[B, count, size, d]`; where a pathwise gradient by logits enters."""
        batch, count, size = samples.shape
        index = samples.reshape(batch, count * size, 1).expand(-1, -1, points.shape[-1])
        return points.gather(1, index).view(batch, count, size, points.shape[-1])
