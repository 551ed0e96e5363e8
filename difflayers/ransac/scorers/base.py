"""How good a hypothesis is: a sum over points of a number in [0, 1] that falls with the residual."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor

__all__ = ["Scorer"]


class Scorer(ABC):
    """A score of hypotheses: the base of those that are ready, and of a user's own.

    The score of a model is the sum over the points of s(r^2 / threshold^2), s(0) = 1, falling: about the number of
    inliers, larger is better.

    Attributes:
        kernel: the name of s in the fused kernels, or None.
    """

    kernel: str | None = None

    @abstractmethod
    def of_squared(self, ratio: Tensor) -> Tensor:
        """s of `ratio`, the squared residuals over the squared threshold, elementwise."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"
