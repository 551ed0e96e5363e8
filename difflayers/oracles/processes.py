"""A pool of processes that outlives its workers: whoever dies is replaced, and only the row at fault is lost."""

from __future__ import annotations

import multiprocessing
import signal
import threading
import time
from collections import deque
from multiprocessing import connection
from typing import Any

from .parallel import Chunk, Kept, solve_chunk, unpickled
from .result import Row, Status

DEATHS = 8  # one after another, with nothing solved in between, before what is left is given up
PATIENCE = 10.0  # seconds beyond twice its time limits after which a worker that does not answer is killed


def serve(pipe: Any) -> None:
    """What a worker does: solves chunks until its pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole group; the parent decides
    import torch

    torch.set_num_threads(1)
    kept = Kept()
    pipe.send("ready")
    while True:
        try:
            identity, payload, chunk = pipe.recv()
        except (EOFError, OSError):
            return
        try:
            answer: Any = solve_chunk(kept.use(identity, lambda payload=payload: unpickled(payload)), chunk)
        except Exception as error:
            answer = error
        try:
            pipe.send(answer)
        except (BrokenPipeError, OSError):
            return
        except Exception as error:  # an exception of the oracle that cannot be pickled
            pipe.send(RuntimeError(f"{type(answer).__name__}: {answer} ({error})"))


class Worker:
    """One process, as the parent sees it."""

    def __init__(self, context: Any) -> None:
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs,), daemon=True, name="difflayers-solver")
        self.process.start()
        theirs.close()
        self.ready, self.chunk, self.kept = False, None, Kept()  # kept mirrors what the process keeps
        self.deadline: float | None = None

    def give(self, identity: bytes, payload: bytes, chunk: Chunk) -> None:
        """Sends a chunk, and the oracle where the worker does not have it."""
        known = identity in self.kept
        self.kept.use(identity, lambda: True)
        self.chunk, limit = chunk, chunk.time_limit
        self.deadline = None if limit is None else time.monotonic() + 2 * limit * len(chunk) + PATIENCE
        self.pipe.send((identity, b"" if known else payload, chunk))

    def kill(self) -> int | None:
        """Ends the process; returns its exit code."""
        self.pipe.close()
        self.process.join(0.2)  # one that died by itself has its own exit code
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        return self.process.exitcode


class Processes:
    """A number of workers, started when first needed with the method "spawn", which is safe beside threads."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._workers: list[Worker] = []
        self._context = multiprocessing.get_context("spawn")
        self._lock = threading.Lock()

    def solve(self, identity: bytes, payload: bytes, chunks: list[Chunk]) -> list[Row]:
        """Solves all chunks; a row whose worker dies is FAILED, one that has to be stopped is TIMEOUT."""
        with self._lock:
            try:
                return self._solve(identity, payload, deque(chunks))
            finally:  # after Ctrl-C or an oracle's exception some are still at work for nobody
                for worker in [worker for worker in self._workers if worker.chunk is not None]:
                    self._remove(worker)

    def _solve(self, identity: bytes, payload: bytes, waiting: deque[Chunk]) -> list[Row]:
        rows: dict[int, Row] = {}
        self._deaths = 0
        while waiting or any(worker.chunk is not None for worker in self._workers):
            busy = sum(worker.chunk is not None for worker in self._workers)
            while len(self._workers) < min(self.count, busy + len(waiting)):
                self._workers.append(Worker(self._context))
            for worker in [worker for worker in self._workers if worker.ready and worker.chunk is None]:
                if waiting:
                    chunk = waiting.popleft()
                    try:
                        worker.give(identity, payload, chunk)
                    except OSError:  # it died while it had nothing to do
                        self._remove(worker)
                        waiting.appendleft(chunk)
            self._answers(rows, waiting)
        return [rows[i] for i in sorted(rows)]

    def _answers(self, rows: dict[int, Row], waiting: deque[Chunk]) -> None:
        """Waits until some worker answers, dies or is overdue."""
        expected = {worker.pipe: worker for worker in self._workers if worker.chunk is not None or not worker.ready}
        if not expected:  # all were found dead when work was given to them
            return
        deadlines = [worker.deadline for worker in expected.values() if worker.deadline is not None]
        timeout = max(0.0, min(deadlines) - time.monotonic()) if deadlines else None
        for pipe in connection.wait(list(expected), timeout):
            worker = expected.pop(pipe)
            try:
                answer = worker.pipe.recv()
            except Exception:  # closed, or cut off in the middle of an answer
                self._died(worker, rows, waiting)
                continue
            if not worker.ready:
                worker.ready = True
                continue
            chunk, worker.chunk, worker.deadline = worker.chunk, None, None
            if isinstance(answer, Exception):
                worker.kept.clear()  # it may be the oracle itself that could not be unpickled
                raise answer
            assert chunk is not None
            self._deaths = 0
            rows.update(enumerate(answer.rows(), chunk.first))
        now = time.monotonic()
        for worker in expected.values():
            if worker.deadline is not None and now > worker.deadline:
                self._died(worker, rows, waiting, overdue=True)

    def _died(self, worker: Worker, rows: dict[int, Row], waiting: deque[Chunk], *, overdue: bool = False) -> None:
        chunk, started = worker.chunk, worker.ready
        code = self._remove(worker)
        if not started:
            raise RuntimeError(
                f"difflayers.oracles: a worker process ended with exit code {code} before it was ready; in a script, "
                f"put what runs under if __name__ == '__main__':, since workers import the script"
            )
        if chunk is None:
            return
        self._deaths += 1
        if len(chunk) > 1:  # the row at fault is not known: each gets another try of its own
            waiting.extendleft(chunk.split())
        elif overdue:
            rows[chunk.first] = Row(None, Status.TIMEOUT, reason="its worker did not stop in time and was killed")
        else:
            rows[chunk.first] = Row(None, Status.FAILED, reason=f"its worker died with exit code {code}")
        if self._deaths >= DEATHS:
            given_up = Row(None, Status.FAILED, reason=f"given up after {DEATHS} workers died, one after another")
            for chunk in waiting:
                rows.update({chunk.first + i: given_up for i in range(len(chunk))})
            waiting.clear()

    def _remove(self, worker: Worker) -> int | None:
        self._workers.remove(worker)
        return worker.kill()
