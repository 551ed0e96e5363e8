"""Finds several lines among noise, and learns without labels which points to draw.

Points of a few lines lie among uniform noise. First each line is searched for in turn: RANSAC finds one, its points
are masked out, and the next one is looked for. Then the same with a budget of a few samples only, drawn uniformly and
drawn by logits that were learned on the spot: one logit for each point and line, trained by the gradient of the
expected number of points that a drawn line explains. Nobody says which points are good; the loss does. The gradient
goes through the choice of the samples by the score function (unbiased), or, for comparison, by the published
straight-through path or by a relaxed choice.
"""

from __future__ import annotations

import math
import sys
import time
from argparse import Namespace
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import command
import torch
from torch import Tensor

import difflayers as dl

try:
    from matplotlib.figure import Figure  # without pyplot: it draws with Agg and needs no display
    from tqdm import tqdm
except ImportError as error:
    sys.exit(f"fit_lines.py: {error}; run: pip install 'difflayers[examples]'")

LINE = dl.ransac.Line2D()
GRADIENTS = ("score_function", "relaxed", "straight_through")
COLOURS = ("#0969da", "#cf222e", "#1a7f37", "#8250df", "#bf8700", "#1b7c83")


class Scene(NamedTuple):
    """points `[n, 2]` in the unit square, owner `[n]` (-1: noise), lines `[count, 3]`."""

    points: Tensor
    owner: Tensor
    lines: Tensor


def scene(options: Namespace) -> Scene:
    """Lines through random pairs of points of the square, and the points on them."""
    generator = torch.Generator().manual_seed(options.seed)
    ends = torch.rand(options.lines, 2, 2, generator=generator)
    far = (ends[:, 0] - ends[:, 1]).norm(dim=-1) > 0.5
    while not far.all():
        ends = torch.where(far[:, None, None], ends, torch.rand(options.lines, 2, 2, generator=generator))
        far = (ends[:, 0] - ends[:, 1]).norm(dim=-1) > 0.5
    lines = LINE.solve(ends).models[:, 0]
    at = torch.rand(options.lines, options.points, 1, generator=generator)
    on_lines = ends[:, :1] * (1 - at) + ends[:, 1:] * at
    offset = options.sigma * torch.randn(options.lines, options.points, 1, generator=generator)
    on_lines = (on_lines + offset * lines[:, None, :2]).flatten(0, 1)
    points = torch.cat([on_lines, torch.rand(options.noise, 2, generator=generator)])
    owner = torch.arange(options.lines).repeat_interleave(options.points)
    return Scene(points, torch.cat([owner, torch.full((options.noise,), -1)]), lines)


def found(models: Tensor, truth: Scene, threshold: float) -> int:
    """How many of the true lines are among the models: most of their points are near one of them."""
    near = LINE.residual(models.nan_to_num(1e3), truth.points.unsqueeze(0)) < threshold
    share = torch.stack([near[:, truth.owner == line].float().mean(-1) for line in range(len(truth.lines))])
    return int((share.amax(-1) > 0.7).sum())


class Search(NamedTuple):
    """models `[lines, 3]`, samples drawn, seconds."""

    models: Tensor
    samples: int
    seconds: float


def one_by_one(truth: Scene, options: Namespace, logits: Tensor | None = None, samples: int | None = None) -> Search:
    """Line after line, the points of those found left out; with logits `[lines, n]`, line k is drawn by row k."""
    limit = {} if samples is None else {"max_iterations": samples, "candidates": 1}
    layer = dl.ransac.RANSAC(LINE, threshold=options.threshold, confidence=0.9999, **limit).eval()
    generator = torch.Generator().manual_seed(options.seed)
    left = torch.ones(len(truth.points), dtype=torch.bool)
    models, drawn, started = [], 0, time.perf_counter()
    for line in range(options.lines):
        guide = None if logits is None else logits[line]
        result = layer(truth.points, guide, mask=left, generator=generator)
        left = left & ~result.inliers
        models.append(result.model)
        drawn += int(result.iterations)
    return Search(torch.stack(models), drawn, time.perf_counter() - started)


class Learned(NamedTuple):
    """logits `[lines, n]`, and the share of inliers in the samples after each step."""

    logits: Tensor
    shares: list[float]


def learn(truth: Scene, gradient: str, options: Namespace) -> Learned:
    """A logit for each point and line, by the expected number of points that a drawn line explains.

    A point that an earlier line's best model explains counts for nothing, so the lines come out different.
    """
    generator = torch.Generator().manual_seed(options.seed)
    logits = torch.zeros(options.lines, len(truth.points), requires_grad=True)
    sampler = dl.ransac.GumbelTopK(gradient=gradient)
    layer = dl.ransac.RANSAC(
        LINE, threshold=options.threshold, sampler=sampler, hypotheses=options.hypotheses, refiner=None
    ).train()
    optimiser = torch.optim.Adam([logits], options.lr)
    every = truth.points.expand(options.lines, -1, -1)
    shares: list[float] = []
    with suppress(KeyboardInterrupt):
        for _ in tqdm(range(options.steps), desc=gradient, leave=False, disable=None):
            hypotheses = layer(every, logits, generator=generator).hypotheses
            ratio = LINE.squared_residual(hypotheses.models, every[:, None, None]) / options.threshold**2
            explained = torch.exp(-ratio / 2)  # shape: [lines, hypotheses, 1, n]
            with torch.no_grad():
                best = explained.sum(-1).squeeze(-1).argmax(-1)
                of_best = explained[torch.arange(options.lines), best, 0]
                left = (1 - of_best).cumprod(0)  # by this line and those before it
                left = torch.cat([torch.ones_like(left[:1]), left[:-1]])
            losses = -(explained * left[:, None, None]).sum(-1) / options.points
            loss = dl.ransac.expected_loss(hypotheses, losses).sum()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            good = truth.owner[hypotheses.samples]
            shares.append(float(((good[..., 0] == good[..., 1]) & (good[..., 0] >= 0)).float().mean()))
    return Learned(logits.detach(), shares)


def draw(truth: Scene, search: Search, learned: dict[str, Learned], options: Namespace, path: Path) -> None:
    """The points, the lines found, what the logits learned, and how the samples became better."""
    figure = Figure(figsize=(13, 4), layout="constrained")
    axes = figure.subplots(1, 3)
    x = torch.linspace(-0.05, 1.05, 2)
    for panel in axes[:2]:
        panel.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal", xticks=[], yticks=[])
    axes[0].scatter(*truth.points.T, s=6, c="#8c959f")
    near = LINE.residual(search.models, truth.points.unsqueeze(0)) < options.threshold
    for line, ((a, b, c), mask) in enumerate(zip(search.models.tolist(), near, strict=True)):
        if not all(map(math.isfinite, (a, b, c))):
            continue
        colour = COLOURS[line % len(COLOURS)]
        axes[0].scatter(*truth.points[mask].T, s=8, c=colour)
        ends = (x, -(a * x + c) / b) if abs(b) > abs(a) else (-(b * x + c) / a, x)
        axes[0].plot(*ends, c=colour, lw=1)
    axes[0].set_title("found one by one")
    logits = next(iter(learned.values())).logits
    likely = logits.softmax(-1)
    colours = [COLOURS[line % len(COLOURS)] for line in likely.argmax(0).tolist()]
    size = 3 + 40 * (likely.amax(0) / likely.amax())
    axes[1].scatter(*truth.points.T, s=size, c=colours)
    axes[1].set_title("learned: size = chance to be drawn")
    for name, result in learned.items():
        axes[2].plot(result.shares, label=name.replace("_", " "))
    axes[2].set(title="samples on one line", xlabel="step", ylim=(0, 1.02))
    axes[2].legend(frameon=False)
    axes[2].spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)


def parse(argv: Sequence[str] | None) -> Namespace:
    parser = command.Parser(__file__, __doc__, seed="of the scene and the samples", quick={"steps": 30})
    add = parser.add_argument
    add("--lines", type=int, default=4, help="how many")
    add("--points", type=int, default=40, help="points on each line")
    add("--noise", type=int, default=240, help="points on none")
    add("--sigma", type=float, default=0.003, help="distance of the points from their line, standard deviation")
    add("--threshold", type=float, default=0.01, help="distance of inliers")
    add("--samples", type=int, default=32, help="budget of samples for each line")
    add("--hypotheses", type=int, default=128, help="samples in a training step, for each line")
    add("--steps", type=int, default=250, help="training steps")
    add("--lr", type=float, default=0.1, help="learning rate of Adam")
    options = parser.options(argv)
    if min(options.lines, options.points - 1, options.samples, options.hypotheses, options.steps) < 1:
        parser.error("--lines, --samples, --hypotheses and --steps must be positive, and --points at least 2")
    if options.noise < 0 or not 0 <= options.sigma < math.inf:
        parser.error("--noise and --sigma must be finite and not negative")
    if not all(0 < x < math.inf for x in (options.threshold, options.lr)):
        parser.error("--threshold and --lr must be positive and finite")
    return options


def run(options: Namespace) -> Path:
    """Searches, learns, prints the table, draws the picture."""
    truth = scene(options)
    share = options.points / len(truth.points)
    print(
        f"{options.lines} lines of {options.points} points in {len(truth.points)}: a pair of points is on the line ",
        end="",
    )
    print(f"looked for in {100 * share**2:.1f} % of the draws. Ctrl-C ends a training early.\n")
    print(f"{'':32}{'lines found':>12}{'samples':>9}{'on one line %':>15}{'seconds':>9}")

    def report(name: str, search: Search, on_one_line: float, seconds: float) -> None:
        count = f"{found(search.models, truth, options.threshold)} / {options.lines}"
        print(f"{name:32}{count:>12}{search.samples:>9}{100 * on_one_line:>15.1f}{seconds:>9.1f}", flush=True)

    uniform = options.lines * share**2
    full = one_by_one(truth, options)
    report("search, confidence 0.9999", full, uniform, full.seconds)
    few = one_by_one(truth, options, samples=options.samples)
    report(f"uniform, {options.samples} samples a line", few, uniform, few.seconds)
    learned: dict[str, Learned] = {}
    for gradient in GRADIENTS:
        begun = time.perf_counter()
        learned[gradient] = learn(truth, gradient, options)
        search = one_by_one(truth, options, learned[gradient].logits, options.samples)
        last = learned[gradient].shares[-1] if learned[gradient].shares else math.nan
        report(f"learned, {gradient.replace('_', ' ')}", search, last, time.perf_counter() - begun)
    path = options.out / "fit_lines.png"
    draw(truth, full, learned, options, path)
    return path


def main(argv: Sequence[str] | None = None) -> int:
    options = parse(argv)
    torch.set_num_threads(1)  # as fast as two for tensors this small, and it does not suffer on a busy machine
    return command.run(__file__, run, options)


if __name__ == "__main__":
    sys.exit(main())
