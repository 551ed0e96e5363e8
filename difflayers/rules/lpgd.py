"""Lagrangian proximal gradient descent, for a linear cost."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import _checks
from ..oracles import Oracle
from .base import Incoming, Rule, computable, dims, over_row
from .blackbox import SIDES, interpolated
from .nearest_point import NearestPoints

__all__ = ["LPGD"]


class LPGD(Rule):
    r"""Solves once more in the backward pass, at moved costs and with a penalty for leaving the solution.

    With y the solution of the costs c, g the incoming gradient and the proximal solution

    $$ x_{\tau} = \operatorname*{argmin}_{x \in \operatorname{conv} S} (c + \tau g) \cdot x
       + \frac\rho2 \lVert x - y \rVert^2, $$

    the gradient by c is, for `side`, $(x_\tau - y) / \tau$ ("improve"), $(y - x_{-\tau}) / \tau$ ("worsen"), or their
    mean ("both"). For a linear cost and a fixed feasible set that is all that the method comes to:

    - rho = 0 is exactly `Blackbox(tau, side)`;
    - rho > 0: $x_\tau$ is the projection of $y - (c + \tau g) / \rho$ onto the hull, so the gradient is continuous in g
      and may be a mixture of solutions where Blackbox changes from nothing to a whole other solution. It is still zero
      until $\tau g$ outweighs what other solutions cost more than y;
    - without the constraints and the cost c it would be `Identity(None)` scaled by 1 / rho.

    For programs whose constraints are learned as well, and for their duals, see
    `difflayers.surrogates.ConvexLayer(..., derivative="lpgd")`.

    Args:
        tau: the length $\tau > 0$ of the step.
        rho: the strength of the penalty, at least 0, in the units of the costs. rho > 0 needs an oracle that takes
            negative costs.
        side: see above.

    Returns:
        Of a call with an oracle and costs `[..., *cost_shape]`: the solutions, in that shape and dtype.

    Raises:
        TypeError, ValueError: arguments out of range; rho > 0 with an oracle of nonnegative costs.

    Cost:
        rho = 0: as `Blackbox`. rho > 0: the solves of `FrankWolfe` in the backward pass.

    Transforms:
        backward; see `SolverLayer`. The second derivative raises.

    References:
        Paulus, Martius, Musil, "LPGD: A General Framework for Backpropagation through Embedded Optimization Layers",
        ICML 2024, arXiv 2407.05920.

    Example:
        >>> import torch, difflayers as dl
        >>> layer = dl.SolverLayer(dl.oracles.TopK(3, 1), rule=dl.rules.LPGD(2.0, rho=2.0))
        >>> costs = torch.tensor([1.0, 2.0, 4.0], requires_grad=True)
        >>> (layer(costs) * torch.tensor([1.0, 0.0, 0.0])).sum().backward()  # item 0 was taken, and ought not
        >>> costs.grad
        tensor([-0.1250,  0.1250,  0.0000])
    """

    name = "difflayers.rules.LPGD"

    def __init__(self, tau: float, *, rho: float = 0.0, side: str = "improve") -> None:
        self.tau = _checks.number(self.name, "tau", tau, above=0.0)
        self.rho = _checks.number(self.name, "rho", rho, minimum=0.0)
        self.side = _checks.choice(self.name, "side", side, SIDES)

    def __repr__(self) -> str:
        return f"LPGD({self.tau:g}, rho={self.rho:g}, side={self.side!r})"

    def _differentiable(self, oracle: Oracle, costs: Tensor, generator: torch.Generator | None) -> Tensor:
        if self.rho > 0 and oracle.cost_domain == "nonnegative":
            raise ValueError(
                f"{self.name}: argument 'rho' must be 0 for an oracle of nonnegative costs, as the penalty's are "
                f"negative, got {self.rho:g}"
            )
        return _LPGD.apply(costs, oracle, self)  # pyright: ignore[reportReturnType]

    def _gradient(self, oracle: Oracle, costs: Tensor, solutions: Tensor, gradient: Tensor) -> Tensor:
        if self.rho == 0:
            return interpolated(oracle, costs, solutions, gradient, self.tau, self.side)
        event = dims(oracle)
        solved = over_row(solutions.isfinite(), event, "all")
        incoming = Incoming(gradient, solved, event)
        if not bool(incoming.active.any()):
            return incoming.passed(torch.zeros_like(incoming.gradient), costs.dtype)
        at = torch.where(solved, computable(solutions), 0.0)
        move, centre = self.tau * incoming.gradient, computable(costs) - self.rho * at

        def proximal(moved: Tensor) -> Tensor:
            return NearestPoints(oracle, moved, self.rho, 1e-10, 1000).points.to(costs.device, at.dtype)

        if self.side == "both":
            better, worse = proximal(torch.stack([centre + move, centre - move]))
            return incoming.passed((better - worse) / (2 * self.tau), costs.dtype)
        if self.side == "improve":
            return incoming.passed((proximal(centre + move) - at) / self.tau, costs.dtype)
        return incoming.passed((at - proximal(centre - move)) / self.tau, costs.dtype)


class _LPGD(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, costs: Tensor, oracle: Oracle, rule: LPGD) -> Tensor:
        solutions = oracle.solve(costs)
        ctx.save_for_backward(costs, solutions)
        ctx.oracle, ctx.rule = oracle, rule
        return solutions

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        costs, solutions = ctx.saved_tensors
        return ctx.rule._gradient(ctx.oracle, costs, solutions, gradient), None, None
