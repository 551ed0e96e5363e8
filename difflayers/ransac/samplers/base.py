"""Which points make a minimal sample."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from ... import _checks

__all__ = ["Sampler"]


class Sampler(ABC):
    """Draws minimal samples: the base of those that are ready, and of a user's own.

    Draws are independent of each other and, given the logits, equally distributed, unless `sample` says otherwise;
    that is what makes `expected_loss` unbiased.
    """

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

    def chance(self, logits: Tensor) -> Tensor:
        """How likely the next point of a sample is each of the points, `[B, N]`, by which the search judges when to
        stop; a sampler that does better than what it says here only stops later than it could."""
        return logits.softmax(-1)

    def log_prob(self, logits: Tensor, samples: Tensor) -> Tensor | None:
        """The log-probability of each drawn set, `[B, count]`, differentiable by logits; None if it has no gradient."""
        return None

    def gather(
        self, points: Tensor, logits: Tensor, samples: Tensor, *, generator: torch.Generator | None = None
    ) -> Tensor:
        """The points `[B, N, d]` of the samples, `[B, count, size, d]`; where a pathwise gradient by logits enters."""
        batch, count, size = samples.shape
        index = samples.reshape(batch, count * size, 1).expand(-1, -1, points.shape[-1])
        return points.gather(1, index).view(batch, count, size, points.shape[-1])

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


def checked(sampler: Sampler, logits: Tensor, size: int, count: int = 1, first: int = 0) -> Tensor:
    """`[B, N]` logits of which samples of this size can be drawn."""
    function = f"difflayers.ransac.{type(sampler).__name__}"
    _checks.tensor(function, "logits", logits)
    if logits.dim() != 2:
        raise ValueError(
            f"{function}: argument 'logits' must have the shape (problems, points), got {tuple(logits.shape)}; "
            f"add or flatten dimensions"
        )
    _checks.integer(function, "size", size, minimum=1)
    _checks.integer(function, "count", count, minimum=0)
    _checks.integer(function, "first", first, minimum=0)
    if _checks.contents_are_checked(logits):
        bad = logits.isnan() | logits.isposinf()
        if bool(bad.any()):
            raise ValueError(
                f"{function}: argument 'logits' must be finite or -inf, got {logits.detach()[bad][0].item()}; a point "
                f"that must not be drawn has -inf"
            )
        fewest = int((~logits.isneginf()).sum(-1).min()) if len(logits) else size
    else:
        fewest = logits.shape[1]
    if fewest < size:
        raise ValueError(
            f"{function}: argument 'logits' must have at least {size} finite elements a problem to draw {size} "
            f"different points, got {fewest}; leave such problems out"
        )
    return logits.detach()
