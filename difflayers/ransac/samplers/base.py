"""Which points make a minimal sample."""

from __future__ import annotations

import math
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

    def needed(self, logits: Tensor, inliers: Tensor, size: int, confidence: float) -> Tensor:
        """How many draws contain one of inliers only with this confidence, by which the search judges when to stop.

        By default of draws point after point in proportion to exp(logits).

        Args:
            logits: `[B, N]`, -inf where a point must not be drawn.
            inliers: `[B, N]` bool.

        Returns:
            `[B]` float64; inf where there are too few inliers.
        """
        return draws_needed(all_inliers(logits, inliers, size), confidence)

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


def all_inliers(logits: Tensor, inliers: Tensor, size: int) -> Tensor:
    r"""The probability `[B]` that a Plackett-Luce draw is of inliers only, from below.

    Of inliers of the mass W among outliers of the mass V, the next one is an inlier with probability W / (W + V); by
    then the inliers drawn have taken from W, at most what the heaviest of them hold. So
    $\prod_{j < k} (W - M_j) / (W - M_j + V)$, $M_j$ the mass of the j heaviest: exact for equal logits, and close to
    it where few points hold most of the mass, for these are drawn first."""
    weights = (logits.double() - logits.double().amax(-1, keepdim=True)).exp()
    good = torch.where(inliers, weights, 0)
    outliers = torch.where(inliers, 0, weights).sum(-1, keepdim=True)
    heavy = good.topk(min(size, good.shape[-1]), -1)
    # summed from the lightest, so that nothing cancels
    left = good.scatter(-1, heavy.indices, 0).sum(-1, keepdim=True) + heavy.values.flip(-1).cumsum(-1).flip(-1)
    enough = (inliers & (weights > 0)).sum(-1) >= size
    mass = left + outliers
    return torch.where(enough, (left / torch.where(mass > 0, mass, 1)).prod(-1), 0)


def draws_needed(success: Tensor, confidence: float) -> Tensor:
    """How many draws contain a success with this confidence: log(1 - confidence) / log(1 - success), inf for 0."""
    certain = success.clamp(max=1 - 1e-15)  # one draw, not log 0
    return math.log1p(-confidence) / torch.log1p(-certain)
