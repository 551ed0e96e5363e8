"""Losses over a pool of solutions: no solve is needed but to let the pool grow."""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor

from .. import _checks
from ._loss import DecisionLoss, checked_costs, eager_or_raise, finite_or_raise, on_host

CAPACITY = 10_000  # solutions in a pool of one's own; the oldest go first


class GrowingPool:
    """Distinct solutions in the order in which they came; the pool of losses that are given an oracle alone."""

    def __init__(self, cost_shape: tuple[int, ...]) -> None:
        self.cost_shape = cost_shape
        self._rows: OrderedDict[bytes, Tensor] = OrderedDict()
        self._stacked: Tensor | None = None

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def solutions(self) -> Tensor:
        """`[P, *cost_shape]`, float64 on the host."""
        if self._stacked is None:
            rows = list(self._rows.values())
            self._stacked = torch.stack(rows) if rows else torch.zeros(0, *self.cost_shape, dtype=torch.float64)
        return self._stacked

    def add(self, solutions: Tensor) -> None:
        """Remembers solutions `[..., *cost_shape]`; those with NaN are left out."""
        rows = solutions.detach().to(device="cpu", dtype=torch.float64)
        rows = rows.reshape(solutions.numel() // max(1, math.prod(self.cost_shape)), *self.cost_shape)
        for row in rows:
            key = row.round(decimals=9).add(0.0).numpy().tobytes()  # solvers' rounding errors; add turns -0 into 0
            if key not in self._rows and not bool(row.isnan().any()):
                self._rows[key], self._stacked = row.clone(), None
        while len(self._rows) > CAPACITY:
            self._rows.popitem(last=False)


class PoolLoss(DecisionLoss):
    """Base of the losses over a pool.

    Args:
        source: the solutions to compare with: a tensor `[P, *cost_shape]`, a pool with `add`, `solutions` and `len`,
            or an oracle, whose solutions then make a pool that grows while training.
        pool: with an oracle, the pool to let grow; a tensor is what it begins with.
        solve_ratio: with an oracle, the share of the batches for which it solves, in [0, 1].
        reduction: "mean", "sum", or "none" (one loss a row).
    """

    def __init__(self, source: Any, *, pool: Any = None, solve_ratio: float = 1.0, reduction: str = "mean") -> None:
        super().__init__(reduction=reduction)
        name = self.name
        self.solve_ratio = _checks.number(name, "solve_ratio", solve_ratio, minimum=0.0, maximum=1.0)
        self.oracle = source if hasattr(source, "solve_batch") else None
        if self.oracle is None:
            if pool is not None:
                raise TypeError(f"{name}: argument 'pool' goes with an oracle, got a pool twice; pass one of them")
            self.pool = self._as_pool("source", source)
        elif pool is None or isinstance(pool, Tensor):
            self.pool = GrowingPool(tuple(source.cost_shape))
            if pool is not None:
                self.pool.add(self._as_pool("pool", pool).solutions)
        else:
            self.pool = self._as_pool("pool", pool)

    def _as_pool(self, argument: str, pool: Any) -> Any:
        if isinstance(pool, Tensor):
            if pool.dim() == 0 or pool.is_complex():
                raise ValueError(
                    f"{self.name}: argument '{argument}' must be a real tensor [P, *cost_shape], "
                    f"got shape {tuple(pool.shape)} of {pool.dtype}"
                )
            finite_or_raise(self.name, argument, pool)
            return _FixedPool(pool)
        if not hasattr(pool, "solutions") or not hasattr(pool, "add"):
            raise TypeError(
                f"{self.name}: argument '{argument}' must be a tensor [P, *cost_shape], a pool of solutions or an "
                f"oracle, got {type(pool).__name__}"
            )
        return pool

    @property
    def _event(self) -> tuple[int, ...]:
        return tuple(self.oracle.cost_shape if self.oracle is not None else self.pool.solutions.shape[1:])

    def _costs(self, name: str, value: object) -> Tensor:
        return checked_costs(self.name, name, value, self._event)

    def _grown(self, predicted: Tensor, *known: Tensor) -> Tensor:
        """The pool as `[P, n]` like the costs; in training, an oracle's pool first takes in what is new."""
        return self._pool_rows(predicted) if self.oracle is None else self._grown_by_oracle(predicted, *known)

    @on_host
    def _grown_by_oracle(self, predicted: Tensor, *known: Tensor) -> Tensor:
        eager_or_raise(self.name)
        oracle: Any = self.oracle
        if self.training:
            for solutions in known:
                self.pool.add(solutions)
            if self.solve_ratio > 0 and (self.solve_ratio == 1 or torch.rand(()).item() < self.solve_ratio):
                costs = predicted.detach()
                self.pool.add(oracle.solve(costs.clamp(min=0.0) if oracle.cost_domain == "nonnegative" else costs))
        return self._pool_rows(predicted)

    def _pool_rows(self, predicted: Tensor) -> Tensor:
        if not len(self.pool.solutions):
            raise ValueError(f"{self.name}: the pool must hold a solution, got an empty one; call its method add")
        return self.pool.solutions.detach().to(predicted).reshape(-1, math.prod(self._event))

    def _rows(self, costs: Tensor) -> Tensor:
        """`[..., *cost_shape]` -> `[..., n]`."""
        return costs.reshape(*costs.shape[: costs.dim() - len(self._event)], math.prod(self._event))

    def extra_repr(self) -> str:
        """The settings, as repr shows them."""
        source = (
            "" if self.oracle is None else f"oracle={type(self.oracle).__name__}, solve_ratio={self.solve_ratio:g}, "
        )
        return f"{source}pool={len(self.pool.solutions)}, reduction={self.reduction!r}"


class _FixedPool:
    """A tensor as a pool."""

    def __init__(self, solutions: Tensor) -> None:
        self.solutions = solutions.detach()

    def __len__(self) -> int:
        return len(self.solutions)

    def add(self, solutions: Tensor) -> None:
        """A tensor does not grow."""
