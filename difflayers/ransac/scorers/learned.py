"""A score that is a network."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ... import _checks
from ...errors import UnsupportedOperationError
from .base import Scorer

__all__ = ["Learned"]


class Learned(Scorer, nn.Module):
    """The score that a network gives to the residuals of a model.

    Args:
        module: maps ratios `[..., n]`, squared residuals over the squared threshold, to scores `[...]`, larger is
            better. The order of the points carries no meaning.
        limit: ratios above it, points that are absent, and undefined residuals all come as this number.

    Raises:
        TypeError: module is not an nn.Module.
        ValueError: limit is not above 1; or, when called, the module's scores have another shape.

    Cost, transforms:
        The module's, on chunks of hypotheses that are computed again in the backward pass; backward.

    Example:
        >>> import torch, difflayers as dl
        >>> class Soft(torch.nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.steepness = torch.nn.Parameter(torch.tensor(5.0))
        ...
        ...     def forward(self, ratio):
        ...         return (self.steepness * (1 - ratio)).sigmoid().sum(-1)
        >>> layer = dl.ransac.RANSAC(dl.ransac.Line2D(), threshold=0.1, scorer=dl.ransac.Learned(Soft()))
        >>> [name for name, _ in layer.named_parameters()]
        ['scorer.module.steepness']
    """

    def __init__(self, module: nn.Module, *, limit: float = 100.0) -> None:
        super().__init__()
        function = "difflayers.ransac.Learned"
        if not isinstance(module, nn.Module):
            raise TypeError(
                f"{function}: argument 'module' must be a torch.nn.Module, got {type(module).__name__}; for a "
                f"function, subclass difflayers.ransac.Scorer"
            )
        self.module = module
        self.limit = _checks.number(function, "limit", limit, above=1)

    def of_squared(self, ratio: Tensor) -> Tensor:
        """Not defined: a network sees all points together."""
        raise UnsupportedOperationError(
            "difflayers.ransac.Learned: the score of a single point is not defined; use total(ratio, mask)"
        )

    def total(self, ratio: Tensor, mask: Tensor | None) -> Tensor:
        """The network's scores."""
        ratio = torch.where(ratio < self.limit, ratio, self.limit)
        if mask is not None:
            ratio = torch.where(mask, ratio, self.limit)
        scores = self.module(ratio)
        if scores.shape != ratio.shape[:-1]:
            raise ValueError(
                f"difflayers.ransac.Learned: argument 'module' must map {tuple(ratio.shape)} to scores of shape "
                f"{tuple(ratio.shape[:-1])}, got {tuple(scores.shape)}; sum over the last dimension"
            )
        return scores

    def weight(self, ratio: Tensor) -> Tensor:
        """How much the score falls with each ratio, over the most that any does; 0 where it rises."""
        with torch.enable_grad():
            at = ratio.detach().requires_grad_()
            (slope,) = torch.autograd.grad(self.total(at, None).sum(), at)
        falls = (-slope).clamp(min=0)
        most = falls.amax(-1, keepdim=True)
        return falls / torch.where(most > 0, most, 1.0)

    def __repr__(self) -> str:
        return f"Learned({type(self.module).__name__}, limit={self.limit:g})"
