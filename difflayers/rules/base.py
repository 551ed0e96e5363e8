"""What gradient rules share."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _checks
from ..errors import UnsupportedOperationError
from ..oracles import Oracle


class Rule:
    """Base of the gradient rules: solves with an oracle and says what the gradient by the costs is.

    A rule is called as `rule(oracle, costs, generator=None)` and returns solutions `[..., *cost_shape]` through
    which gradients flow to the costs. Costs that a rule invents go through `solve_invented`, so that they lie in
    the oracle's domain. A subclass defines `name` and `_differentiable`.

    Attributes:
        name: in messages, "difflayers.rules.X".
    """

    name: str = "difflayers.rules.Rule"

    def __call__(self, oracle: Oracle, costs: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """The solutions, with this rule's gradient.

        Args:
            oracle: what to minimise over.
            costs: `[..., *cost_shape]`, any floating dtype.
            generator: for the rules that draw noise.

        Returns:
            `[..., *cost_shape]` in the dtype of the costs. A row without a solution (on_failure="nan"), or with a
            sample without one, is NaN and passes no gradient; a row whose incoming gradient is not finite gets a
            gradient of NaN, no other row does.

        Raises:
            UnsupportedOperationError: under torch.func, torch.compile(fullgraph=True) and torch.export.
            TypeError, ValueError: for costs that do not fit the oracle.
        """
        if torch.compiler.is_dynamo_compiling():
            from .._untraced import call

            return call(self, oracle, costs, generator=generator)
        if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
            raise UnsupportedOperationError(
                f"{self.name}: a solver runs on the host and cannot be traced by torch.compile(fullgraph=True), "
                f"torch.export or torch.func; call it outside of them"
            )
        costs = _checks.tensor(self.name, "costs", costs)
        event = oracle.cost_shape
        if costs.dim() < len(event) or tuple(costs.shape[costs.dim() - len(event) :]) != tuple(event):
            shape = ", ".join(["...", *map(str, event)])
            raise ValueError(f"{self.name}: argument 'costs' must have shape [{shape}], got {tuple(costs.shape)}")
        if isinstance(oracle, Oracle):
            oracle._checked(costs)  # the costs as given: those that a rule makes of them are clamped to the domain
        generator = _checks.generator(self.name, generator, costs.device)
        return self._differentiable(oracle, costs, generator)

    def _differentiable(self, oracle: Oracle, costs: Tensor, generator: torch.Generator | None) -> Tensor:
        """The solutions, with this rule's gradient; the arguments are checked."""
        raise NotImplementedError


def solve_invented(oracle: Oracle, costs: Tensor, *, remember: bool = False) -> Tensor:
    """Solves for costs that a rule made up: projected onto the oracle's `cost_domain` first.

    Args:
        oracle: what to minimise over.
        costs: `[..., *cost_shape]`, finite.
        remember: whether on_failure="previous" is to fall back on these solutions in later calls, as it should where
            they are what the rule returns; not where they only serve a gradient.
    """
    before = getattr(oracle, "_previous", None)
    solutions = oracle.solve(costs.clamp(min=0.0) if oracle.cost_domain == "nonnegative" else costs)
    if not remember and isinstance(oracle, Oracle):
        oracle._previous = before
    return solutions


def computable(x: Tensor) -> Tensor:
    """x in the dtype that rules compute in: float32 for half precision, where moved costs would overflow."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def dims(oracle: Oracle) -> tuple[int, ...]:
    """The dimensions of one row's costs, as negative indices."""
    return tuple(range(-len(oracle.cost_shape), 0))


def over_row(x: Tensor, event: tuple[int, ...], how: str) -> Tensor:
    """Reduces the event dimensions (kept with size 1): "all", "sum", "norm", or "largest" (absolute value)."""
    if how == "largest":
        empty = any(x.shape[dim] == 0 for dim in event)
        return over_row(x, event, "sum") if empty else (x.abs().amax(event, keepdim=True) if event else x.abs())
    if not event:  # costs that are a single number a row
        return x.abs() if how == "norm" else x
    if how == "norm":
        return torch.linalg.vector_norm(x, dim=event, keepdim=True)
    return x.all(event, keepdim=True) if how == "all" else x.sum(event, keepdim=True)


class Incoming:
    """An incoming gradient, row by row: what may be solved with, and what must become of the result.

    Attributes:
        gradient: the gradient with 0 in the rows that have no solution or whose gradient is not finite.
        active: `[..., 1, ..., 1]`, the rows that gradient flows through.
    """

    def __init__(self, gradient: Tensor, solved: Tensor, event: tuple[int, ...]) -> None:
        """Args: the gradient; solved `[..., 1, ..., 1]`, the rows that have a solution; the event dimensions."""
        gradient = computable(gradient)
        finite = over_row(gradient.isfinite(), event, "all")
        self.gradient = torch.where(finite & solved, gradient, 0.0)
        self.active = over_row((self.gradient == 0), event, "all").logical_not()
        self._spoilt = solved & ~finite

    def passed(self, result: Tensor, dtype: torch.dtype) -> Tensor:
        """The result where gradient flows (0 where its solves failed), 0 elsewhere, NaN where NaN came in."""
        result = torch.where(self.active & ~result.isnan(), result, 0.0)
        return torch.where(self._spoilt, torch.nan, result).to(dtype)
