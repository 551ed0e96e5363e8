"""What makes a found model better, on all points."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor

from ..solver import MinimalSolver

__all__ = ["Refiner"]


class Refiner(ABC):
    """An improvement of models on all points: the base of those that are ready, and of a user's own."""

    @abstractmethod
    def refine(
        self, solver: MinimalSolver, models: Tensor, points: Tensor, mask: Tensor | None, threshold: Tensor
    ) -> Tensor:
        """Models `[B, H, *model_shape]` near their optimum -> better ones, of the same shape.

        Args:
            points: `[B, N, d]`, finite.
            mask: `[B, N]` bool, True = present; None: all are.
            threshold: `[B]`, the distance of inliers.

        Returns:
            `[B, H, *model_shape]`, differentiable by the points (and by nothing else); a model that cannot be improved
            comes back as it was. The caller compares scores, so a worse one does no harm.
        """

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"
