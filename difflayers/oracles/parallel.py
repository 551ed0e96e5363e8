"""The rows of a batch on several workers: threads, processes of our own, or any `concurrent.futures.Executor`.

Work travels in chunks of rows, arrays as a whole and never row by row. The oracle travels pickled and without the
parameters that differ between rows (those go with the rows), once to each worker, where it is kept under the hash of
its pickle, so that solver models that it has built survive until the next batch.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import pickle
import threading
from collections import OrderedDict
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from .result import Row, Status

if TYPE_CHECKING:
    from .base import Instance, Oracle

CHUNKS_EACH = 4  # of a worker: few, since some oracles solve rows together; more than one, since rows take unequal time
KEPT = 8  # oracles that a worker remembers
UNKNOWN_WORKERS = 8  # of an executor that does not say how many it has

_pools: dict[tuple[int, str, int], Any] = {}  # by process (a fork must not use its parent's), kind and number


class Chunk(NamedTuple):
    """Some rows to solve, in arrays."""

    first: int
    costs: np.ndarray
    parameters: dict[str, np.ndarray]
    time_limit: float | None

    def __len__(self) -> int:
        return len(self.costs)

    def split(self) -> list[Chunk]:
        """Its rows as chunks of one."""
        parts = [slice(i, i + 1) for i in range(len(self.costs))]
        return [
            Chunk(
                self.first + part.start,
                self.costs[part],
                {name: value[part] for name, value in self.parameters.items()},
                self.time_limit,
            )
            for part in parts
        ]


class Solved(NamedTuple):
    """Rows in arrays, which are quicker to send than one by one."""

    present: np.ndarray
    solutions: np.ndarray
    status: np.ndarray
    bound: np.ndarray
    reasons: dict[int, str]

    def rows(self) -> list[Row]:
        """As rows again."""
        solutions = iter(self.solutions)
        return [
            Row(next(solutions) if here else None, Status(status), bound, self.reasons.get(i, ""))
            for i, (here, status, bound) in enumerate(
                zip(self.present.tolist(), self.status.tolist(), self.bound.tolist(), strict=True)
            )
        ]


def run(oracle: Oracle, costs: np.ndarray, instances: list[Instance]) -> list[Row]:
    """Solves the rows on the oracle's workers.

    Args:
        oracle: its `workers` say where.
        costs: `[B, *cost_shape]`.
        instances: the parameters of each row.

    Returns:
        The rows, in order; FAILED with a reason where a worker died.
    """
    workers = oracle.workers
    if isinstance(workers, (int, str)):
        kind, count = _kind(oracle)
        key = (os.getpid(), kind, count)
        if kind == "threads":
            pool = _pools.setdefault(key, ThreadPoolExecutor(count, thread_name_prefix="difflayers"))
            return _on_threads(pool, count, oracle, costs, instances)
        if multiprocessing.current_process().daemon:  # may not start processes; its siblings are at work already
            return oracle._solve_rows(costs, instances, oracle.time_limit)
        from .processes import Processes

        identity, payload = pickled(oracle)
        return _pools.setdefault(key, Processes(count)).solve(
            identity, payload, _chunks(oracle, costs, instances, count)
        )
    count = getattr(workers, "_max_workers", UNKNOWN_WORKERS)
    if isinstance(workers, ThreadPoolExecutor):
        return _on_threads(workers, count, oracle, costs, instances)
    return _on_executor(workers, _chunks(oracle, costs, instances, count), oracle)


def _kind(oracle: Oracle) -> tuple[str, int]:
    """Threads or processes, and how many: as asked for, else what the solver's hold on the lock suggests."""
    if isinstance(oracle.workers, str):
        kind, _, count = oracle.workers.partition(":")
        if kind == "threads" and not oracle.thread_safe:
            raise ValueError(f"{oracle.name}: this oracle is not thread-safe, got workers={oracle.workers!r}")
        return kind, int(count)
    return "threads" if oracle.releases_gil and oracle.thread_safe else "processes", oracle.workers


def _on_threads(
    executor: ThreadPoolExecutor, count: int, oracle: Oracle, costs: np.ndarray, instances: list[Instance]
) -> list[Row]:
    step = _step(len(costs), count)
    futures = [
        executor.submit(oracle._solve_rows, costs[i : i + step], instances[i : i + step], oracle.time_limit)
        for i in range(0, len(costs), step)
    ]
    try:
        return [row for future in futures for row in future.result()]
    finally:
        _cancel(futures)


def _on_executor(executor: Executor, chunks: list[Chunk], oracle: Oracle) -> list[Row]:
    identity, payload = pickled(oracle)
    futures: list[Future | Exception] = []
    for chunk in chunks:
        try:
            futures.append(executor.submit(solve_pickled, identity, payload, chunk))
        except Exception as error:  # an executor whose worker died refuses what comes next
            futures.append(error)
    rows: list[Row] = []
    try:
        for chunk, future in zip(chunks, futures, strict=True):
            try:
                solved = future.result() if not isinstance(future, Exception) else future
            except Exception as error:  # the executor's, not the oracle's: those come back as results
                reason = f"its worker was lost, {type(error).__name__}: {error}"
                rows += [Row(None, Status.FAILED, reason=reason)] * len(chunk)
                continue
            if isinstance(solved, Exception):
                if solved is future:
                    reason = f"the executor refused it, {type(solved).__name__}: {solved}"
                    rows += [Row(None, Status.FAILED, reason=reason)] * len(chunk)
                    continue
                raise solved
            rows += solved.rows()
    finally:
        _cancel(futures)
    return rows


def _cancel(futures: list[Any]) -> None:
    """Takes back what has not begun: after Ctrl-C or an error nobody waits for it."""
    for future in futures:
        if not isinstance(future, Exception):
            future.cancel()


def _step(size: int, workers: int) -> int:
    return max(1, -(-size // (CHUNKS_EACH * max(1, workers))))


def _chunks(oracle: Oracle, costs: np.ndarray, instances: list[Instance], workers: int) -> list[Chunk]:
    step = _step(len(costs), workers)
    chunks = []
    for first in range(0, len(costs), step):
        some = instances[first : first + step]
        parameters = {name: np.stack([instance[name] for instance in some]) for name in some[0]}
        chunks.append(Chunk(first, costs[first : first + step], parameters, oracle.time_limit))
    return chunks


def pickled(oracle: Oracle) -> tuple[bytes, bytes]:
    """The hash of the oracle's pickle, and the pickle, without what goes along with the rows."""
    state = oracle.__getstate__()
    state["parameters"] = {}
    try:
        payload = pickle.dumps((type(oracle), state), protocol=pickle.HIGHEST_PROTOCOL)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise TypeError(
            f"{oracle.name}: an oracle that is solved in other processes must be picklable, got {error}; define its "
            f"functions in a module, or pass workers=concurrent.futures.ThreadPoolExecutor(...)"
        ) from error
    return hashlib.blake2b(payload, digest_size=16).digest(), payload


class Kept(OrderedDict[bytes, Any]):
    """The last few oracles that were used."""

    def use(self, identity: bytes, make: Any) -> Any:
        """The one of this identity, made when it is not there."""
        if identity not in self:
            self[identity] = make()
            if len(self) > KEPT:
                self.popitem(last=False)
        self.move_to_end(identity)
        return self[identity]


def unpickled(payload: bytes) -> Oracle:
    """What `pickled` packed."""
    kind, state = pickle.loads(payload)
    oracle = kind.__new__(kind)
    oracle.__dict__.update(state)
    return oracle


_local = threading.local()


def solve_pickled(identity: bytes, payload: bytes, chunk: Chunk) -> Solved | Exception:
    """Solves a chunk in a worker of any executor; oracles are kept thread by thread."""
    if not hasattr(_local, "kept"):
        _local.kept = Kept()
    try:
        return solve_chunk(_local.kept.use(identity, lambda: unpickled(payload)), chunk)
    except Exception as error:
        return error


def solve_chunk(oracle: Oracle, chunk: Chunk) -> Solved:
    """Solves the rows of a chunk."""
    instances: list[Instance] = [
        {name: value[i] for name, value in chunk.parameters.items()} for i in range(len(chunk))
    ]
    rows = oracle._solve_rows(chunk.costs, instances, chunk.time_limit)
    present = [row.solution for row in rows if row.solution is not None]
    return Solved(
        np.array([row.solution is not None for row in rows]),
        np.stack(present) if present else np.zeros((0, *chunk.costs.shape[1:])),
        np.array([int(row.status) for row in rows]),
        np.array([row.bound for row in rows]),
        {i: row.reason for i, row in enumerate(rows) if row.reason},
    )
