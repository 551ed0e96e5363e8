"""A batch of problems in one call against a call for each.

    python tests/benchmarks/bench_ransac_batch.py

64 problems of equal size, half of their points inliers; float32, CPU time on one thread (`--threads 0`: wall time on
all), the least of several rounds in which both take turns. "search" is `.eval()` at confidence 0.999, "training" is
`.train()`, the expected loss, which is the negative score here, and its gradients by points and logits. A loop over the
problems pays PyTorch's overhead for each operator 64 times. How much a batch saves depends on how much there is to
compute beside: where the compiled solvers take most of the time, as for essential matrices (about 10 microseconds a
sample, some hundred samples a problem), one thread has little to save.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable

import torch
from bench_ransac_learning import Task, homographies, lines, two_views
from measure import machine

from difflayers.ransac import RANSAC, GumbelTopK, expected_loss

PROBLEMS = 64
HYPOTHESES = 128


def search(task: Task) -> tuple[Callable[[], object], Callable[[], object]]:
    """One call, and a loop over the problems."""
    layer = RANSAC(task.solver, threshold=task.threshold).eval()

    def run(points: torch.Tensor) -> None:
        with torch.no_grad():
            layer(points, generator=torch.Generator().manual_seed(0))

    return lambda: run(task.points), lambda: [run(points) for points in task.points]


def training(task: Task, hypotheses: int) -> tuple[Callable[[], object], Callable[[], object]]:
    """The same for a forward and a backward pass."""
    layer = RANSAC(
        task.solver, threshold=task.threshold, sampler=GumbelTopK(), hypotheses=hypotheses, refiner=None
    ).train()
    logits = torch.zeros(task.points.shape[:2])

    def run(at: slice) -> None:
        points, weights = task.points[at].clone().requires_grad_(), logits[at].clone().requires_grad_()
        found = layer(points, weights, generator=torch.Generator().manual_seed(0)).hypotheses
        assert found is not None
        expected_loss(found, torch.where(found.valid, -found.scores, 0)).sum().backward()

    return lambda: run(slice(None)), lambda: [run(slice(k, k + 1)) for k in range(len(logits))]


def least(contenders: tuple[Callable[[], object], ...], seconds: float, clock: Callable[[], float]) -> list[float]:
    """Milliseconds of each one's fastest round."""
    best, stop = [float("inf")] * len(contenders), time.perf_counter() + seconds
    for run in contenders:
        run()
    while True:
        for k, run in enumerate(contenders):
            start = clock()
            run()
            best[k] = min(best[k], (clock() - start) * 1e3)
        if time.perf_counter() > stop:
            return best


def main(arguments: list[str] | None = None) -> int:
    """Prints the table; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=3.0, help="for each line of the table")
    parser.add_argument("--counts", type=int, nargs="*", default=[100, 500], help="points a problem")
    parser.add_argument("--hypotheses", type=int, nargs="*", default=[16, HYPOTHESES], help="in training")
    parser.add_argument("--threads", type=int, default=1, help="0: all, and wall time")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads or torch.get_num_threads())
    clock = time.process_time if options.threads == 1 else time.perf_counter
    print("\n".join(f"- {line}" for line in machine()), end="\n\n")
    print("| model | points | mode | 64 calls, ms | one call, ms | times faster |\n|---|---|---|---|---|---|")
    missed = []
    for make in (lines, homographies, two_views):
        for count in options.counts:
            task = make(PROBLEMS, count, count // 2, torch.Generator().manual_seed(0))
            task = task._replace(points=task.points.float())
            modes = {"search": search(task)}
            for hypotheses in options.hypotheses:
                modes[f"training, {hypotheses} hypotheses"] = training(task, hypotheses)
            for mode, contenders in modes.items():
                one, each = least(contenders, options.seconds, clock)
                cells = [task.name, str(count), mode, f"{each:.0f}", f"{one:.1f}", f"{each / one:.1f}"]
                print("| " + " | ".join(cells) + " |", flush=True)
                if each < 4 * one:
                    missed.append(f"{task.name}, {count} points, {mode}")
    print(f"\nOne call 4 times faster: {'**missed** for ' + '; '.join(missed) if missed else 'reached'}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
