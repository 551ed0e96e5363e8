"""Plans the route that most probably arrives in time: a nonlinear objective over shortest paths, through SurCo.

The stochastic shortest path problem of Ferber et al., "SurCo: Learning Linear Surrogates for Combinatorial Nonlinear
Optimization Problems", ICML 2023, arXiv 2210.12547: on a grid of streets the times of the edges are independent and
normal, and a route from corner to corner is to arrive before a deadline of 0.9, 1 or 1.1 times the least expected
time. The probability depends on the sum of the means and on that of the variances, so no edge costs give it exactly;
SurCo finds costs whose shortest path is good for it. Beside it: the route of least expected time (one solve), a sweep
over the weight of the variance, the paper's own algorithm, all at the same number of shortest-path solves, and on 5x5
grids the best of all 8512 routes. What is simple and often enough good, the least expected time, is in the table too.
"""

from __future__ import annotations

import sys
import time
from argparse import Namespace
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import command
import numpy as np
import torch
from torch import Tensor

import difflayers as dl
from difflayers.surrogates import SurCo

try:
    from matplotlib.figure import Figure  # without pyplot: it draws with Agg and needs no display
    from tqdm import tqdm
except ImportError as error:
    sys.exit(f"route_planning.py: {error}; run: pip install 'difflayers[solvers,examples]'")

DEADLINES = {"tight": 0.9, "normal": 1.0, "loose": 1.1}  # times the least expected time
# what the released SurCo-zero reached when it was run, on 25 other cities: mean probability by setting and deadline
RELEASED = {
    ("5x5, means to 0.2", "tight"): 0.4635, ("5x5, means to 0.2", "normal"): 0.4983,
    ("5x5, means to 0.2", "loose"): 0.5307, ("5x5, means to 1", "tight"): 0.3658,
    ("5x5, means to 1", "normal"): 0.4883, ("5x5, means to 1", "loose"): 0.6063,
    ("10x10, means to 0.2", "tight"): 0.4455, ("10x10, means to 0.2", "normal"): 0.4971,
    ("10x10, means to 0.2", "loose"): 0.5480,
}  # fmt: skip
SETTINGS = {"5x5, means to 0.2": (5, 0.2), "5x5, means to 1": (5, 1.0), "10x10, means to 0.2": (10, 0.2)}


class Grid:
    """Streets of a square grid, one edge each way; routes go from the first corner to the last."""

    def __init__(self, size: int) -> None:
        self.size, self.nodes = size, size * size
        at = np.arange(self.nodes).reshape(size, size)
        across, down = (at[:, :-1], at[:, 1:]), (at[:-1], at[1:])
        pairs = [np.stack([a.ravel(), b.ravel()], 1) for a, b in (across, down)]
        streets = np.concatenate(pairs)
        self.edges = np.concatenate([streets, streets[:, ::-1]])  # [edges, 2], street s is edge s and s + len(streets)
        self.streets = len(streets)

    def oracle(self) -> dl.oracles.ShortestPath:
        """The shortest path from corner to corner."""
        return dl.oracles.ShortestPath(self.edges, 0, self.nodes - 1, num_nodes=self.nodes)

    def routes(self) -> Tensor:
        """Every simple path, [routes, edges]; 8512 on 5x5, hopelessly many on larger grids."""
        leaving: list[list[tuple[int, int]]] = [[] for _ in range(self.nodes)]
        for e, (a, b) in enumerate(self.edges):
            leaving[int(a)].append((e, int(b)))
        found: list[list[int]] = []

        def walk(node: int, seen: set[int], path: list[int]) -> None:
            if node == self.nodes - 1:
                found.append(path)
                return
            for e, following in leaving[node]:
                if following not in seen:
                    walk(following, seen | {following}, [*path, e])

        walk(0, {0}, [])
        result = torch.zeros(len(found), len(self.edges), dtype=torch.float64)
        for row, path in zip(result, found, strict=True):
            row[path] = 1.0
        return result


class Instance(NamedTuple):
    """Means and variances of the edges, and the deadline."""

    mean: Tensor
    variance: Tensor
    deadline: float

    def late(self, routes: Tensor) -> Tensor:
        """Minus the probability that routes [..., edges] arrive in time."""
        spread = (routes @ self.variance).sqrt()
        return -torch.special.ndtr((self.deadline - routes @ self.mean) / spread)


def city(grid: Grid, largest_mean: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Means in [0.1, largest_mean], variances smaller where the mean is large."""
    mean = 0.1 + (largest_mean - 0.1) * torch.rand(grid.streets, generator=generator, dtype=torch.float64)
    variance = (0.1 + 0.2 * torch.rand(grid.streets, generator=generator, dtype=torch.float64)) * (1 - mean)
    return mean.repeat(2), variance.repeat(2).clamp(min=1e-3)  # both ways alike


def least_mean(oracle: dl.oracles.Oracle, instance: Instance, options: Namespace) -> Tensor:
    """The route of least expected time."""
    return oracle.solve(instance.mean)


def sweep(oracle: dl.oracles.Oracle, instance: Instance, options: Namespace) -> Tensor:
    """The best of the shortest paths for mean + k variance, k from 0 to 2."""
    weights = torch.linspace(0, 2, options.calls, dtype=torch.float64)[:, None]
    paths = oracle.solve(instance.mean + weights * instance.variance)
    return paths[instance.late(paths).argmin()]


def paper(oracle: dl.oracles.Oracle, instance: Instance, options: Namespace) -> Tensor:
    """SurCo-zero as the paper has it: random costs, Blackbox, Adam; but the best route seen is kept."""
    generator = torch.Generator().manual_seed(options.seed)
    weights = torch.randn(len(instance.mean), dtype=torch.float64, generator=generator).requires_grad_()
    layer, optimiser = dl.SolverLayer(oracle, rule=dl.Blackbox(1e3)), torch.optim.Adam([weights], 0.1)
    best, route = 0.0, torch.zeros_like(instance.mean)
    for _ in range(options.calls // 2):  # a solve forward and one backward
        path = layer(weights.sigmoid())
        loss = instance.late(path)
        if loss.item() < best:
            best, route = loss.item(), path.detach()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return route


def surco(oracle: dl.oracles.Oracle, instance: Instance, options: Namespace) -> Tensor:
    """SurCo of this library, from the route of least expected time."""
    generator = torch.Generator().manual_seed(options.seed)
    search = SurCo(oracle, starts=options.starts)
    found = search.solve(instance.late, costs=instance.mean, oracle_calls=options.calls, generator=generator)
    if found.status == "interrupted":  # it returns its best; here Ctrl-C ends the whole comparison
        raise KeyboardInterrupt
    return found.solution


METHODS: dict[str, Callable[[dl.oracles.Oracle, Instance, Namespace], Tensor]] = {
    "least expected time": least_mean,
    "mean-variance sweep": sweep,
    "paper's SurCo-zero": paper,
    "SurCo": surco,
}


class Cell(NamedTuple):
    """Mean probability, of one setting and deadline, by method; and how far the worst instance is from the best."""

    probability: dict[str, float]
    gap: float


def draw(grid: Grid, cities: dict[str, tuple[Instance, dict[str, Tensor]]], path: Path) -> None:
    """The routes in a city for every deadline; the redder a street, the more its time varies."""
    columns = max(len(routes) for _, routes in cities.values())
    figure = Figure(figsize=(3.2 * columns, 3.4 * len(cities)), layout="constrained")
    panels = figure.subplots(len(cities), columns, squeeze=False)
    for row, (label, (instance, routes)) in zip(panels, cities.items(), strict=True):
        redness = (instance.variance / instance.variance.max()).tolist()
        for axes, (name, route) in zip(row, routes.items(), strict=True):
            for e, (a, b) in enumerate(grid.edges):
                (y0, x0), (y1, x1) = divmod(int(a), grid.size), divmod(int(b), grid.size)
                if e < grid.streets:
                    colour = (0.9, 0.9 * (1 - redness[e]), 0.9 * (1 - redness[e]))
                    axes.plot([x0, x1], [y0, y1], color=colour, linewidth=1.5, zorder=1)
                if route[e] > 0.5:
                    axes.annotate("", (x1, y1), (x0, y0), arrowprops={"arrowstyle": "->", "color": "#0969da", "lw": 2})
            mean, spread = float(route @ instance.mean), float(route @ instance.variance) ** 0.5
            chance = -100 * float(instance.late(route))
            axes.set_title(
                f"{name}, {label} ({instance.deadline:.2f})\n{mean:.2f} ± {spread:.2f}: {chance:.2f} %", size=9
            )
            axes.set(aspect="equal")
            axes.invert_yaxis()
            axes.axis("off")
    figure.savefig(path, dpi=110)


def parse(argv: Sequence[str] | None) -> Namespace:
    parser = command.Parser(__file__, __doc__, seed="of the cities and of the searches", quick={"cities": 3})
    add = parser.add_argument
    add("--cities", type=int, default=25, help="random cities in each setting")
    add("--calls", type=int, default=60, help="shortest-path solves of a method")
    add("--starts", type=int, default=2, help="of SurCo")
    options = parser.options(argv)
    if min(options.cities, options.starts) < 1 or options.calls < 2:
        parser.error("--cities and --starts must be positive, --calls at least 2")
    return options


def run(options: Namespace) -> Path:
    """Plans, prints the table, draws the picture."""
    names, cells, worst = [*METHODS, "all 8512 routes"], [], 0.0
    print(f"{'probability of arriving in time':34}" + "".join(f"{name:>21}" for name in names) + f"{'worst gap':>12}")
    for setting, (size, largest) in SETTINGS.items():
        grid, generator = Grid(size), torch.Generator().manual_seed(options.seed)
        oracle, routes = grid.oracle(), grid.routes() if size <= 5 else None
        cities = [city(grid, largest, generator) for _ in range(options.cities)]
        drawn: dict[str, tuple[Instance, dict[str, Tensor]]] = {}
        for label, factor in DEADLINES.items():
            sums, found = dict.fromkeys(names, 0.0), {}
            seconds, gap, most = 0.0, 0.0, 0.0
            for mean, variance in tqdm(cities, desc=f"{setting}, {label}", disable=None, leave=False):
                instance = Instance(mean, variance, factor * float(oracle.solve(mean) @ mean))
                found = {}
                for name, method in METHODS.items():
                    begun = time.perf_counter()
                    found[name] = method(oracle, instance, options)
                    seconds += time.perf_counter() - begun if name == "SurCo" else 0.0
                if routes is not None:
                    found["all 8512 routes"] = routes[instance.late(routes).argmin()]
                    gap = max(gap, float(instance.late(found["SurCo"]) - instance.late(found["all 8512 routes"])))
                for name, route in found.items():
                    sums[name] -= float(instance.late(route)) / len(cities)
                won = float(instance.late(found["least expected time"]) - instance.late(found["SurCo"]))
                if won > most or label not in drawn:  # the city in which the choice matters most
                    most, drawn[label] = won, (instance, found)
            values = "".join(f"{sums[name]:21.5f}" if name in found else f"{'':21}" for name in names)
            cells.append((sums, RELEASED.get((setting, label))))
            worst = max(worst, gap)
            print(f"{setting + ', ' + label:34}{values}" + (f"{gap:12.1e}" if routes is not None else ""), flush=True)
        print(f"{'':6}SurCo: {1000 * seconds / len(cities):.1f} ms for {options.calls} solves")
        draw(grid, drawn, options.out / "route_planning.png")
    print(f"\nThe gap is that of SurCo's route to the best of all, in the worst city: at most {worst:.1e}.")
    for name in list(METHODS)[:-1]:
        held = sum(sums["SurCo"] >= sums[name] - 1e-12 for sums, _ in cells)
        print(f"SurCo is at least as good as {name} in {held} of {len(cells)} cells.")
    quoted = [(sums["SurCo"], value) for sums, value in cells if value is not None]
    held = sum(ours >= value for ours, value in quoted)
    print(f"Other cities, so no comparison: above the released SurCo-zero in {held} of {len(quoted)} cells.")
    return options.out / "route_planning.png"


def main(argv: Sequence[str] | None = None) -> int:
    options = parse(argv)
    torch.set_num_threads(1)  # as fast as two for tensors this small, and it does not suffer on a busy machine
    return command.run(__file__, run, options)


if __name__ == "__main__":
    sys.exit(main())
