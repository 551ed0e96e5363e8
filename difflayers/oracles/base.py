"""The base of every oracle: checks, batches, failures, memory of solved costs. A subclass solves one row."""

from __future__ import annotations

import copy
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import _checks
from ..errors import InfeasibleError, SolverError, SolverTimeout, UnsupportedOperationError
from ._memory import Memory
from .result import OracleResult, Row, Status

ON_FAILURE = ("raise", "nan", "previous")
Instance = Mapping[str, np.ndarray]  # the parameters of one row


class Oracle(ABC):
    """Base of the oracles: minimises a linear cost over a feasible set, for batches of costs.

    A subclass defines `cost_shape` and `_solve_row`, or `_solve_rows` for several rows at once; and where it can,
    `_is_feasible`: a check, without the solver, of every solution before it is returned. It keeps plain data (arrays,
    numbers), so that it can be pickled to other processes, and solver models in a `PerThread`, built at first use by
    every thread.

    Attributes:
        name: in messages, "difflayers.oracles.X".
        cost_domain: "any" or "nonnegative"; gradient rules project the costs that they invent onto it.
        exact: whether solutions are optimal (when the time suffices).
        releases_gil: whether solving lets other threads run; decides between threads and processes.
        parameter_shapes: the per-instance parameters that `with_parameters` accepts, with their event shapes.
    """

    name: str = "difflayers.oracles.Oracle"
    cost_domain: str = "any"
    exact: bool = True
    thread_safe: bool = True
    releases_gil: bool = False

    def __init__(
        self, *, on_failure: str = "raise", time_limit: float | None = None, workers: Any = None, cache: int = 0
    ) -> None:
        """Remembers the settings that all oracles share.

        Args:
            on_failure: "raise" (after the whole batch is solved; the exception carries rows, status, solutions), "nan"
                (such rows are NaN), or "previous" (the last solution found for the same place in the batch; NaN
                when there is none).
            time_limit: seconds for one row; None = no limit.
            workers: None (here), a number of workers (threads where solving releases the interpreter's lock, else
                processes), "threads:N" or "processes:N" to choose, or any `concurrent.futures.Executor`.
            cache: how many solved rows to remember (costs are compared bit by bit); 0 = none.
        """
        kind = type(self)
        if kind._solve_row is Oracle._solve_row and kind._solve_rows is Oracle._solve_rows:
            raise TypeError(f"{self.name}: {kind.__name__} must define _solve_row or _solve_rows, got neither")
        self.on_failure = _checks.choice(self.name, "on_failure", on_failure, ON_FAILURE)
        self.time_limit = None if time_limit is None else _checks.number(self.name, "time_limit", time_limit, above=0.0)
        self.workers = _checked_workers(self.name, workers)
        self.cache = _checks.integer(self.name, "cache", cache, minimum=0)
        self.parameters: dict[str, np.ndarray] = {}  # those that differ between the rows, batch dimensions first
        self._memory = Memory()
        self._previous: Tensor | None = None

    # --- what a subclass provides ---

    @property
    @abstractmethod
    def cost_shape(self) -> tuple[int, ...]:
        """The shape of one row's costs and solution."""

    @property
    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        """The event shapes of the parameters that may differ between rows."""
        return {}

    def _solve_row(self, cost: np.ndarray, instance: Instance, deadline: float | None) -> Row:
        """Solves one row; not needed where `_solve_rows` is defined.

        Args:
            cost: float64, finite, of cost_shape.
            instance: the parameters that differ between rows; others are attributes of the oracle.
            deadline: of `time.monotonic()`, or None.
        """
        raise NotImplementedError

    def _solve_rows(self, costs: np.ndarray, instances: list[Instance], time_limit: float | None) -> list[Row]:
        """Solves several rows; a subclass may do better than one after another. Never raises for one row's sake."""
        rows = []
        for cost, instance in zip(costs, instances, strict=True):
            deadline = None if time_limit is None else time.monotonic() + time_limit
            try:
                row = self._solve_row(cost, instance, deadline)
                if row.solution is not None and not self._is_feasible(row.solution, instance):
                    row = Row(None, Status.FAILED, reason="the solver returned an infeasible solution")
            except ImportError:  # a solver that is not installed is no row's fault
                raise
            except Exception as error:  # one bad row must not lose the others
                row = Row(None, Status.FAILED, reason=f"{type(error).__name__}: {error}")
            rows.append(row)
        return rows

    def _is_feasible(self, solution: np.ndarray, instance: Instance) -> bool:
        """A cheap check of a solution before it is returned."""
        return bool(np.isfinite(solution).all())

    def _check_costs(self, costs: Tensor) -> None:  # noqa: B027
        """Further checks of a whole batch of the user's costs; raises ValueError."""

    # --- what users call ---

    def solve(self, costs: Tensor) -> Tensor:
        """The solutions `[..., *cost_shape]` that minimise costs `[..., *cost_shape]`; see `solve_batch`."""
        return self.solve_batch(costs).solutions

    def solve_batch(self, costs: Tensor) -> OracleResult:
        """Solves every row of a batch.

        Args:
            costs: `[..., *cost_shape]`, any floating dtype and device; computed in float64 on the host.

        Returns:
            `OracleResult`, on the device and in the dtype of the costs; it has no gradient.

        Raises:
            TypeError: costs is not a floating-point tensor.
            ValueError: NaN or infinite costs, costs outside `cost_domain`, a shape that does not fit.
            InfeasibleError, SolverTimeout, SolverError: with on_failure="raise", when rows have no solution.
            UnsupportedOperationError: under torch.func.vmap, torch.compile(fullgraph=True) and torch.export.
        """
        costs = self._checked(costs)
        lead = costs.shape[: costs.dim() - len(self.cost_shape)]
        size = math.prod(lead)
        rows = costs.detach().to(device="cpu", dtype=torch.float64).reshape(size, *self.cost_shape).numpy()
        return self._collect(self._solve_all(rows, self._instances(lead)), rows, costs, lead)

    def with_parameters(self, **parameters: Tensor | np.ndarray) -> Any:
        """The same oracle for rows that differ in their feasible sets.

        Args:
            parameters: by name, those of `parameter_shapes`; `[..., *event]`, whose batch dimensions broadcast with
                those of the costs.

        Returns:
            A copy; this oracle stays as it is.
        """
        new = copy.copy(self)
        new.workers = self.workers  # which pickles, and so copies, leave out
        new.parameters = dict(self.parameters)
        new._memory, new._previous = Memory(), None
        for name, value in parameters.items():
            shapes = self.parameter_shapes
            if name not in shapes:
                listed = ", ".join(map(repr, shapes)) or "none"
                raise ValueError(f"{self.name}: with_parameters takes {listed}, got {name!r}")
            array = np.asarray(value.detach().cpu() if isinstance(value, Tensor) else value)
            event = shapes[name]
            if array.shape[array.ndim - len(event) :] != event or array.ndim < len(event):
                raise ValueError(f"{self.name}: parameter {name!r} must have shape [..., *{event}], got {array.shape}")
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                raise ValueError(f"{self.name}: parameter {name!r} must be finite, got NaN or infinity")
            new.parameters[name] = array
        new._check_parameters()
        return new

    def _check_parameters(self) -> None:  # noqa: B027
        """Further checks of self.parameters; raises ValueError."""

    # --- how it is done ---

    def _checked(self, costs: object) -> Tensor:
        if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
            raise UnsupportedOperationError(
                f"{self.name}: a solver runs on the host and cannot be traced by torch.compile, torch.export or "
                f"torch.func; call it outside of them"
            )
        costs = _checks.tensor(self.name, "costs", costs)
        shape, event = tuple(costs.shape), self.cost_shape
        if len(shape) < len(event) or shape[len(shape) - len(event) :] != event:
            raise ValueError(f"{self.name}: argument 'costs' must have shape [..., *{event}], got {shape}")
        if not _checks.all_finite(costs):
            bad = (~costs.detach().isfinite()).reshape(-1, math.prod(event)).any(1).nonzero().flatten().tolist()
            raise ValueError(f"{self.name}: argument 'costs' must be finite, got NaN or infinity in rows {_some(bad)}")
        if self.cost_domain == "nonnegative" and bool((costs.detach() < 0).any()):
            bad = (costs.detach() < 0).reshape(-1, math.prod(event)).any(1).nonzero().flatten().tolist()
            raise ValueError(
                f"{self.name}: argument 'costs' must not be negative, got {costs.detach().min().item():g} "
                f"(rows {_some(bad)})"
            )
        self._check_costs(costs.detach())
        return costs

    def _instances(self, lead: torch.Size) -> list[Instance]:
        size = math.prod(lead)
        if not self.parameters:
            return [{}] * size
        spread = {}
        for name, value in self.parameters.items():
            event = self.parameter_shapes[name]
            try:
                spread[name] = np.broadcast_to(value, (*lead, *event)).reshape(size, *event)
            except ValueError:
                own = value.shape[: value.ndim - len(event)]
                raise ValueError(
                    f"{self.name}: the batch dimensions of parameter {name!r}, {own}, must broadcast to those of the "
                    f"costs, {tuple(lead)}"
                ) from None
        return [{name: value[i] for name, value in spread.items()} for i in range(size)]

    def _solve_all(self, costs: np.ndarray, instances: list[Instance]) -> list[Row]:
        """Every row, from memory where it was solved before."""
        if self.cache == 0:
            return self._dispatch(costs, instances)
        keys = [_key(cost, instance) for cost, instance in zip(costs, instances, strict=True)]
        rows = self._memory.known(keys)
        new = {key: i for i, key in enumerate(keys) if key not in rows}
        if new:
            which = list(new.values())
            fresh = dict(zip(new, self._dispatch(costs[which], [instances[i] for i in which]), strict=True))
            self._memory.add(fresh, self.cache)
            rows.update(fresh)
        return [rows[key] for key in keys]

    def _dispatch(self, costs: np.ndarray, instances: list[Instance]) -> list[Row]:
        """Here, or on the workers (see parallel.py)."""
        if len(costs) == 0:
            return []
        alone = len(costs) == 1 and not str(self.workers).startswith("processes:")  # which may be there to crash
        if self.workers is None or alone:
            return self._solve_rows(costs, instances, self.time_limit)
        from .parallel import run

        return run(self, costs, instances)

    def _collect(self, rows: list[Row], costs: np.ndarray, given: Tensor, lead: torch.Size) -> OracleResult:
        size, event = len(rows), self.cost_shape
        solutions = np.full((size, *event), np.nan)
        for i, row in enumerate(rows):
            if row.solution is not None:
                solutions[i] = row.solution
        axes = tuple(range(1, 1 + len(event)))
        objective = (costs * solutions).sum(axis=axes)
        status = np.array([row.status for row in rows], dtype=np.int64).reshape(size)
        bound = np.array([row.bound for row in rows], dtype=np.float64).reshape(size)
        bound = np.where(status == Status.OPTIMAL, objective, bound)
        like = {"device": given.device, "dtype": given.dtype}
        result = torch.from_numpy(solutions).to(**like).reshape(*lead, *event)
        failed = np.flatnonzero(status > Status.FEASIBLE).tolist()
        before = self._previous if self.on_failure == "previous" else None
        if failed and before is not None and before.shape == result.shape:
            flat = result.reshape(size, -1)
            flat[failed] = before.to(**like).reshape(size, -1)[failed]
            result = flat.reshape(result.shape)
        if self.on_failure == "previous":
            self._previous = result.clone()
        states = torch.from_numpy(status).to(given.device).reshape(lead)
        if failed and self.on_failure == "raise":
            raise self._failure(failed, rows, states, result)
        return OracleResult(
            result,
            torch.from_numpy(objective).to(**like).reshape(lead),
            states,
            torch.from_numpy(bound).to(**like).reshape(lead),
        )

    def _failure(self, failed: list[int], rows: list[Row], status: Tensor, solutions: Tensor) -> SolverError:
        first = rows[failed[0]]
        kinds = {rows[i].status for i in failed}
        kind = SolverTimeout if Status.TIMEOUT in kinds else InfeasibleError
        if Status.FAILED in kinds:
            kind = SolverError
        reason = f" ({first.reason})" if first.reason else ""
        message = (
            f"{self.name}: {len(failed)} of {len(rows)} rows have no solution: rows {_some(failed)}, the first is "
            f"{first.status.name}{reason}; on_failure='nan' goes on without them"
        )
        return kind(message, failed, status, solutions)

    def __getstate__(self) -> dict[str, Any]:
        state = dict(self.__dict__)
        state["_memory"], state["_previous"], state["workers"] = Memory(), None, None
        return state


def _checked_workers(function: str, workers: Any) -> Any:
    if workers is None or callable(getattr(workers, "submit", None)):
        return workers
    if isinstance(workers, str):
        kind, _, count = workers.partition(":")
        if kind not in ("threads", "processes") or not (count.isascii() and count.isdigit() and int(count) > 0):
            raise ValueError(
                f"{function}: argument 'workers' as a string must be 'threads:N' or 'processes:N' with N at least 1, "
                f"got {workers!r}"
            )
        return workers
    if isinstance(workers, bool) or not isinstance(workers, int):
        raise TypeError(
            f"{function}: argument 'workers' must be None, an integer, 'threads:N', 'processes:N' or a "
            f"concurrent.futures.Executor, got {type(workers).__name__}"
        )
    return _checks.integer(function, "workers", workers, minimum=1)


def _some(indices: list[int]) -> str:
    shown = ", ".join(map(str, indices[:5]))
    return f"{shown}, ... ({len(indices)} in all)" if len(indices) > 5 else shown


def instance_key(instance: Instance) -> bytes:
    """What tells the parameters of one row from those of another."""
    return b"|".join(name.encode() + np.ascontiguousarray(value).tobytes() for name, value in instance.items())


def _key(cost: np.ndarray, instance: Instance) -> bytes:
    return np.ascontiguousarray(cost).tobytes() + b"|" + instance_key(instance)
