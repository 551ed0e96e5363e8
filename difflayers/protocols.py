"""What a plug-in provides. These are structural types: nothing needs to inherit from them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from torch import Tensor

if TYPE_CHECKING:
    from .ransac import Solutions

__all__ = ["Estimator", "ExpectationEstimator", "GradientRule", "LinearOracle", "MinimalSolver"]


@runtime_checkable
class Estimator(Protocol):
    """A sample of one of n with a rule for its gradient.

    Calling it draws a sample (one-hot, or relaxed) in the shape of the logits, through which gradients flow back
    to the logits. All estimators of `difflayers.estimators` are called this way, as functions; their modules remember
    the temperature and `dim` and are called as `module(logits, generator=...)`.

    Example:
        >>> import difflayers as dl
        >>> isinstance(dl.reinmax, dl.protocols.Estimator)
        True
    """

    def __call__(
        self,
        logits: Tensor,
        temperature: float | Tensor = 1.0,
        *,
        dim: int = -1,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Draws a sample in the shape of the logits."""
        ...


@runtime_checkable
class ExpectationEstimator(Protocol):
    """An estimate of an expected loss that needs more than one sample and the loss's gradient at it.

    `difflayers.estimators.RLOO` and `Exact` are such objects; `difflayers.expectation` calls them.

    Example:
        >>> import difflayers as dl
        >>> isinstance(dl.estimators.RLOO(2), dl.protocols.ExpectationEstimator)
        True
    """

    def expectation(
        self,
        loss_fn: Callable[[Tensor], Tensor],
        logits: Tensor,
        *,
        dim: int = -1,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Estimates the expectation of loss_fn(D), D one-hot along dim and distributed as softmax(logits)."""
        ...


@runtime_checkable
class LinearOracle(Protocol):
    """A solver that minimises a linear cost over a feasible set.

    Every oracle of `difflayers.oracles` is one; rules, layers and losses take any other. Subclasses of
    `difflayers.oracles.Oracle` get batches, statuses, workers and the rest from it.

    Attributes:
        cost_shape: the shape of the costs, and of the solution, of one row.
        cost_domain: "any" or "nonnegative"; rules project the costs that they invent onto it.

    Example:
        >>> import difflayers as dl
        >>> isinstance(dl.oracles.TopK(5, 2), dl.protocols.LinearOracle)
        True
    """

    @property
    def cost_shape(self) -> tuple[int, ...]:
        """Of one row."""
        ...

    @property
    def cost_domain(self) -> str:
        """Which costs may be asked for."""
        ...

    def solve(self, costs: Tensor) -> Tensor:
        """The solutions `[..., *cost_shape]` that minimise costs `[..., *cost_shape]`."""
        ...

    def solve_batch(self, costs: Tensor) -> Any:
        """The same with objective, status and bound of every row: a `difflayers.oracles.OracleResult`."""
        ...


@runtime_checkable
class GradientRule(Protocol):
    """What stands in for the derivative of a solver: the second argument of `difflayers.SolverLayer`.

    All of `difflayers.rules` are such objects. As `isinstance` sees no signatures, every callable is one to it.

    Example:
        >>> import difflayers as dl
        >>> isinstance(dl.rules.Identity(), dl.protocols.GradientRule)
        True
    """

    def __call__(self, oracle: Any, costs: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """The solutions `[..., *cost_shape]` of a `LinearOracle`, through which gradients flow to the costs."""
        ...


@runtime_checkable
class MinimalSolver(Protocol):
    """A model that `difflayers.ransac.RANSAC` can fit, with everything that it is asked for.

    A subclass of `difflayers.ransac.MinimalSolver` writes four constants and two methods and inherits the rest; an
    object that inherits nothing has to have all of them. There, each is described.

    Attributes:
        sample_size: points in a minimal sample.
        point_size: numbers in a point.
        model_shape: shape of one model.
        max_solutions: the most models that a sample can have.
        worst_condition: of the equations of a model, for a gradient.
        kernel: the residual's name in the fused kernels, or None.
        problem: the model's name in the compiled library, or None.
        freedom: degrees of freedom of the model; 0 where `retract` is not defined.

    Example:
        >>> import difflayers as dl
        >>> isinstance(dl.ransac.Line2D(), dl.protocols.MinimalSolver)
        True
    """

    sample_size: int
    point_size: int
    model_shape: tuple[int, ...]
    max_solutions: int
    worst_condition: float
    kernel: str | None
    problem: str | None
    freedom: int

    def solve(self, sample: Tensor) -> Solutions | tuple[Tensor, Tensor]:
        """Samples `[..., k, d]` -> all their models and which of them are valid."""
        ...

    def residual(self, models: Tensor, points: Tensor) -> Tensor:
        """Distances `[..., n]` of points from models."""
        ...

    def squared_residual(self, models: Tensor, points: Tensor) -> Tensor:
        """Their squares."""
        ...

    def residual_vector(self, models: Tensor, points: Tensor) -> Tensor:
        """Vectors `[..., n, c]` of these lengths."""
        ...

    def retract(self, models: Tensor, step: Tensor) -> Tensor:
        """Models moved by steps `[..., freedom]`."""
        ...

    def fit(self, points: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """The model of least weighted squares, and whether there is one."""
        ...

    def degenerate(self, sample: Tensor) -> Tensor:
        """Which samples do not determine a model."""
        ...

    def plausible(self, models: Tensor, sample: Tensor) -> Tensor:
        """Which models a scene can have."""
        ...

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
        """Better models in place of those that their samples determine badly."""
        ...
