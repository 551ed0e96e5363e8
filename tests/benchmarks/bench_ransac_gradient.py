"""What the gradient of a refined model by the points costs beside its search.

    python tests/benchmarks/bench_ransac_gradient.py

`.eval()` on one problem of 500 points, half of them inliers, float64: CPU milliseconds on one thread of the call
without gradient, of the call with gradient, and of the backward pass, each the least of several rounds. The gradient is
that of the optimum of the refinement's loss (implicit function theorem with the exact Hessian), not of the steps that
led there. "error" compares it with central differences: the refined model's change for a step of 1e-6 times the size of
the points in a random direction, relative, from the same start.
"""

from __future__ import annotations

import argparse
import time

import torch
from bench_ransac_learning import homographies, lines, two_views
from measure import machine

from difflayers.ransac import RANSAC, LevenbergMarquardt


def least(run, seconds: float) -> float:
    """Milliseconds of the fastest round."""
    best, stop = float("inf"), time.perf_counter() + seconds
    run()
    while time.perf_counter() < stop:
        start = time.process_time()
        run()
        best = min(best, (time.process_time() - start) * 1e3)
    return best


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=2.0, help="for each figure")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("\n".join(f"- {line}" for line in machine()), end="\n\n")
    print("| model | call without gradient, ms | with gradient, ms | backward, ms | error |\n|---|---|---|---|---|")
    for make in (lines, homographies, two_views):
        generator = torch.Generator().manual_seed(3)
        task = make(1, 500, 250, generator)
        layer = RANSAC(task.solver, threshold=task.threshold).eval()

        def call(points: torch.Tensor, layer: RANSAC = layer) -> torch.Tensor:
            return layer(points, generator=torch.Generator().manual_seed(0)).model

        points = task.points.clone().requires_grad_()
        with torch.no_grad():
            plain = least(lambda call=call, points=points: call(points), options.seconds)
        graph = least(lambda call=call, points=points: call(points), options.seconds)
        model = call(points)
        weight = torch.randn(model.shape, dtype=torch.float64, generator=generator)

        def backward(model=model, weight=weight, points=points) -> torch.Tensor:
            return torch.autograd.grad((model * weight).sum(), points, retain_graph=True)[0]

        back, gradient = least(backward, options.seconds), backward()
        direction = torch.randn(points.shape, dtype=torch.float64, generator=generator)
        refiner, width, step = LevenbergMarquardt(steps=100), torch.tensor([task.threshold]).double(), 1e-6
        moved = []
        for sign in (1, -1):
            at = (points + sign * step * direction).detach().requires_grad_()
            # with a gradient, so that Newton's method ends the refinement
            found = refiner.refine(task.solver, model.detach().unsqueeze(1), at, None, width).detach()
            moved.append((found[0] * weight).sum())
        measured = (moved[0] - moved[1]) / (2 * step)
        error = abs(float((gradient * direction).sum() / measured - 1))
        print(f"| {task.name} | {plain:.1f} | {graph:.1f} | {back:.2f} | {error:.0e} |", flush=True)


if __name__ == "__main__":
    main()
