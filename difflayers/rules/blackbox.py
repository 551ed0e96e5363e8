"""Blackbox differentiation: the gradient of a linear interpolation of the objective."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import _checks
from ..oracles import Oracle
from .base import Rule, solve_invented

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

    Raises:
        TypeError, ValueError: lam is not a positive number; unknown side.

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

    def __init__(self, lam: float, *, side: str = "improve") -> None:
        name = "difflayers.rules.Blackbox"
        self.lam = _checks.number(name, "lam", lam, above=0.0)
        self.side = _checks.choice(name, "side", side, SIDES)

    def __repr__(self) -> str:
        return f"Blackbox({self.lam:g}, side={self.side!r})"

    def __call__(self, oracle: Oracle, costs: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """The solutions, with this rule's gradient."""
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
    def backward(ctx: Any, gradient: Tensor) -> Any:
        costs, solutions = ctx.saved_tensors
        lam, side = ctx.lam, ctx.side
        better = solve_invented(ctx.oracle, costs + lam * gradient) if side != "worsen" else solutions
        worse = solve_invented(ctx.oracle, costs - lam * gradient) if side != "improve" else solutions
        return (better - worse) / (2 * lam if side == "both" else lam), None, None, None
