"""What makes a found model better, on all points."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor

from ..solver import MinimalSolver

__all__ = ["Refiner", "default_refiner"]


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


def default_refiner(solver: MinimalSolver, function: str, name: str, refiner: object) -> Refiner | None:
    """`refiner` itself; for "auto", the best one that the model can do."""
    from .least_squares import LeastSquares
    from .levenberg_marquardt import LevenbergMarquardt

    if refiner is None or isinstance(refiner, Refiner):
        return refiner
    if refiner != "auto":
        raise TypeError(
            f"{function}: argument '{name}' must be a difflayers.ransac.Refiner, \"auto\" or None, got {refiner!r}"
        )
    if solver.freedom > 0:
        return LevenbergMarquardt()
    return LeastSquares() if type(solver).fit is not MinimalSolver.fit else None
