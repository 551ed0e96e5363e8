"""Learns to predict costs so that the decisions made with them are good: predict, then optimise.

Two problems of the PyEPO suite (Tang, Khalil, arXiv 2206.14234, after Elmachtoub and Grigas, arXiv 1710.08005, Section
6.1). On a 5x5 grid of roads, travel times are to be predicted and the shortest path is taken; of 16 items, profits are
to be predicted and those are packed that fit twice over, by weight and by volume. Costs depend on features (the
weather, the hour) through a polynomial and noise, and the predictor is linear. The higher the degree, the more wrong a
linear model must be somewhere, and the question is where: least squares spreads its errors over all costs alike, while
decision-focused losses look at the decision that comes out. All losses are trained by one loop and judged by the
regret on unseen days: how much more the decision costs than the best one. Some losses need the true costs, some only
the decisions of someone who knew them.
"""

from __future__ import annotations

import math
import statistics
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import command
import numpy as np
import torch
from torch import Tensor, nn

import difflayers as dl
from difflayers import surrogates

try:
    from matplotlib.figure import Figure  # without pyplot: it draws with Agg and needs no display
    from tqdm import tqdm
except ImportError as error:
    sys.exit(f"predict_then_optimize.py: {error}; run: pip install 'difflayers[examples]'")

SIDE, ITEMS, FEATURES, BASELINE = 5, 16, 5, "least squares"


class Problem(NamedTuple):
    """What is decided, whose costs have which sign, and all decisions as what satisfies these linear constraints."""

    title: str
    oracle: dl.oracles.Oracle
    sign: int
    constraints: dict[str, Any]


def path(side: int = SIDE) -> Problem:
    """From corner to corner of a grid of one-way roads, right and down."""
    roads, corner = dl.oracles.grid_edges(side, side), side * side - 1
    A, b = np.zeros((corner + 1, len(roads))), np.zeros(corner + 1)  # what leaves a node, less what arrives
    A[roads[:, 0], np.arange(len(roads))], A[roads[:, 1], np.arange(len(roads))] = 1.0, -1.0
    b[0], b[-1] = 1.0, -1.0
    oracle = dl.oracles.ShortestPath(roads, 0, corner, num_nodes=corner + 1)
    return Problem(f"Shortest path, {side}x{side} grid", oracle, 1, {"A_eq": A, "b_eq": b})


def knapsack(items: int = ITEMS) -> Problem:
    """Weights and volumes from 3 to 8, of either 20 in all. Profits are negative costs, as everything minimises."""
    weights, room = np.random.default_rng(0).integers(300, 800, (2, items)) / 100, np.full(2, 20.0)
    oracle = dl.oracles.Knapsack(weights, room)
    return Problem(f"Knapsack, {items} items, two constraints", oracle, -1, {"A_ub": weights, "b_ub": room})


PROBLEMS = {"path": path, "knapsack": knapsack}


class Days(NamedTuple):
    """Features [days, features], costs [days, n], the best decisions and what they cost."""

    features: Tensor
    costs: Tensor
    decisions: Tensor
    objectives: Tensor


def synthetic(count: int, degree: int, noise: float, problem: Problem, seed: int) -> Days:
    """Days whose costs are polynomials of their features, times noise in [1 - noise, 1 + noise]."""
    random = np.random.default_rng(seed)
    weight = random.binomial(1, 0.5, (*problem.oracle.cost_shape, FEATURES))
    features = random.normal(size=(count, FEATURES))
    costs = ((features @ weight.T / math.sqrt(FEATURES) + 3) ** degree + 1) * (problem.sign / 3.5**degree)
    costs *= random.uniform(1 - noise, 1 + noise, costs.shape)
    decisions = problem.oracle.solve(torch.from_numpy(costs))
    given = (torch.from_numpy(features), torch.from_numpy(costs), decisions)
    return Days(*(x.float() for x in (*given, (given[1] * decisions).sum(1))))


Loss = Callable[[Tensor, Days], Tensor]


def losses(problem: Problem, days: Days) -> dict[str, tuple[str, Loss]]:
    """By name, what each loss learns from ("costs" or "decisions"), and itself, of predictions and a batch of days."""
    oracle, pool = problem.oracle, days.decisions.unique(dim=0)
    spo = surrogates.SPOPlus(oracle)
    central = surrogates.PerturbationGradient(oracle, width=1.0, side="central")
    point = surrogates.PointwiseRanking(oracle, pool=pool)
    pair = surrogates.PairwiseRanking(oracle, pool=pool, margin=0.1)
    wide = surrogates.ListwiseRanking(oracle, pool=pool)
    contrast = surrogates.NCE(oracle, pool=pool)
    hardest = surrogates.ContrastiveMAP(oracle, pool=pool, compare="spo")
    perturbed = surrogates.FenchelYoung(oracle, samples=4, sigma=0.5, antithetic=True)
    multiplied = surrogates.FenchelYoung(oracle, samples=4, sigma=0.5, perturbation="multiplicative")
    machine = surrogates.StructuredSVM(oracle, margin=0.1)
    margin = surrogates.MaximumOptimalityMargin(**problem.constraints, bounds=(0, 1), margin=0.1)
    cone = surrogates.CaVE(**problem.constraints, bounds=(0, 1))
    box = dl.SolverLayer(oracle, rule=dl.Blackbox(10.0))
    return {
        BASELINE: ("costs", lambda c, day: (c - day.costs).square().mean()),
        "SPO+": ("costs", lambda c, day: spo(c, day.costs, day.decisions, day.objectives)),
        "Blackbox, of the regret": ("costs", lambda c, day: (box(c) * day.costs).sum(1).mean()),
        "perturbation gradient": ("costs", lambda c, day: central(c, day.costs)),
        "pointwise ranking": ("costs", lambda c, day: point(c, day.costs)),
        "pairwise ranking": ("costs", lambda c, day: pair(c, day.costs)),
        "listwise ranking": ("costs", lambda c, day: wide(c, day.costs)),
        "contrastive MAP": ("costs", lambda c, day: hardest(c, day.decisions, day.costs)),
        "contrastive NCE": ("decisions", lambda c, day: contrast(c, day.decisions)),
        "Fenchel-Young": ("decisions", lambda c, day: perturbed(c, day.decisions)),
        "Fenchel-Young, multipl.": ("decisions", lambda c, day: multiplied(c, day.decisions)),
        "structured SVM": ("decisions", lambda c, day: machine(c, day.decisions)),
        "optimality margin": ("decisions", lambda c, day: margin(c, day.decisions)),
        "CaVE": ("decisions", lambda c, day: cone(c, day.decisions)),
    }


NAMES = list(losses(path(2), synthetic(1, 1, 0.0, path(2), 0)))


def predictor(problem: Problem) -> nn.Linear:
    """A linear model that begins with costs around 1, profits around 1: some losses learn no scale."""
    model = nn.Linear(FEATURES, problem.oracle.cost_shape[0])
    nn.init.constant_(model.bias, problem.sign)
    return model


def train(model: nn.Module, loss: Loss, days: Days, options: Namespace, name: str) -> None:
    """Mini-batches of Adam, whose learning rate falls to zero so that the last steps' noise averages out."""
    optimiser = torch.optim.Adam(model.parameters(), options.lr)
    steps = options.epochs * math.ceil(len(days.costs) / options.batch)
    decay = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.0, steps)
    for _ in tqdm(range(options.epochs), desc=f"{name:22}", dynamic_ncols=True, disable=None, leave=False):
        for chosen in torch.randperm(len(days.costs)).split(options.batch):
            batch = Days(*(part[chosen] for part in days))
            optimiser.zero_grad()
            loss(model(batch.features), batch).backward()
            optimiser.step()
            decay.step()


@torch.no_grad()
def regret(model: nn.Module, days: Days, problem: Problem) -> float:
    """In percent of what the best decisions cost."""
    predicted = model(days.features)
    share = surrogates.normalized_regret(predicted, days.costs, problem.oracle, true_objective=days.objectives)
    return 100 * share.item()


class Result(NamedTuple):
    """The regrets of one loss, one for each seed."""

    name: str
    needs: str
    regrets: list[float]


def interval(values: Sequence[float]) -> tuple[float, float]:
    """The mean, and half the width of its 95 % interval."""
    count = len(values)
    return statistics.fmean(values), 1.96 * statistics.stdev(values) / math.sqrt(count) if count > 1 else 0.0


def draw(tables: dict[str, list[Result]], options: Namespace, file: Path) -> None:
    """A panel a problem: mean regrets with their error bands, the best on top; the untrained model would not fit."""
    figure = Figure(figsize=(9 if len(tables) == 1 else 14, 5), layout="constrained")
    colours = {"costs": "#0969da", "decisions": "#bf8700"}
    for axes, (title, results) in zip(figure.subplots(1, len(tables), squeeze=False)[0], tables.items(), strict=True):
        ordered = sorted((result for result in results if result.needs), key=lambda result: interval(result.regrets))
        for needs, label in (("costs", "learns from true costs"), ("decisions", "learns from decisions alone")):
            axes.barh(0, 0, color=colours[needs], label=label)
        names = [result.name for result in ordered]
        means, errors = zip(*(interval(result.regrets) for result in ordered), strict=True)
        bars = axes.barh(names, means, xerr=errors, color=[colours[result.needs] for result in ordered], capsize=3)
        for bar, name in zip(bars, names, strict=True):
            bar.set_hatch("//" if name == BASELINE else "")
        axes.invert_yaxis()
        axes.set_title(title, loc="left")
        axes.set_xlabel(f"regret on unseen days, % (degree {options.degree}, noise {options.noise:g})")
        axes.legend(loc="upper right", frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, dpi=130)


def parse(argv: Sequence[str] | None) -> Namespace:
    parser = command.Parser(__file__, __doc__, seed="the first of them", quick={"days": 60, "epochs": 5, "seeds": 2})
    add = parser.add_argument
    add("--problem", choices=(*PROBLEMS, "both"), default="both", help="which")
    add("--losses", nargs="*", choices=NAMES, metavar="NAME", default=NAMES, help="which")
    add("--degree", type=int, default=6, help="of the polynomial; 1 = a linear model can be right")
    add("--noise", type=float, default=0.5, help="half-width of the multiplicative noise, in [0, 1)")
    add("--days", type=int, default=100, help="days to learn from")
    add("--epochs", type=int, default=20, help="passes over the days")
    add("--batch", type=int, default=32, help="days in a step")
    add("--lr", type=float, default=0.03, help="learning rate of Adam")
    add("--seeds", type=int, default=5, help="repetitions with new data and weights")
    options = parser.options(argv)
    if min(options.days, options.epochs, options.batch, options.seeds, options.degree) < 1 or not options.losses:
        parser.error("--days, --epochs, --batch, --seeds and --degree must be positive, and --losses not empty")
    if not 0 < options.lr < math.inf or not 0 <= options.noise < 1:
        parser.error("--lr must be positive, and --noise in [0, 1)")
    return options


def compare(problem: Problem, options: Namespace, results: list[Result]) -> None:
    """Trains with each loss on every seed, prints a line each, and adds to the results."""
    print(
        f"\n{problem.title}: {options.days} days to learn from, degree {options.degree}, noise {options.noise:g}, ",
        end="",
    )
    print(f"{options.seeds} seeds\n\n{'':24}{'learns from':>12}{'regret %':>10}{'+-':>7}", end="")
    print(f"{'gain':>9}{'+-':>7}{'seconds':>9}", flush=True)
    data = []
    for seed in range(options.seed, options.seed + options.seeds):
        days = synthetic(options.days + 1000, options.degree, options.noise, problem, seed)
        data.append((Days(*(x[: options.days] for x in days)), Days(*(x[options.days :] for x in days))))
    for name in ["untrained", *options.losses]:
        begun, regrets, needs = time.perf_counter(), [], ""
        for seed, (training, test) in enumerate(data, options.seed):
            torch.manual_seed(seed)
            model = predictor(problem)
            if name != "untrained":
                needs, loss = losses(problem, training)[name]
                train(model, loss, training, options, name)
            regrets.append(regret(model, test, problem))
        results.append(Result(name, needs, regrets))
        mean, error = interval(regrets)
        print(f"{name:24}{needs:>12}{mean:>10.2f}{error:>7.2f}", end="")
        before = [base - own for other in results if other.name == BASELINE != name
                  for base, own in zip(other.regrets, regrets, strict=True)]  # fmt: skip
        gain = "{:>9.2f}{:>7.2f}".format(*interval(before)) if before else ""
        print(f"{gain:16}{time.perf_counter() - begun:9.1f}", flush=True)


def run(options: Namespace) -> Path:
    """Trains, prints a table for each problem, draws the picture."""
    tables: dict[str, list[Result]] = {}
    print("Ctrl-C ends the trainings early.")
    with suppress(KeyboardInterrupt):
        for name in PROBLEMS if options.problem == "both" else [options.problem]:
            problem = PROBLEMS[name]()
            compare(problem, options, tables.setdefault(problem.title, []))
    tables = {title: results for title, results in tables.items() if len(results) > 1}  # more than the untrained model
    if not tables:
        raise KeyboardInterrupt
    print("\nThe gain is on least squares, seed by seed; +- are halves of 95 % intervals.")
    draw(tables, options, options.out / "predict_then_optimize.png")
    return options.out / "predict_then_optimize.png"


def main(argv: Sequence[str] | None = None) -> int:
    options = parse(argv)
    torch.set_num_threads(1)  # as fast as two for tensors this small, and it does not suffer on a busy machine
    return command.run(__file__, run, options)


if __name__ == "__main__":
    sys.exit(main())
