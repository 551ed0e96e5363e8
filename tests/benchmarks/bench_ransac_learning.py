"""What each gradient by the logits of a sampler is worth; prints Markdown tables.

    python tests/benchmarks/bench_ransac_learning.py            both tables, some minutes on one core
    python tests/benchmarks/bench_ransac_learning.py --quick    fewer problems

First the cosine of each gradient with the exact one, which enumerates all minimal sets of a small problem. Then
learning: the logits of 200 points, 30 % of them inliers, are free parameters; 150 steps of Adam on the expected loss of
128 hypotheses, the true inliers' bounded residuals. The share of inliers in the samples was 0.3 and should become 1.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from measure import machine
from torch import Tensor

from difflayers.ransac import (
    RANSAC,
    Best,
    EssentialMatrix,
    GumbelTopK,
    Homography,
    Line2D,
    Mean,
    MinimalSolver,
    Selection,
    Softmax,
    epipolar_loss,
    expected_loss,
    residual_loss,
)  # fmt: skip
from difflayers.ransac.samplers._log_probability import log_probability


class Task(NamedTuple):
    """Points `[problems, n, d]`, the first `inliers` of them inliers, and the loss of models."""

    name: str
    solver: MinimalSolver
    points: Tensor
    inliers: int
    threshold: float
    limit: float

    def losses(self, models: Tensor) -> Tensor:
        true = self.points[:, : self.inliers]
        if isinstance(self.solver, EssentialMatrix):
            return epipolar_loss(models, true, limit=self.limit)
        return residual_loss(self.solver, models, true, limit=self.limit)


def lines(problems: int, n: int, inliers: int, generator: torch.Generator, *, shift: float = 0.0) -> Task:
    """Lines in the unit square."""
    points = torch.rand(problems, n, 2, dtype=torch.float64, generator=generator)
    slope, height, noise = torch.rand(3, problems, 1, dtype=torch.float64, generator=generator)
    noise = 0.002 * torch.randn(problems, inliers, dtype=torch.float64, generator=generator)
    points[:, :inliers, 1] = (slope - 0.5) * points[:, :inliers, 0] + 0.3 + 0.3 * height + noise
    name = "line, origin moved by 5" if shift else "line"
    return Task(name, Line2D(), points + shift, inliers, 0.01, 0.02)


def homographies(problems: int, n: int, inliers: int, generator: torch.Generator) -> Task:
    """Two views of a plane, in units of the image."""
    h = torch.eye(3, dtype=torch.float64) + 0.1 * torch.randn(problems, 3, 3, dtype=torch.float64, generator=generator)
    first, second = torch.rand(2, problems, n, 2, dtype=torch.float64, generator=generator)
    seen = torch.cat([first, torch.ones_like(first[..., :1])], -1) @ h.mT
    noise = 0.001 * torch.randn(problems, inliers, 2, dtype=torch.float64, generator=generator)
    second[:, :inliers] = (seen[..., :2] / seen[..., 2:])[:, :inliers] + noise
    return Task("homography", Homography(), torch.cat([first, second], -1), inliers, 0.005, 0.02)


def two_views(problems: int, n: int, inliers: int, generator: torch.Generator) -> Task:
    """Two views of a scene of depth 2 to 6, in normalised coordinates of a camera of focal length 1,000."""
    angle = 0.2 * torch.randn(problems, 3, dtype=torch.float64, generator=generator)
    zero = torch.zeros_like(angle[:, 0])
    x, y, z = angle.unbind(-1)
    skew = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).view(-1, 3, 3)
    rotation = torch.linalg.matrix_exp(skew)
    t = torch.randn(problems, 1, 3, dtype=torch.float64, generator=generator)
    t = t / t.norm(dim=-1, keepdim=True)
    first = torch.rand(problems, n, 2, dtype=torch.float64, generator=generator) - 0.5
    depth = 2 + 4 * torch.rand(problems, n, 1, dtype=torch.float64, generator=generator)
    seen = depth * torch.cat([first, torch.ones_like(depth)], -1) @ rotation.mT + t
    noise = 0.0005 * torch.randn(problems, n, 2, dtype=torch.float64, generator=generator)
    second = seen[..., :2] / seen[..., 2:] + noise
    second[:, inliers:] = torch.rand(problems, n - inliers, 2, dtype=torch.float64, generator=generator) - 0.5
    return Task("essential matrix", EssentialMatrix(), torch.cat([first, second], -1), inliers, 0.002, 0.01)


def estimate(task: Task, logits: Tensor, gradient: str, draws: int, generator: torch.Generator) -> Tensor:
    """The gradient by the logits of one call."""
    logits = logits.clone().requires_grad_()
    layer = RANSAC(task.solver, threshold=task.threshold, sampler=GumbelTopK(gradient), hypotheses=draws, refiner=None)
    hypotheses = layer(task.points, logits, generator=generator).hypotheses
    assert hypotheses is not None
    loss = expected_loss(hypotheses, task.losses(hypotheses.models)).sum()
    return torch.autograd.grad(loss, logits)[0]


def exact(task: Task, logits: Tensor) -> Tensor:
    """The gradient of the loss of many draws: the mean over all sets, of models by models of valid hypotheses."""
    logits = logits.clone().requires_grad_()
    problems, n, _ = task.points.shape
    sets = torch.tensor(list(itertools.combinations(range(n), task.solver.sample_size))).expand(problems, -1, -1)
    drawn = task.points[torch.arange(problems)[:, None, None], sets]
    models, valid = task.solver.solve(drawn)[:2]
    valid = valid & ~task.solver.degenerate(drawn).unsqueeze(-1)
    valid &= task.solver.plausible(models, drawn.unsqueeze(2))
    losses = torch.where(valid, task.losses(models), 0).sum(-1)
    probability = log_probability(logits, sets).exp()
    mean = (probability * losses).sum(-1) / (probability * valid.sum(-1)).sum(-1)
    return torch.autograd.grad(mean.sum(), logits)[0]


GRADIENTS = ("score_function", "relaxed", "straight_through")


def cosines(quick: bool) -> list[list[str]]:
    """Rows of the first table."""
    rows = []
    problems = 3 if quick else 12
    make: list[Callable[[torch.Generator], Task]] = [
        lambda g: lines(problems, 12, 5, g),
        lambda g: lines(problems, 12, 5, g, shift=5.0),
        lambda g: homographies(problems, 13, 7, g),
        lambda g: two_views(problems, 13, 7, g),
    ]
    for of in make:
        generator = torch.Generator().manual_seed(0)
        task = of(generator)
        logits = 0.5 * torch.randn(task.points.shape[:2], dtype=torch.float64, generator=generator)
        truth = exact(task, logits)
        for draws in (128, 3000):
            row = [task.name, str(draws)]
            for gradient in GRADIENTS:
                found = estimate(task, logits, gradient, draws, generator)
                cosine = torch.nn.functional.cosine_similarity(found, truth, dim=-1)
                row.append(f"{cosine.median():+.3f} [{cosine.min():+.2f}, {cosine.max():+.2f}]")
            rows.append(row)
    return rows


def learn(task: Task, gradient: str, selection: Selection, *, steps: int = 150, seed: int = 0) -> tuple[float, float]:
    """The share of inliers in samples after training, mean over the problems, and the seconds a step."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.zeros(task.points.shape[:2], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=0.1)
    sampler = GumbelTopK(gradient)
    layer = RANSAC(task.solver, threshold=task.threshold, sampler=sampler, hypotheses=128, refiner=None)
    start = time.process_time()
    for _ in range(steps):
        hypotheses = layer(task.points, logits, generator=generator).hypotheses
        assert hypotheses is not None
        loss = expected_loss(hypotheses, task.losses(hypotheses.models), selection).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    seconds = (time.process_time() - start) / steps
    samples = sampler.sample(logits, task.solver.sample_size, 1000, generator=generator)
    return float((samples < task.inliers).double().mean()), seconds


RULES: tuple[tuple[str, Selection], ...] = (
    ("score_function", Mean()), ("score_function", Softmax(4.0)), ("score_function", Best()),
    ("relaxed", Mean()), ("straight_through", Mean()),
)  # fmt: skip


def learning(quick: bool) -> list[list[str]]:
    """Rows of the second table."""
    rows = []
    for make in (lines, homographies, two_views):
        task = make(2 if quick else 6, 200, 60, torch.Generator().manual_seed(1))
        for gradient, selection in RULES:
            share, seconds = learn(task, gradient, selection)
            rows.append([task.name, gradient, repr(selection), f"{share:.3f}", f"{1e3 * seconds:.0f}"])
    return rows


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def main() -> None:
    """Prints both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer problems")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("\n".join(f"- {line}" for line in machine()), end="\n\n")
    print("Cosine with the exact gradient, median [least, most] over the problems:\n")
    print(table(["model", "draws", *GRADIENTS], cosines(options.quick)), flush=True)
    print("\nShare of inliers in the samples after 150 steps, from 0.300:\n")
    rows = learning(options.quick)
    print(table(["model", "gradient", "selection", "share", "CPU ms a step"], rows))
    good = all(float(row[3]) >= 0.98 for row in rows if row[1:3] == ["score_function", "Mean()"])
    print(f"\nScore function with Mean(), the defaults, to 0.98: {'reached' if good else '**missed**'}.")


if __name__ == "__main__":
    main()
