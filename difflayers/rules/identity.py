"""Identity: the solver as minus the identity, after a projection of the costs."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .. import _checks
from ..oracles import Oracle
from .base import Rule, computable, dims, over_row

__all__ = ["Identity"]

PROJECTIONS = ("normalize", "center", "both")


class Identity(Rule):
    r"""The gradient passes the solver with its sign turned, through a projection P of the costs.

    With g the incoming gradient and J the Jacobian of P at c, the gradient by c is $-J^\top g$, where $P(c)$ is, for
    `projection`

    - "normalize": $c / \lVert c \rVert$, so $J^\top g = (g - \hat c\,(\hat c \cdot g)) / \lVert c \rVert$ with
      $\hat c = c / \lVert c \rVert$: scaling the costs changes no solution, and no gradient goes into their scale;
    - "center": $c - \bar c$: for sets whose solutions all have the same sum (assignment, permutations, tours, spanning
      trees, k of n), where adding a constant to the costs changes nothing either;
    - "both": centred, then normalised;
    - None: the costs as they are. They can then grow or collapse along directions that change no solution.

    The solutions are those of c itself: where P is admissible they are those of P(c).

    Args:
        projection: P. At costs where it has no derivative (all zero; for "both", all equal) the gradient is not
            divided by the norm, so that training can leave such a point.

    Returns:
        Of a call with an oracle and costs `[..., *cost_shape]`: the solutions, in that shape and dtype.

    Raises:
        TypeError, ValueError: unknown projection.

    Cost:
        No solve in the backward pass.

    Transforms:
        backward, and double backward of the surrogate; see `SolverLayer`.

    References:
        Sahoo, Paulus, Vlastelica, Musil, Kuleshov, Martius, "Backpropagation through Combinatorial Algorithms: Identity
        with Projection Works", ICLR 2023, arXiv 2205.15213.

    Example:
        >>> import torch, difflayers as dl
        >>> layer = dl.SolverLayer(dl.oracles.TopK(3, 1), rule=dl.rules.Identity("center"))
        >>> costs = torch.tensor([1.0, 2.0, 4.0], requires_grad=True)
        >>> (layer(costs) * torch.tensor([3.0, 0.0, 0.0])).sum().backward()  # item 0 was taken, and ought not
        >>> costs.grad
        tensor([-2.,  1.,  1.])
    """

    name = "difflayers.rules.Identity"

    def __init__(self, projection: str | None = "normalize") -> None:
        self.projection = (
            None if projection is None else _checks.choice(self.name, "projection", projection, PROJECTIONS)
        )

    def __repr__(self) -> str:
        return f"Identity(projection={self.projection!r})"

    def _differentiable(self, oracle: Oracle, costs: Tensor, generator: torch.Generator | None) -> Tensor:
        solutions, event = oracle.solve(costs), dims(oracle)
        projected = _project(computable(costs), self.projection, event)
        surrogate = (projected.detach() - projected).to(costs.dtype)  # 0, with the gradient of -P
        failed = ~over_row(solutions.isfinite(), event, "all")
        return torch.where(failed, solutions, solutions + surrogate)


def _project(costs: Tensor, projection: str | None, event: tuple[int, ...]) -> Tensor:
    rounding = 0.0
    if projection in ("center", "both"):
        # equal costs, once centred, are rounding: it must not be taken for a direction
        rounding = 32 * torch.finfo(costs.dtype).eps * over_row(costs.detach(), event, "largest")
        size = math.prod(costs.shape[dim] for dim in event)
        costs = costs - over_row(costs, event, "sum") / max(size, 1)  # an empty row has no mean
    if projection in ("normalize", "both"):
        # divided by the largest entry first: the square of 1e-30 is 0 in float32, but such costs are not zero
        largest = over_row(costs.detach(), event, "largest")
        zero = largest <= rounding
        scale = torch.where(zero, 1.0, largest)
        norm = over_row(torch.where(zero, 0.0, costs / scale), event, "norm")
        costs = costs / torch.where(zero, 1.0, norm * scale)
    return costs
