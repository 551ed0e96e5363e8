"""What decision-focused losses share: checks, reduction, true solutions that are found once and remembered."""

from __future__ import annotations

import functools
import math
import sys
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from .. import _checks
from ..errors import UnsupportedOperationError
from ..oracles import Oracle, Status
from ..oracles.base import _key

REDUCTIONS = ("mean", "sum", "none")
MEMORY = 100_000  # remembered true solutions of one loss; at 40 float64 costs each, about 60 MB


F = TypeVar("F", bound=Callable[..., Any])


def on_host(function: F) -> F:
    """Keeps torch.compile from tracing into solvers: it breaks the graph here, or says so with fullgraph=True."""
    disabled: Any = None

    @functools.wraps(function)
    def call(*arguments: Any, **settings: Any) -> Any:
        nonlocal disabled
        if "torch._dynamo" not in sys.modules:  # importing it takes a second, and without it nothing is compiled
            return function(*arguments, **settings)
        if disabled is None:
            disabled = torch.compiler.disable(function, reason="difflayers: a solver runs on the host")
        return disabled(*arguments, **settings)

    return call  # pyright: ignore[reportReturnType]


def checked_oracle(function: str, oracle: object) -> Any:
    """An oracle, unchanged."""
    if not hasattr(oracle, "solve_batch") or not hasattr(oracle, "cost_shape"):
        raise TypeError(
            f"{function}: argument 'oracle' must be an oracle, got {type(oracle).__name__}; "
            f"wrap a function with difflayers.oracles.FromCallable"
        )
    return oracle


def checked_costs(function: str, name: str, value: object, event: tuple[int, ...]) -> Tensor:
    """Finite costs `[..., *event]` in a dtype to compute in: float16 and bfloat16 become float32."""
    costs = _checks.tensor(function, name, value)
    shape = tuple(costs.shape)
    if len(shape) < len(event) or shape[len(shape) - len(event) :] != event:
        raise ValueError(f"{function}: argument '{name}' must have shape [..., {_listed(event)}], got {shape}")
    finite_or_raise(function, name, costs)
    return costs.float() if costs.dtype in (torch.float16, torch.bfloat16) else costs


def companion(function: str, name: str, value: object, like: Tensor, shape: torch.Size | None = None) -> Tensor:
    """Data that belongs to costs, of their shape (or the one given), dtype and device; no gradient flows to it."""
    if not isinstance(value, Tensor):
        raise TypeError(
            f"{function}: argument '{name}' must be a torch.Tensor, got {type(value).__name__}; "
            f"convert it with torch.as_tensor({name})"
        )
    if value.is_complex():
        raise TypeError(f"{function}: argument '{name}' must be real, got {value.dtype}; pass {name}.real")
    shape = like.shape if shape is None else shape
    if value.shape != shape:
        raise ValueError(
            f"{function}: argument '{name}' must have shape {tuple(shape)}, as the predicted costs say, "
            f"got {tuple(value.shape)}; reshape or expand it"
        )
    value = value.detach().to(device=like.device, dtype=like.dtype)
    finite_or_raise(function, name, value)
    return value


def eager_or_raise(function: str) -> None:
    """Refuses to be traced: what comes next happens on the host."""
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        raise UnsupportedOperationError(
            f"{function}: a solver runs on the host and cannot be traced by torch.compile, torch.export or "
            f"torch.func; call it outside of them"
        )


def finite_or_raise(function: str, name: str, value: Tensor) -> None:
    """Refuses NaN and infinities, where contents are checked."""
    if _checks.contents_are_checked(value) and not bool(value.detach().isfinite().all()):
        raise ValueError(
            f"{function}: argument '{name}' must be finite, got NaN or infinity; "
            f"look for where {name} first is not with torch.isfinite"
        )


def dot(costs: Tensor, solutions: Tensor, event: int) -> Tensor:
    """The sum over the last `event` dimensions of costs times solutions."""
    product = costs * solutions
    size = math.prod(product.shape[product.dim() - event :])
    return product.reshape(*product.shape[: product.dim() - event], size).sum(-1)


def mask_rows(loss: Tensor, solutions: Tensor, event: int) -> Tensor:
    """NaN, with no gradient, where an oracle with on_failure="nan" found no solution."""
    size = math.prod(solutions.shape[solutions.dim() - event :])
    lost = solutions.isnan().reshape(*loss.shape, size).any(-1)
    return torch.where(lost, torch.nan, loss)


class DecisionLoss(nn.Module):
    """Base of the losses: one loss per row, then the reduction, in the dtype of the predictions."""

    def __init__(self, *, reduction: str = "mean") -> None:
        super().__init__()
        self.reduction = _checks.choice(self.name, "reduction", reduction, REDUCTIONS)

    @property
    def name(self) -> str:
        """In messages."""
        return f"difflayers.losses.{type(self).__name__}"

    def _reduce(self, rows: Tensor, dtype: torch.dtype) -> Tensor:
        if self.reduction == "mean":
            rows = rows.mean()
        elif self.reduction == "sum":
            rows = rows.sum()
        return rows.to(dtype)


class OracleLoss(DecisionLoss):
    """Base of the losses that solve with an oracle."""

    def __init__(self, oracle: Oracle, *, reduction: str = "mean") -> None:
        super().__init__(reduction=reduction)
        self.oracle = checked_oracle(self.name, oracle)
        self._known: OrderedDict[bytes, np.ndarray] = OrderedDict()

    @property
    def _event(self) -> int:
        return len(self.oracle.cost_shape)

    def _costs(self, name: str, value: object) -> Tensor:
        eager_or_raise(self.name)
        return checked_costs(self.name, name, value, tuple(self.oracle.cost_shape))

    def _solve(self, costs: Tensor) -> Tensor:
        """Solves for costs that the loss made up, moved into the oracle's domain."""
        costs = costs.detach()
        return self.oracle.solve(costs.clamp(min=0.0) if self.oracle.cost_domain == "nonnegative" else costs)

    def _solve_or(self, costs: Tensor, known: Tensor) -> Tensor:
        """The better of the oracle's solution and a known one: heuristics and clamped costs may miss the latter."""
        found = self._solve(costs)
        gap = dot(costs.detach(), found - known, self._event)
        return torch.where((gap > 0).reshape(*gap.shape, *[1] * self._event), known, found)

    def _true_solutions(self, costs: Tensor) -> Tensor:
        """The oracle's solutions for true costs; each row is solved once in the life of the loss."""
        event = tuple(self.oracle.cost_shape)
        lead = costs.shape[: costs.dim() - len(event)]
        instances = self.oracle._instances(lead) if isinstance(self.oracle, Oracle) else [{}] * math.prod(lead)
        rows = costs.detach().to(device="cpu", dtype=torch.float64).reshape(len(instances), *event)
        keys = [_key(row, instance) for row, instance in zip(rows.numpy(), instances, strict=True)]
        if any(key not in self._known for key in keys):
            result = self.oracle.solve_batch(costs.detach())
            solved = result.solutions.to(device="cpu", dtype=torch.float64).reshape(rows.shape).numpy()
            solutions, usable = solved.copy(), (result.status <= Status.FEASIBLE).flatten().tolist()
            for key, solution, good in zip(keys, solutions, usable, strict=True):
                if good:
                    self._known[key] = solution
        else:
            solutions = np.stack([self._known[key] for key in keys]) if keys else rows.numpy()
        while len(self._known) > MEMORY:
            self._known.popitem(last=False)
        return torch.from_numpy(solutions).to(costs).reshape(costs.shape)

    def extra_repr(self) -> str:
        """The settings, as repr shows them."""
        return f"oracle={type(self.oracle).__name__}{tuple(self.oracle.cost_shape)}, reduction={self.reduction!r}"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_known": OrderedDict()}  # a copy solves anew; the memory may be large


def _listed(event: tuple[int, ...]) -> str:
    return ", ".join(map(str, event))
