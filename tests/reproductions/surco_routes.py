"""SurCo's route planning: its gain over the heuristic of the paper, and over simpler and exact baselines.

The stochastic shortest path problem of Ferber et al. (arXiv 2210.12547), through examples/route_planning.py, which has
the methods, each with 60 shortest-path solves. Added here: the paper's own heuristic, the shortest path for mean + half
a standard deviation of each edge, and SurCo-zero on the z-score, as in the released code, in place of the probability,
whose gradient is 0 where a route is hopeless. Three settings, as the paper (5x5, means to 1) and the defaults of the
released code (10x10, means to 0.2) differ.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Callable, Sequence
from statistics import mean

import torch
from base import Claim, Row, Store, load, main, markdown, parse, parser, verdict
from route_planning import DEADLINES, METHODS, RELEASED, SETTINGS, Grid, Instance, city
from torch import Tensor
from tqdm import tqdm

import difflayers as dl

EXPERIMENT = "surco_routes"
PAPER = {"loose": 4.5, "normal": 6.5, "tight": 8.5}  # its text: % that SurCo-zero is above the heuristic
HEURISTIC, EXACT, SURCO, SIMPLE = "paper's heuristic", "all routes", "SurCo", "least expected time"
ON_PROBABILITY, ON_SCORE = "SurCo-zero, probability", "SurCo-zero, z-score"


def heuristic(oracle: dl.oracles.Oracle, instance: Instance) -> Tensor:
    """The shortest path for mean + half a standard deviation."""
    return oracle.solve(instance.mean + 0.5 * instance.variance.sqrt())


def on_score(oracle: dl.oracles.Oracle, instance: Instance, options: Namespace) -> Tensor:
    """SurCo-zero from random costs by Blackbox and Adam, on the z-score; the best route seen."""
    generator = torch.Generator().manual_seed(options.seed)
    weights = torch.randn(len(instance.mean), dtype=torch.float64, generator=generator).requires_grad_()
    layer, optimiser = dl.SolverLayer(oracle, rule=dl.Blackbox(1e3)), torch.optim.Adam([weights], 0.1)
    best, route = float("inf"), torch.zeros_like(instance.mean)
    for _ in range(options.calls // 2):  # a solve forward and one backward
        path = layer(weights.sigmoid())
        loss = (path @ instance.mean - instance.deadline) / (path @ instance.variance).sqrt()
        if loss.item() < best:
            best, route = loss.item(), path.detach()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return route


ALL: dict[str, Callable[[dl.oracles.Oracle, Instance, Namespace], Tensor]] = {
    HEURISTIC: lambda oracle, instance, options: heuristic(oracle, instance),
    SIMPLE: METHODS["least expected time"],
    "mean-variance sweep": METHODS["mean-variance sweep"],
    ON_PROBABILITY: METHODS["paper's SurCo-zero"],
    ON_SCORE: on_score,
    SURCO: METHODS["SurCo"],
}


def chances(setting: str, deadline: str, seed: int, options: Namespace) -> Row:
    """The probability of arriving in time, of each method in each city."""
    size, largest = SETTINGS[setting]
    grid, generator = Grid(size), torch.Generator().manual_seed(seed)
    oracle, every = grid.oracle(), grid.routes() if size <= 5 else None
    result: dict[str, list[float]] = {}
    for _ in tqdm(range(options.cities), desc=f"{setting}, {deadline}", disable=None, leave=False):
        average, variance = city(grid, largest, generator)
        instance = Instance(average, variance, DEADLINES[deadline] * float(oracle.solve(average) @ average))
        settings = Namespace(calls=options.calls, starts=2, seed=seed)
        found = {name: method(oracle, instance, settings) for name, method in ALL.items()}
        if every is not None:
            found[EXACT] = every[instance.late(every).argmin()]
        for name, route in found.items():
            result.setdefault(name, []).append(round(-float(instance.late(route)), 7))
    return {"chances": result}


def pooled(content: Row, setting: str, deadline: str) -> dict[str, list[float]]:
    """The probabilities of all seeds together."""
    result: dict[str, list[float]] = {}
    for row in content["rows"]:
        if (row["setting"], row["deadline"]) == (setting, deadline):
            for name, found in row["chances"].items():
                result.setdefault(name, []).extend(found)
    return result


def cells(content: Row) -> dict[tuple[str, str], dict[str, list[float]]]:
    """Of each setting and deadline."""
    keys = dict.fromkeys((row["setting"], row["deadline"]) for row in content["rows"])
    return {key: pooled(content, *key) for key in keys}


def gain(found: Sequence[dict[str, list[float]]], method: str, base: str) -> list[float]:
    """By how much a method is above another, in points, for each city: the mean of the deadlines."""
    by_deadline = [[100 * (a - b) for a, b in zip(cell[method], cell[base], strict=True)] for cell in found]
    return [mean(city) for city in zip(*by_deadline, strict=False)]


def above_paper(found: dict[str, dict[str, list[float]]]) -> list[float]:
    """By how many per cent the gain over the heuristic is above the one in the paper, for each city."""
    by_deadline = [
        [100 * (a / b - 1) - PAPER[deadline] for a, b in zip(cell[ON_SCORE], cell[HEURISTIC], strict=True)]
        for deadline, cell in found.items()
    ]
    return [mean(city) for city in zip(*by_deadline, strict=False)]


def table(content: Row) -> str:
    """Mean probabilities, and the gain over the heuristic."""
    names = [*ALL, EXACT]
    lines = []
    for (setting, deadline), found in cells(content).items():
        shown = [f"{mean(found[name]):.4f}" if name in found else "" for name in names]
        ours = f"{100 * (mean(found[SURCO]) / mean(found[HEURISTIC]) - 1):+.1f}"
        theirs = f"{100 * (mean(found[ON_SCORE]) / mean(found[HEURISTIC]) - 1):+.1f}"
        released = RELEASED.get((setting, deadline))
        lines.append([setting, deadline, *shown, f"{released:.4f}" if released else "", theirs, ours,
                      f"{PAPER[deadline]:+.1f}"])  # fmt: skip
    head = ["streets", "deadline", *names, "released code", "SurCo-zero, z-score, %", "SurCo, %", "paper, %"]
    return markdown(head, lines)


def claims(content: Row) -> list[Claim]:
    """What the paper says, and what it does not compare with."""
    result = []
    for setting, text in (("5x5, means to 1", "as printed in the paper"), ("10x10, means to 0.2", "released code")):
        found = {deadline: cell for (name, deadline), cell in cells(content).items() if name == setting}

        def against(method: str, base: str, found: dict[str, dict[str, list[float]]] = found) -> str:
            return verdict(gain(list(found.values()), method, base), " points", 2)

        if found:
            end = f", {setting} ({text})"
            result += [
                Claim(f"SurCo-zero (probability, as in the paper) is better than the heuristic{end}",
                      against(ON_PROBABILITY, HEURISTIC)),
                Claim(f"SurCo-zero (z-score) is better than the heuristic{end}", against(ON_SCORE, HEURISTIC)),
                Claim(f"SurCo-zero's gain over the heuristic is that of the paper, 4.5 to 8.5 %, or more{end}",
                      verdict(above_paper(found), " %")),
                Claim(f"SurCo of this library is better than the heuristic{end}", against(SURCO, HEURISTIC)),
                Claim(f"SurCo-zero (z-score) is better than the route of least expected time{end}",
                      against(ON_SCORE, SIMPLE)),
                Claim(f"SurCo of this library is better than the route of least expected time{end}",
                      against(SURCO, SIMPLE)),
            ]  # fmt: skip
    return result


def run(options: Namespace) -> str:
    """Everything that is not there yet."""
    store = Store(
        options,
        EXPERIMENT,
        {"cities": options.cities, "calls": options.calls, "methods": list(ALL)},
        ("ortools", "scipy"),
    )
    jobs = [(setting, at, seed) for seed in range(options.seeds) for setting in options.settings for at in DEADLINES]
    for setting, deadline, seed in tqdm(jobs, desc="rows", dynamic_ncols=True, disable=None):

        def compute(setting: str = setting, deadline: str = deadline, seed: int = seed) -> Row:
            return chances(setting, deadline, seed, options)

        store.row({"setting": setting, "deadline": deadline, "seed": seed}, compute)
    content = load(options.out, EXPERIMENT)
    assert content is not None
    return table(content)


def options(argv: Sequence[str] | None) -> Namespace:
    arguments = parser("surco_routes.py", __doc__, seeds=3)
    arguments.add_argument("--cities", type=int, default=25, help="random cities of each seed and setting")
    arguments.add_argument("--calls", type=int, default=60, help="shortest-path solves of a method")
    arguments.add_argument(
        "--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS), metavar="NAME", help="which"
    )
    return parse(arguments, argv, cities=3, seeds=1)


if __name__ == "__main__":
    sys.exit(main("surco_routes.py", options(None), run))
