"""Blackbox differentiation: the gradient of a linear interpolation of the objective."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import _checks
from ..oracles import Oracle
from .base import Incoming, Rule, computable, dims, over_row, solve_invented

__all__ = ["Blackbox"]

SIDES = ("improve", "worsen", "both")


class Blackbox(Rule):
    r"""Solves once more in the backward pass, at costs moved along the incoming gradient g.

    With $y(c)$ the solution that minimises c, the gradient by c is, for `side`

    - "improve": $-\frac{1}{\lambda}\left(y(c) - y(c + \lambda g)\right)$,
    - "worsen": $-\frac{1}{\lambda}\left(y(c - \lambda g) - y(c)\right)$,
    - "both": $-\frac{1}{2\lambda}\left(y(c - \lambda g) - y(c + \lambda g)\right)$.

    Args:
        lam: the interpolation's length $\lambda > 0$: the moved costs should change some decisions.
        side: which one-sided difference.

    Returns:
        Of a call with an oracle and costs `[..., *cost_shape]`: the solutions, in that shape and dtype.

    Raises:
        TypeError, ValueError: lam is not a positive number; unknown side.

    Cost:
        No further solve forward; one a row backward, two with "both", in one batch.

    Transforms:
        backward; see `SolverLayer`. The second derivative raises.

    References:
        Vlastelica, Paulus, Musil, Martius, Rolínek, "Differentiation of Blackbox Combinatorial Solvers", ICLR 2020,
        arXiv 1912.02175, Algorithm 1.

    Example:
        >>> import torch, difflayers as dl
        >>> layer = dl.SolverLayer(dl.oracles.TopK(3, 1), rule=dl.Blackbox(2.0))
        >>> costs = torch.tensor([1.0, 2.0, 4.0], requires_grad=True)
        >>> (layer(costs) * torch.tensor([1.0, 0.0, 0.0])).sum().backward()  # item 0 was taken, and ought not
        >>> costs.grad
        tensor([-0.5000,  0.5000,  0.0000])
    """

    name = "difflayers.rules.Blackbox"

    def __init__(self, lam: float, *, side: str = "improve") -> None:
        self.lam = _checks.number(self.name, "lam", lam, above=0.0)
        self.side = _checks.choice(self.name, "side", side, SIDES)

    def __repr__(self) -> str:
        return f"Blackbox({self.lam:g}, side={self.side!r})"

    def _differentiable(self, oracle: Oracle, costs: Tensor, generator: torch.Generator | None) -> Tensor:
        return _Blackbox.apply(costs, oracle, self.lam, self.side)  # pyright: ignore[reportReturnType]


class _Blackbox(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, costs: Tensor, oracle: Oracle, lam: float, side: str) -> Tensor:
        solutions = oracle.solve(costs)
        ctx.save_for_backward(costs, solutions)
        ctx.oracle, ctx.lam, ctx.side = oracle, lam, side
        return solutions

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        costs, solutions = ctx.saved_tensors
        return interpolated(ctx.oracle, costs, solutions, gradient, ctx.lam, ctx.side), None, None, None


def interpolated(oracle: Oracle, costs: Tensor, solutions: Tensor, gradient: Tensor, lam: float, side: str) -> Tensor:
    """The gradient by the costs; both sides are solved as one batch."""
    event = dims(oracle)
    incoming = Incoming(gradient, over_row(solutions.isfinite(), event, "all"), event)
    if not bool(incoming.active.any()):
        return incoming.passed(torch.zeros_like(incoming.gradient), costs.dtype)
    exact, move = computable(costs), lam * incoming.gradient
    if side == "both":
        better, worse = solve_invented(oracle, torch.stack([exact + move, exact - move]))
        return incoming.passed((better - worse) / (2 * lam), costs.dtype)
    if side == "improve":
        return incoming.passed((solve_invented(oracle, exact + move) - solutions) / lam, costs.dtype)
    return incoming.passed((solutions - solve_invented(oracle, exact - move)) / lam, costs.dtype)
