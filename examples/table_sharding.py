"""Places embedding tables on devices: a nonlinear latency over assignments with memory limits, through SurCo.

The embedding tables of a recommendation model are spread over devices so that the slowest device is as fast as
possible and no memory overflows: the first problem of Ferber et al., "SurCo: Learning Linear Surrogates for
Combinatorial Nonlinear Optimization Problems", ICML 2023, arXiv 2210.12547. Its measured latencies are not public, so
the tables here are synthetic (dimensions of 4 to 256, log-normal numbers of rows and of look-ups) and the latency is
a formula with what makes the real one hard: kernels that fuse the tables of a device take less than the sum of their
parts, and phases that all devices must finish cost the maximum over devices each.

The baseline is an honest one: a greedy placement by the latency itself, improved by local search (every move of one
table, every exchange of two, with random kicks out of local optima) until it has called the latency as often as SurCo
may. SurCo begins at the same greedy placement and polishes with `LocalSearch`: the same moves and exchanges, but those
first that the latency's slope promises most of. That local search alone and SurCo without it are in the table as
well, so that it shows what helps.
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
from difflayers.surrogates import LocalSearch, SurCo

try:
    from matplotlib.figure import Figure  # without pyplot: it draws with Agg and needs no display
    from tqdm import tqdm
except ImportError as error:
    sys.exit(f"table_sharding.py: {error}; run: pip install 'difflayers[solvers,examples]'")

DIMENSIONS = (4, 8, 16, 32, 64, 128, 256)
BATCH = 65536


class Tables(NamedTuple):
    """The tables of one model and the devices' memory.

    Attributes:
        dimension, rows, pooling: `[tables]`; pooling is the mean number of look-ups of a sample.
        memory: bytes of each device.
        devices: how many.
    """

    dimension: Tensor
    rows: Tensor
    pooling: Tensor
    memory: float
    devices: int

    @property
    def size(self) -> Tensor:
        """Bytes of each table."""
        return 4 * self.rows * self.dimension

    def phases(self, placements: Tensor) -> Tensor:
        """Milliseconds [..., devices, 2] of look-ups and of communication."""
        # look-ups move pooling x dimension numbers; tables of few rows stay in the cache
        missed = 1 - 0.7 * torch.exp(-self.rows / 1e5)
        moved = 4 * BATCH * self.pooling * self.dimension * missed / 1e9  # ms at 1 TB/s
        load = placements.transpose(-1, -2) @ moved
        count = placements.sum(-2)
        sent = 4 * BATCH * (placements.transpose(-1, -2) @ self.dimension) / 1e8  # ms at 100 GB/s
        # fused kernels: the more tables, the better the device is used; shifted so that the slope at 0 is finite
        look_ups = 4 * ((1 + load) ** 0.8 - 1) + 0.05 * count
        return torch.stack([look_ups, sent / 10], -1)

    def latency(self, placements: Tensor) -> Tensor:
        """Every phase ends with its slowest device."""
        return self.phases(placements).amax(-2).sum(-1)

    def slope(self, placements: Tensor) -> Tensor:
        """The gradient of a smooth maximum in place of the latency: all nearly slowest devices count."""
        with torch.enable_grad():
            at = placements.detach().requires_grad_()
            phases = self.phases(at)
            softness = 0.2 * phases.detach().amax(-2, keepdim=True)
            smooth = (softness * (phases / softness).logsumexp(-2, keepdim=True)).sum()
            return torch.autograd.grad(smooth, at)[0]


def model(tables: int, devices: int, generator: torch.Generator) -> Tables:
    """Random tables, and memory for 15 % more than them."""
    dimension = torch.tensor(DIMENSIONS, dtype=torch.float64)[
        torch.randint(len(DIMENSIONS), (tables,), generator=generator)
    ]
    noise = torch.randn(2, tables, generator=generator, dtype=torch.float64)
    rows, pooling = (13 + 1.5 * noise[0]).exp().clamp(1e3, 1e7), (1.5 + noise[1]).exp().clamp(1, 100)
    size = 4 * rows * dimension
    return Tables(dimension, rows, pooling, max(1.15 * float(size.sum()) / devices, 1.05 * float(size.max())), devices)


def assignments(tables: Tables) -> dl.oracles.GeneralizedAssignment:
    """Every table on one device within its memory, at least linear cost."""
    # megabytes, rounded so that what fits here fits in bytes; after a fifth of a second the best so far will do
    sizes, memory = (tables.size / 1e6).ceil().long(), int(tables.memory / 1e6)
    return dl.oracles.GeneralizedAssignment(sizes, [memory] * tables.devices, on_failure="nan", time_limit=0.2)


class Spent(Exception):
    """The evaluations are used up."""


class Counted:
    """The latency, up to so many evaluations; remembers the best placement, and what it has evaluated."""

    def __init__(self, tables: Tables, limit: int) -> None:
        self.tables, self.left = tables, limit
        self.known: dict[bytes, float] = {}
        self.lowest, self.placement = float("inf"), torch.empty(0)

    def __call__(self, placements: Tensor) -> Tensor:
        """Latencies of placements [B, tables, devices]; those evaluated before are free, as they are for SurCo."""
        keys = [placement.argmax(-1).numpy().tobytes() for placement in placements]
        new = list({key: row for row, key in reversed(list(enumerate(keys))) if key not in self.known}.values())
        allowed = new[: self.left]
        self.left -= len(allowed)
        for row, value in zip(allowed, self.tables.latency(placements[allowed]).tolist(), strict=True):
            self.known[keys[row]] = value
            if value < self.lowest:
                self.lowest, self.placement = value, placements[row].clone()
        if len(allowed) < len(new):
            raise Spent
        return torch.tensor([self.known[key] for key in keys], dtype=torch.float64)


def greedy(tables: Tables) -> tuple[Tensor, int]:
    """The largest tables first, each where the latency grows least; the placement and its evaluations."""
    count, devices = len(tables.rows), tables.devices
    for order in (tables.dimension * tables.pooling, tables.size):  # by size where the first does not fit
        placement, used = torch.zeros(count, devices, dtype=torch.float64), 0
        for t in order.argsort(descending=True, stable=True).tolist():
            trials = placement.repeat(devices, 1, 1)
            trials[torch.arange(devices), t, torch.arange(devices)] = 1.0
            latencies = tables.latency(trials)
            used += devices
            full = (placement.T @ tables.size + tables.size[t]) > tables.memory
            if bool(full.all()):
                break
            placement = trials[latencies.masked_fill(full, torch.inf).argmin()]
        else:
            return placement, used
    raise command.Failed("the greedy placement does not fit into the memory; another --seed, or fewer tables")


def neighborhood(tables: Tables) -> Callable[[Tensor], Tensor]:
    """Every move of one table and every exchange of two that fit, as a function of a placement."""
    count, devices = len(tables.rows), tables.devices
    moves = torch.cartesian_prod(torch.arange(count), torch.arange(devices), torch.tensor([-1]))
    pairs = torch.combinations(torch.arange(count))
    exchanges = torch.stack([pairs[:, 0], torch.full((len(pairs),), -1), pairs[:, 1]], 1)
    steps = torch.cat([moves, exchanges])  # [steps, (table, device, other table)]

    def neighbors(placement: Tensor) -> Tensor:
        devices_of = placement.argmax(-1)
        every = devices_of.repeat(len(steps), 1)
        row, other = torch.arange(len(steps)), steps[:, 2]
        swap = other >= 0
        every[row, steps[:, 0]] = torch.where(swap, devices_of[other.clamp(min=0)], steps[:, 1])
        every[row[swap], other[swap]] = devices_of[steps[swap, 0]]
        load = torch.zeros(len(steps), devices, dtype=torch.float64)
        load.scatter_add_(1, every, tables.size.expand(len(steps), -1))
        every = every[(load <= tables.memory).all(1) & (every != devices_of).any(1)]
        return torch.nn.functional.one_hot(every, devices).double()

    return neighbors


def searched(tables: Tables, start: Tensor, evaluations: int, generator: torch.Generator) -> Tensor:
    """Local search in random order, the best of every 16 that improves; from each local optimum on with three kicks."""
    evaluate, neighbors, at = Counted(tables, evaluations), neighborhood(tables), start
    try:
        while True:
            best, improved = float(evaluate(at[None])[0]), True
            while improved:
                improved = False
                near = neighbors(at)
                for some in near[torch.randperm(len(near), generator=generator)].split(16):
                    values = evaluate(some)
                    if float(values.min()) < best:
                        at, best, improved = some[values.argmin()], float(values.min()), True
                        break
            at = evaluate.placement
            for _ in range(3):
                near = neighbors(at)
                at = near[torch.randint(len(near), (), generator=generator)] if len(near) else at
    except Spent:
        return evaluate.placement


class Guided(Counted):
    """What difflayers' local search needs beside the values, for a run of it without SurCo."""

    def __init__(self, tables: Tables, limit: int, generator: torch.Generator) -> None:
        super().__init__(tables, limit)
        self.slope, self.generator, self.optima = tables.slope, generator, {}

    @property
    def best(self) -> Tensor:
        return self.placement.clone()


def guided(tables: Tables, start: Tensor, evaluations: int, generator: torch.Generator) -> Tensor:
    """The local search that SurCo polishes with, alone."""
    evaluate, improve = Guided(tables, evaluations, generator), LocalSearch(neighborhood(tables))
    try:
        evaluate(start[None])
        while evaluate.left > 0:
            left = evaluate.left
            improve(evaluate.best, evaluate)
            if evaluate.left == left:  # every neighbour of every neighbour is known
                break
    except Spent:
        pass
    return evaluate.placement


def surco(
    tables: Tables, start: Tensor, evaluations: int, generator: torch.Generator, polish: bool, calls: int
) -> Tensor:
    """SurCo from a start; the oracle's calls are limited too, for the run time's sake."""
    search = SurCo(
        assignments(tables),
        starts=2,
        objective_gradient=tables.slope,
        noise=0.15,
        polish=LocalSearch(neighborhood(tables)) if polish else None,
    )
    found = search.solve(tables.latency, start=start, evaluations=evaluations, oracle_calls=calls, generator=generator)
    if found.status == "interrupted":  # it returns its best; here Ctrl-C ends the whole comparison
        raise KeyboardInterrupt
    return found.solution


METHODS = ("greedy", "greedy + local search", "local search by slope", "SurCo without it", "SurCo")


def place(tables: Tables, options: Namespace, seed: int) -> dict[str, tuple[Tensor, float]]:
    """Placements and seconds, by method."""
    begun = time.perf_counter()
    start, used = greedy(tables)
    found = {"greedy": (start, time.perf_counter() - begun)}
    left = options.evaluations - used
    for name in METHODS[1:]:
        begun, generator = time.perf_counter(), torch.Generator().manual_seed(seed)
        if name == "greedy + local search":
            placement = searched(tables, start, left, generator)
        elif name == "local search by slope":
            placement = guided(tables, start, left, generator)
        else:
            placement = surco(tables, start, left, generator, name == "SurCo", options.calls)
        found[name] = placement, time.perf_counter() - begun
        assert bool((placement.T @ tables.size <= tables.memory * (1 + 1e-9)).all())
        assert bool((placement.sum(-1) == 1).all())
    return found


def draw(tables: Tables, found: dict[str, tuple[Tensor, float]], path: Path) -> None:
    """What every device does and holds, by method."""
    figure = Figure(figsize=(3.4 * len(found), 4), layout="constrained")
    for axes, (name, (placement, _)) in zip(figure.subplots(1, len(found), sharey=True), found.items(), strict=True):
        look_ups, sent = tables.phases(placement).T.numpy()
        at = np.arange(tables.devices)
        axes.bar(at, look_ups, color="#0969da", label="look-ups")
        axes.bar(at, sent, bottom=look_ups, color="#8c959f", label="communication")
        share = (placement.T @ tables.size / tables.memory * 100).round().int().tolist()
        axes.set_xticks(at, [f"{percent} %" for percent in share])
        axes.set(title=f"{name}\n{float(tables.latency(placement)):.2f} ms", xlabel="device: memory in use")
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel("milliseconds")
    figure.axes[0].legend(frameon=False)
    figure.savefig(path, dpi=110)


def parse(argv: Sequence[str] | None) -> Namespace:
    parser = command.Parser(
        __file__,
        __doc__,
        seed="of the tables and of the searches",
        quick={"models": 1, "evaluations": 600, "calls": 30},
    )
    add = parser.add_argument
    add("--tables", type=int, nargs="+", default=[20, 50], help="sizes of the models")
    add("--devices", type=int, default=4, help="devices")
    add("--models", type=int, default=6, help="random models of each size")
    add("--evaluations", type=int, default=4000, help="of the latency, for every method but greedy")
    add("--calls", type=int, default=60, help="of the oracle, at most")
    options = parser.options(argv)
    if min(options.models, options.calls) < 1 or min(options.tables) < 2 or options.devices < 2:
        parser.error("--models and --calls must be positive, --tables and --devices at least 2")
    if options.evaluations <= max(options.tables) * options.devices * 2:
        parser.error("--evaluations must be more than twice tables x devices: greedy alone needs that many")
    return options


def run(options: Namespace) -> Path:
    """Places, prints the table, draws the picture."""
    print(f"{'':10}{'mean latency, ms, and gain on greedy; at least as good as greedy + local search; seconds'}")
    for count in options.tables:
        generator = torch.Generator().manual_seed(options.seed)
        sums = {name: [0.0, 0.0, 0, 0.0] for name in METHODS}
        tables, found = None, {}
        for index in tqdm(range(options.models), desc=f"{count} tables", disable=None, leave=False):
            tables = model(count, options.devices, generator)
            found = place(tables, options, options.seed + index)
            values = {name: float(tables.latency(placement)) for name, (placement, _) in found.items()}
            for name, value in values.items():
                total = sums[name]
                total[0] += value / options.models
                total[1] += 100 * (1 - value / values["greedy"]) / options.models
                total[2] += value <= values["greedy + local search"] * (1 + 1e-9)
                total[3] += found[name][1] / options.models
        for name, (mean, gain, wins, seconds) in sums.items():
            print(
                f"T = {count:<5}{name:24}{mean:9.3f}{gain:8.2f} %{wins:5} of {options.models}{seconds:9.2f}", flush=True
            )
        assert tables is not None
        draw(tables, found, options.out / "table_sharding.png")
    return options.out / "table_sharding.png"


def main(argv: Sequence[str] | None = None) -> int:
    options = parse(argv)
    torch.set_num_threads(1)  # as fast as two for tensors this small, and it does not suffer on a busy machine
    return command.run(__file__, run, options)


if __name__ == "__main__":
    sys.exit(main())
