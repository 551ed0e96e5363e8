"""How good a hypothesis is: a sum over points of a number in [0, 1] that falls with the residual."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

__all__ = ["Scorer"]


class Scorer(ABC):
    """A score of hypotheses: the base of those that are ready, and of a user's own.

    The score of a model is the sum over the present points of s(r^2 / threshold^2), s(0) = 1, falling: about the
    number of inliers, larger is better. A scorer of one's own overrides `of_squared`, or `total` where the score is
    not a sum; it may be a `torch.nn.Module` as well (`class Mine(Scorer, torch.nn.Module)`), whose parameters then
    train with the RANSAC layer that has it.

    Attributes:
        kernel: the name of s in the fused kernels, or None; a subclass that changes s has none unless it says so.

    Example:
        >>> import torch, difflayers as dl
        >>> class Cauchy(dl.ransac.Scorer):
        ...     def of_squared(self, ratio):
        ...         return 1 / (1 + 4 * ratio)
        >>> Cauchy().weight(torch.tensor([0.0, 0.25]))
        tensor([1.0000, 0.2500])
    """

    kernel: str | None = None

    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        if "kernel" not in cls.__dict__ and {"of_squared", "total"} & cls.__dict__.keys():
            cls.kernel = None

    @abstractmethod
    def of_squared(self, ratio: Tensor) -> Tensor:
        """s of `ratio`, the squared residuals over the squared threshold, elementwise; 0 for +inf."""

    def total(self, ratio: Tensor, mask: Tensor | None) -> Tensor:
        """The scores `[...]` of models with these ratios `[..., n]`.

        Args:
            ratio: finite; very large (`FAR`) where the residual is not defined.
            mask: broadcastable to ratio, True = present; None: all are.
        """
        each = self.of_squared(ratio)
        if mask is not None:
            each = torch.where(mask, each, 0)
        return each.sum(-1)

    def weight(self, ratio: Tensor) -> Tensor:
        """The weight of a point in iteratively reweighted least squares, -ds / d ratio over its value at 0.

        By default by automatic differentiation, itself without a gradient; ready scorers have closed forms.
        """
        with torch.enable_grad():
            at = torch.cat([ratio.detach().flatten(), ratio.new_zeros(1)]).requires_grad_()
            (slope,) = torch.autograd.grad(self.of_squared(at).sum(), at)
        return (slope[:-1] / slope[-1]).view_as(ratio)

    @property
    def kernel_scale(self) -> Tensor | float:
        """What residuals are measured in by the fused kernel, as a multiple of the threshold."""
        return 1.0

    @property
    def kernel_parameter(self) -> float:
        """The fused kernel's one number."""
        return 0.0

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"
