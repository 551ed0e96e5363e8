"""What a plug-in provides. These are structural types: nothing needs to inherit from them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import torch
from torch import Tensor

if TYPE_CHECKING:
    from .oracles import OracleResult
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
    """The solution of least linear cost in a feasible set, for batches of costs; everything minimises.

    `difflayers.oracles.Oracle` has all of it but the solver, and workers, deadlines, failures and a memory besides.

    Attributes:
        cost_shape: of the costs and the solution of one row.
        cost_domain: "any", or "nonnegative" where negative costs are refused; rules keep to it.

    Example:
        >>> import difflayers as dl
        >>> isinstance(dl.oracles.TopK(3, 1), dl.protocols.LinearOracle)
        True
    """

    @property
    def cost_shape(self) -> tuple[int, ...]: ...

    @property
    def cost_domain(self) -> str: ...

    def solve(self, costs: Tensor) -> Tensor:
        """The solutions `[..., *cost_shape]` of costs of that shape, without a gradient."""
        ...

    def solve_batch(self, costs: Tensor) -> OracleResult:
        """Solutions with objective, status and bound of every row."""
        ...


@runtime_checkable
class GradientRule(Protocol):
    """How gradients pass through a solver; the rules of `difflayers.rules` are such objects.

    Example:
        >>> import difflayers as dl
        >>> isinstance(dl.Blackbox(1.0), dl.protocols.GradientRule)
        True
    """

    def __call__(self, oracle: LinearOracle, costs: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """The oracle's solutions `[..., *cost_shape]`, through which gradients flow to the costs."""
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

    def possible(self, models: Tensor, points: Tensor, mask: Tensor | None, threshold: Tensor) -> Tensor:
        """Which points the models' cameras could have seen."""
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
