"""Steepness relative to the data."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _checks

__all__ = ["RelativeSteepness"]


class RelativeSteepness:
    """Steepness in units of each row's spread: s = factor / std(row), detached from the graph.

    A difference of one standard deviation is then softened the same whatever the scale of the scores, so
    that sort(c x) = c sort(x) for c > 0 and the steepness need not be tuned again when the scores grow. The
    values themselves are not rescaled, so their sum is conserved.

    The standard deviation is the population's, over the row's finite, present elements; a row without
    spread gets s = factor.

    Args:
        factor: positive; default 10.0.

    Example:
        >>> import torch, difflayers as dl
        >>> x = torch.tensor([3.0, 1.0, 2.0])
        >>> small = dl.sort(x, steepness=dl.RelativeSteepness(10.0))
        >>> large = dl.sort(1000 * x, steepness=dl.RelativeSteepness(10.0))
        >>> torch.allclose(large, 1000 * small)
        True
    """

    def __init__(self, factor: float = 10.0) -> None:
        self.factor = _checks.number("difflayers.RelativeSteepness", "factor", factor, above=0.0)

    def __repr__(self) -> str:
        return f"RelativeSteepness({self.factor})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RelativeSteepness) and self.factor == other.factor

    def __hash__(self) -> int:
        return hash((RelativeSteepness, self.factor))

    def of(self, scores: Tensor) -> Tensor:
        """The steepness of each row: scores [B, n] -> [B]."""
        scores = scores.detach()
        finite = torch.isfinite(scores)
        count = finite.sum(dim=1, keepdim=True).clamp(min=1)
        scores = torch.where(finite, scores, 0.0)
        # scaled by the largest magnitude so that 3e38 and 1e-38 square without over- or underflow
        scale = scores.abs().amax(dim=1, keepdim=True) if scores.shape[1] else scores.new_ones(scores.shape[0], 1)
        scale = torch.where(scale > 0, scale, 1.0)
        unit = scores / scale
        mean = unit.sum(dim=1, keepdim=True) / count
        variance = (torch.where(finite, unit - mean, 0.0) ** 2).sum(dim=1, keepdim=True) / count
        deviation = variance.sqrt()
        # below this the deviation is rounding noise of equal elements, not spread
        spread = deviation > 8 * torch.finfo(scores.dtype).eps
        limits = torch.finfo(scores.dtype)
        relative = self.factor / torch.where(spread, deviation, 1.0) / scale
        return torch.where(spread, relative.clamp(limits.tiny, limits.max), self.factor)[:, 0]
