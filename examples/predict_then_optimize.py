"""Learns to predict the costs of roads so that the routes planned with them are good: predict, then optimise.

Travel times on the roads of a 5x5 grid depend on features (the weather, the hour) through a polynomial and noise; a
linear model has to predict them, and the planner takes the shortest path for its predictions. The higher the degree,
the more wrong a linear model must be somewhere, and the question is where: least squares spreads its errors over all
roads alike, while decision-focused losses look at the route that comes out. All losses are trained by one loop and
judged by the regret on unseen days: how much longer the planned route takes than the best one. Some losses need the
true travel times, some only the routes that a knowing driver took. The data follow the generator of PyEPO (Tang,
Khalil, arXiv 2206.14234) after Elmachtoub and Grigas, arXiv 1710.08005, Section 6.1.
"""

from __future__ import annotations

import math
import statistics
import sys
import time
from argparse import ArgumentDefaultsHelpFormatter, ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

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

SIDE, FEATURES, BASELINE = 5, 5, "least squares"


class Roads:
    """A square grid of one-way roads, right and down, row by row; a route is a 0-1 vector over the roads."""

    def __init__(self, side: int) -> None:
        self.roads: list[tuple[int, int]] = []
        for row in range(side):
            first = row * side
            self.roads += [(first + column, first + column + 1) for column in range(side - 1)]
            self.roads += [(first + column, first + column + side) for column in range(side) if row + 1 < side]
        self.nodes = side * side

    def shortest(self, costs: np.ndarray) -> np.ndarray:
        """`[days, roads]` -> the shortest routes: dynamic programming, all days at once."""
        arriving: list[list[int]] = [[] for _ in range(self.nodes)]
        for road, (_, head) in enumerate(self.roads):
            arriving[head].append(road)
        distance = np.zeros((self.nodes, len(costs)))
        through = np.zeros((self.nodes, len(costs)), dtype=np.int64)
        for node in range(1, self.nodes):  # in topological order
            ways = np.stack([distance[self.roads[road][0]] + costs[:, road] for road in arriving[node]])
            distance[node], through[node] = ways.min(0), np.array(arriving[node])[ways.argmin(0)]
        routes, days, tails = np.zeros_like(costs), np.arange(len(costs)), np.array([tail for tail, _ in self.roads])
        at = np.full(len(costs), self.nodes - 1)
        while (at > 0).any():  # all routes are equally long
            road = through[at, days]
            routes[days, road] = 1.0
            at = tails[road]
        return routes

    def oracle(self) -> dl.oracles.FromCallable:
        return dl.oracles.FromCallable(self.shortest, (len(self.roads),), batched=True)

    def flow(self) -> tuple[np.ndarray, np.ndarray]:
        """A and b of the routes as solutions of A x = b, x >= 0: what leaves a node, less what arrives."""
        A, b = np.zeros((self.nodes, len(self.roads))), np.zeros(self.nodes)
        for road, (tail, head) in enumerate(self.roads):
            A[tail, road], A[head, road] = 1.0, -1.0
        b[0], b[-1] = 1.0, -1.0
        return A, b


class Days(NamedTuple):
    """Features [days, features], travel times [days, roads], the best routes and how long they take."""

    features: Tensor
    costs: Tensor
    routes: Tensor
    durations: Tensor


def synthetic(count: int, degree: int, noise: float, roads: Roads, seed: int) -> Days:
    """Days whose travel times are polynomials of their features, times noise in [1 - noise, 1 + noise]."""
    random = np.random.default_rng(seed)
    weight = random.binomial(1, 0.5, (len(roads.roads), FEATURES))
    features = random.normal(size=(count, FEATURES))
    costs = ((features @ weight.T / math.sqrt(FEATURES) + 3) ** degree + 1) / 3.5**degree
    costs *= random.uniform(1 - noise, 1 + noise, costs.shape)
    routes = roads.shortest(costs)
    return Days(*(torch.tensor(x, dtype=torch.float32) for x in (features, costs, routes, (costs * routes).sum(1))))


Loss = Callable[[Tensor, Days], Tensor]


def losses(roads: Roads, days: Days) -> dict[str, tuple[str, Loss]]:
    """By name, what each loss learns from ("costs" or "routes"), and itself, of predictions and a batch of days."""
    oracle, pool = roads.oracle(), days.routes.unique(dim=0)
    A, b = roads.flow()
    constraints = {"A_eq": A, "b_eq": b}
    spo = surrogates.SPOPlus(oracle)
    central = surrogates.PerturbationGradient(oracle, width=1.0, side="central")
    point = surrogates.PointwiseRanking(oracle, pool=pool)
    pair = surrogates.PairwiseRanking(oracle, pool=pool, margin=0.1)
    wide = surrogates.ListwiseRanking(oracle, pool=pool)
    contrast = surrogates.NCE(oracle, pool=pool)
    hardest = surrogates.ContrastiveMAP(oracle, pool=pool, compare="spo")
    perturbed = surrogates.FenchelYoung(oracle, samples=8, sigma=0.5, antithetic=True)
    multiplied = surrogates.FenchelYoung(oracle, samples=8, sigma=0.5, perturbation="multiplicative")
    machine = surrogates.StructuredSVM(oracle, margin=0.1)
    margin = surrogates.MaximumOptimalityMargin(**constraints, margin=0.1)
    cone = surrogates.CaVE(**constraints, bounds=(0, 1))
    return {
        BASELINE: ("costs", lambda c, day: (c - day.costs).square().mean()),
        "SPO+": ("costs", lambda c, day: spo(c, day.costs, day.routes, day.durations)),
        "perturbation gradient": ("costs", lambda c, day: central(c, day.costs)),
        "pointwise ranking": ("costs", lambda c, day: point(c, day.costs)),
        "pairwise ranking": ("costs", lambda c, day: pair(c, day.costs)),
        "listwise ranking": ("costs", lambda c, day: wide(c, day.costs)),
        "contrastive MAP": ("costs", lambda c, day: hardest(c, day.routes, day.costs)),
        "contrastive NCE": ("routes", lambda c, day: contrast(c, day.routes)),
        "Fenchel-Young": ("routes", lambda c, day: perturbed(c, day.routes)),
        "Fenchel-Young, multipl.": ("routes", lambda c, day: multiplied(c, day.routes)),
        "structured SVM": ("routes", lambda c, day: machine(c, day.routes)),
        "optimality margin": ("routes", lambda c, day: margin(c, day.routes)),
        "CaVE": ("routes", lambda c, day: cone(c, day.routes)),
    }


NAMES = list(losses(Roads(2), synthetic(1, 1, 0.0, Roads(2), 0)))


def predictor(roads: Roads) -> nn.Linear:
    """A linear model that begins with travel times around 1: some losses learn no scale."""
    model = nn.Linear(FEATURES, len(roads.roads))
    nn.init.ones_(model.bias)
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
def regret(model: nn.Module, days: Days, roads: Roads) -> float:
    """In percent of the best routes' durations."""
    predicted = model(days.features)
    share = surrogates.normalized_regret(predicted, days.costs, roads.oracle(), true_objective=days.durations)
    return 100 * share.item()


class Result(NamedTuple):
    """The regrets of one loss, one for each seed."""

    name: str
    needs: str
    regrets: list[float]


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """The mean, and half the width of its 95 % interval."""
    count = len(values)
    return statistics.fmean(values), 1.96 * statistics.stdev(values) / math.sqrt(count) if count > 1 else 0.0


def draw(results: list[Result], options: Namespace, path: Path) -> None:
    """Mean regrets with their error bands, the best on top; the untrained model would not fit on the page."""
    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.subplots()
    ordered = sorted((result for result in results if result.needs), key=lambda result: mean_and_error(result.regrets))
    colours = {"costs": "#0969da", "routes": "#bf8700"}
    for needs, label in (("costs", "learns from travel times"), ("routes", "learns from routes alone")):
        axes.barh(0, 0, color=colours[needs], label=label)
    names = [result.name for result in ordered]
    means, errors = zip(*(mean_and_error(result.regrets) for result in ordered), strict=True)
    bars = axes.barh(names, means, xerr=errors, color=[colours[result.needs] for result in ordered], capsize=3)
    for bar, name in zip(bars, names, strict=True):
        bar.set_hatch("//" if name == BASELINE else "")
    axes.invert_yaxis()
    axes.set(xlabel=f"regret on unseen days, % (degree {options.degree}, noise {options.noise:g})")
    axes.legend(loc="upper right", frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)


def parse(argv: Sequence[str] | None) -> Namespace:
    parser = ArgumentParser(
        "predict_then_optimize.py", description=__doc__, formatter_class=ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add("--out", type=Path, default=Path("out"), metavar="DIR", help="folder for the picture")
    add("--losses", nargs="*", choices=NAMES, metavar="NAME", default=NAMES, help="which")
    add("--degree", type=int, default=6, help="of the polynomial; 1 = a linear model can be right")
    add("--noise", type=float, default=0.5, help="half-width of the multiplicative noise, in [0, 1)")
    add("--days", type=int, default=200, help="days to learn from")
    add("--epochs", type=int, default=20, help="passes over the days")
    add("--batch", type=int, default=32, help="days in a step")
    add("--lr", type=float, default=0.03, help="learning rate of Adam")
    add("--seeds", type=int, default=5, help="repetitions with new data and weights")
    add("--seed", type=int, default=0, help="the first of them")
    add("--quick", action="store_true", help="a few seconds: --days 60 --epochs 5 --seeds 2 where not given")
    if parser.parse_args(argv).quick:
        parser.set_defaults(days=60, epochs=5, seeds=2)
    options = parser.parse_args(argv)
    if min(options.days, options.epochs, options.batch, options.seeds, options.degree) < 1 or not options.losses:
        parser.error("--days, --epochs, --batch, --seeds and --degree must be positive, and --losses not empty")
    if not 0 < options.lr < math.inf or not 0 <= options.noise < 1:
        parser.error("--lr must be positive, and --noise in [0, 1)")
    return options


def run(options: Namespace) -> None:
    """Trains, prints the table, draws the picture."""
    started, roads = time.perf_counter(), Roads(SIDE)
    options.out.mkdir(parents=True, exist_ok=True)
    print(f"{SIDE}x{SIDE} grid, degree {options.degree}, noise {options.noise:g}, {options.days} days to learn from, ")
    print(f"{options.seeds} seeds. Ctrl-C ends the trainings early.\n")
    print(f"{'':24}{'learns from':>12}{'regret %':>10}{'+-':>7}{'gain':>9}{'+-':>7}{'seconds':>9}", flush=True)
    data = []
    for seed in range(options.seed, options.seed + options.seeds):
        days = synthetic(options.days + 1000, options.degree, options.noise, roads, seed)
        data.append((Days(*(x[: options.days] for x in days)), Days(*(x[options.days :] for x in days))))
    results: list[Result] = []

    def attempt(name: str) -> None:
        begun, regrets, needs = time.perf_counter(), [], ""
        for seed, (training, test) in enumerate(data, options.seed):
            torch.manual_seed(seed)
            model = predictor(roads)
            if name != "untrained":
                needs, loss = losses(roads, training)[name]
                train(model, loss, training, options, name)
            regrets.append(regret(model, test, roads))
        results.append(Result(name, needs, regrets))
        mean, error = mean_and_error(regrets)
        print(f"{name:24}{needs:>12}{mean:>10.2f}{error:>7.2f}", end="")
        before = [base - own for other in results if other.name == BASELINE != name
                  for base, own in zip(other.regrets, regrets, strict=True)]  # fmt: skip
        gain = "{:>9.2f}{:>7.2f}".format(*mean_and_error(before)) if before else ""
        print(f"{gain:16}{time.perf_counter() - begun:9.1f}", flush=True)

    with suppress(KeyboardInterrupt):
        for name in ["untrained", *options.losses]:
            attempt(name)
    if not results:
        raise KeyboardInterrupt
    print("\nThe gain is on least squares, seed by seed; +- are halves of 95 % intervals.")
    if len(results) == 1:  # the untrained model alone
        return
    draw(results, options, options.out / "predict_then_optimize.png")
    print(f"Wrote {options.out / 'predict_then_optimize.png'} ({time.perf_counter() - started:.0f} s).")


def main(argv: Sequence[str] | None = None) -> int:
    options = parse(argv)
    torch.set_num_threads(1)  # as fast as two for tensors this small, and it does not suffer on a busy machine
    try:
        run(options)
    except OSError as error:
        print(f"predict_then_optimize.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
