"""Solutions regularised by their squared length, found by Frank-Wolfe."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import _checks
from ..oracles import Oracle
from .base import Incoming, Rule, dims, over_row
from .nearest_point import NearestPoints

__all__ = ["FrankWolfe"]


class FrankWolfe(Rule):
    r"""The minimiser of the regularised cost over the convex hull of the solutions, with its exact gradient.

    $$ x(c) = \operatorname*{argmin}_{x \in \operatorname{conv} S} c \cdot x + \frac\lambda2 \lVert x \rVert^2, $$

    the projection of $-c / \lambda$ onto the hull: a sparse mixture of few solutions (one alone where it wins by
    enough), continuous in c. Its Jacobian is $-\frac1\lambda \Pi$, with $\Pi$ the orthogonal projection onto the
    directions of the face that x(c) lies in. The set S is known through the oracle alone, so this works for any
    oracle that takes the costs $c + \lambda x$.

    Fully corrective steps are used: the point moves to the nearest one of the hull of the vertices found, so it is
    exact after a handful of solves, where plain Frank-Wolfe takes hundreds. Rows that are done are not solved again
    (but with per-instance parameters all rows are).

    Args:
        lam: the strength $\lambda > 0$; larger is smoother.
        tolerance: of the duality gap, relative to its terms.
        max_iterations: the most steps; the point is then the nearest of the hull so far.

    Returns:
        Of a call with an oracle and costs `[..., *cost_shape]`: x(c), in that shape and dtype.

    Raises:
        TypeError, ValueError: arguments out of range.

    Cost:
        Forward, a solve a row and step, each step's rows in one batch: the number of vertices in the mixture, and one
        or two more. Backward, usually one. On the host, O(m d + m^3) a step with m vertices of d entries.

    Transforms:
        backward; see `SolverLayer`. The second derivative raises.

    References:
        Dalle, Baty, Bouvier, Parmentier, "Learning with Combinatorial Optimization Layers: a Probabilistic Approach",
        2022, arXiv 2207.13513 (regularised Frank-Wolfe); Wolfe, "Finding the Nearest Point in a Polytope",
        1976; the same problem as a quadratic program: Wilder, Dilkina, Tambe, AAAI 2019, arXiv 1809.05504.

    Example:
        >>> import torch, difflayers as dl
        >>> layer = dl.SolverLayer(dl.oracles.TopK(3, 1), rule=dl.rules.FrankWolfe(1.0))
        >>> costs = torch.tensor([1.0, 1.5, 4.0], requires_grad=True)
        >>> y = layer(costs)
        >>> y.detach()
        tensor([0.7500, 0.2500, 0.0000])
        >>> y[0].backward()
        >>> costs.grad
        tensor([-0.5000,  0.5000,  0.0000])
    """

    name = "difflayers.rules.FrankWolfe"

    def __init__(self, lam: float = 1.0, *, tolerance: float = 1e-10, max_iterations: int = 1000) -> None:
        self.lam = _checks.number(self.name, "lam", lam, above=0.0)
        self.tolerance = _checks.number(self.name, "tolerance", tolerance, minimum=0.0)
        self.max_iterations = _checks.integer(self.name, "max_iterations", max_iterations, minimum=1)

    def __repr__(self) -> str:
        return f"FrankWolfe({self.lam:g}, tolerance={self.tolerance:g}, max_iterations={self.max_iterations})"

    def regulariser(self, points: Tensor, dimensions: int = 1) -> Tensor:
        """lam / 2 |x|^2 of points `[..., *cost_shape]`; cost_shape has so many dimensions -> `[...]`."""
        squares = points.square()
        for _ in range(dimensions):
            squares = squares.sum(-1)
        return self.lam / 2 * squares

    def _differentiable(self, oracle: Oracle, costs: Tensor, generator: torch.Generator | None) -> Tensor:
        return _FrankWolfe.apply(costs, oracle, self)  # pyright: ignore[reportReturnType]


class _FrankWolfe(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, costs: Tensor, oracle: Oracle, rule: FrankWolfe) -> Tensor:
        found = NearestPoints(oracle, costs, rule.lam, rule.tolerance, rule.max_iterations)
        ctx.found, ctx.event = found, dims(oracle)
        ctx.like = {"dtype": costs.dtype, "device": costs.device}
        return found.points.to(**ctx.like)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        solved = over_row(ctx.found.points.isfinite(), ctx.event, "all").to(gradient.device)
        incoming = Incoming(gradient, solved, ctx.event)
        result = ctx.found.derivative(incoming.gradient).to(gradient.device)
        return incoming.passed(result, ctx.like["dtype"]), None, None
