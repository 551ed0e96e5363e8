"""What a model is to RANSAC: a minimal solver, a residual, and what else it can do."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import protocols
from ..errors import UnsupportedOperationError

__all__ = ["MinimalSolver", "Solutions"]


class Solutions(NamedTuple):
    """The models of minimal samples; a sample may have several.

    Attributes:
        models: `[..., solutions, *model_shape]`; finite everywhere, of no meaning where not valid.
        valid: `[..., solutions]` bool.
        condition: `[..., solutions]`, the condition number of the equations that define the model, or None where the
            solver does not say; above `MinimalSolver.worst_condition` the gradient is zero.
    """

    models: Tensor
    valid: Tensor
    condition: Tensor | None = None


class MinimalSolver(ABC):
    """A model that RANSAC can fit: the base of those that are ready, and of a user's own.

    A user's model needs the four constants, `solve` and `residual`; gradients are those of its own PyTorch code.
    `fit` lets it be refined on all inliers; `degenerate` and `plausible` throw samples and models out early.
    Leading dimensions are batch everywhere and broadcast.

    Attributes:
        sample_size: points in a minimal sample, k.
        point_size: numbers in a point, d.
        model_shape: shape of one model.
        max_solutions: the most models that a sample can have.
        worst_condition: see `Solutions.condition`.
        kernel: the residual's name in the fused kernels, or None; a subclass that changes the residual has none unless
            it says so.
        problem: the model's name in the compiled library, or None.
        freedom: degrees of freedom of the model, the length of a step of `retract`; 0: it has none.

    Example:
        >>> import torch, difflayers as dl
        >>> class Offset(dl.ransac.MinimalSolver):
        ...     "points (a, b) with b = a + offset"
        ...     sample_size, point_size, model_shape = 1, 2, (1,)
        ...
        ...     def solve(self, sample):
        ...         models = (sample[..., 1] - sample[..., 0]).unsqueeze(-1)  # one solution, one number
        ...         return models, torch.ones_like(models[..., 0], dtype=torch.bool)
        ...
        ...     def residual(self, models, points):
        ...         return (points[..., 1] - points[..., 0] - models).abs()
        >>> points = torch.tensor([[0.0, 2.0], [1.0, 3.0], [2.0, 9.0], [3.0, 5.0]])
        >>> dl.ransac.RANSAC(Offset(), threshold=0.1)(points).model
        tensor([2.])
    """

    sample_size: int
    point_size: int
    model_shape: tuple[int, ...]
    max_solutions: int = 1
    worst_condition: float = 1e6
    kernel: str | None = None
    problem: str | None = None
    freedom: int = 0

    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        # the fused kernel does not know a residual of the subclass's own
        if "kernel" not in cls.__dict__ and {"residual", "squared_residual"} & cls.__dict__.keys():
            cls.kernel = None

    @abstractmethod
    def solve(self, sample: Tensor) -> Solutions | tuple[Tensor, Tensor]:
        """Samples `[..., k, d]` -> all their models `[..., solutions, *model_shape]` and which of them are valid."""

    @abstractmethod
    def residual(self, models: Tensor, points: Tensor) -> Tensor:
        """Models `[..., *model_shape]`, points `[..., n, d]` -> distances `[..., n]`, not negative, not squared."""

    def squared_residual(self, models: Tensor, points: Tensor) -> Tensor:
        """The square of `residual`, `[..., n]`; a model whose residual is a root gives it directly."""
        return self.residual(models, points).square()

    def residual_vector(self, models: Tensor, points: Tensor) -> Tensor:
        """A vector `[..., n, c]` of length `residual`, for refinement; by default the residual itself. That has no
        derivative at 0, so a model says what the distance is of, such as the signed distance."""
        return self.residual(models, points).unsqueeze(-1)

    def retract(self, models: Tensor, step: Tensor) -> Tensor:
        """Models `[..., *model_shape]` moved along the set of models by steps `[..., freedom]`; step 0 leaves them
        where they are. Differentiable by the step, twice."""
        raise UnsupportedOperationError(
            f"difflayers.ransac.{type(self).__name__}: how a model moves is not defined; override freedom and "
            f"retract(models, step), or use another refiner"
        )

    def fit(self, points: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Points `[..., n, d]`, weights `[..., n]` -> the model of least weighted squares, `[..., *model_shape]`,
        and whether there is one, `[...]`."""
        raise UnsupportedOperationError(
            f"difflayers.ransac.{type(self).__name__}: a fit to more points than a minimal sample is not defined; "
            f"override fit(points, weights), or use refiner=None"
        )

    def degenerate(self, sample: Tensor) -> Tensor:
        """Samples `[..., k, d]` -> which of them do not determine a model, `[...]`."""
        return torch.zeros(sample.shape[:-2], dtype=torch.bool, device=sample.device)

    def plausible(self, models: Tensor, sample: Tensor) -> Tensor:
        """Models `[..., *model_shape]` and the sample of each `[..., k, d]` -> which could be seen by a camera (or
        whatever else no scene can violate), `[...]`."""
        shape = models.shape[: models.dim() - len(self.model_shape)]
        return torch.ones(shape, dtype=torch.bool, device=models.device)

    def possible(self, models: Tensor, points: Tensor, mask: Tensor | None, threshold: Tensor) -> Tensor:
        """Models `[B, *model_shape]`, points `[B, n, d]`, mask `[B, n]` or None, threshold `[B]` -> which points the
        model's cameras could have seen, `[B, n]`; no gradient.

        Of wrong points that are near the model by accident this tells some: they are no inliers, and have no part in
        the final refinement.
        """
        return torch.ones(points.shape[:-1], dtype=torch.bool, device=points.device)

    def repair(
        self,
        models: Tensor,
        sample: Tensor,
        points: Tensor,
        mask: Tensor | None,
        threshold: Tensor,
        *,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Models that their samples determine badly -> better ones, the others as they are; no gradient.

        The search calls it for its best candidates: models `[B, H, *model_shape]`, the sample of each
        `[B, H, k, d]`, points `[B, N, d]`, mask `[B, N]` or None, threshold `[B]`.
        """
        return models

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


CONSTANTS = ("sample_size", "point_size", "model_shape")


def checked_solver(function: str, name: str, value: object) -> MinimalSolver:
    """A solver, unchanged: of a class derived from `MinimalSolver`, or of one that has everything it has."""
    if isinstance(value, MinimalSolver):
        missing = [constant for constant in CONSTANTS if not hasattr(value, constant)]
        if missing:
            raise TypeError(
                f"{function}: argument '{name}' must have the constants {', '.join(CONSTANTS)}, got a "
                f"{type(value).__name__} without {', '.join(missing)}; set them in its class"
            )
        return value
    if isinstance(value, type) or not isinstance(value, protocols.MinimalSolver):
        got = value.__name__ if isinstance(value, type) else type(value).__name__
        raise TypeError(
            f"{function}: argument '{name}' must be a difflayers.ransac.MinimalSolver, got {got}; pass an instance of "
            f"a class derived from it"
        )
    whole: Any = value  # what a solver is asked for is all there
    return whole
