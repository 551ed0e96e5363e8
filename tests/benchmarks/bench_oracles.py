"""Times the graph oracles, and training steps through them, against PyEPO with its OR-Tools backend.

    python tests/benchmarks/bench_oracles.py --quick

Batches of 64 rows on one core, float32 costs. A training step is a linear predictor, the layer or loss, backward.
Solutions and gradients are compared before anything is timed. Without PyEPO only our times are shown.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from bench_sorting import table
from measure import machine, side_by_side
from torch import Tensor, nn

import difflayers as dl
from difflayers import oracles

BATCH, FEATURES, LAMBDA = 64, 5, 10.0
SIZES = {5: 5, 12: 10, 30: 50}  # nodes a side, and how many times faster than PyEPO to be


def pyepo_model(n: int) -> Any:
    """PyEPO's shortest path on an n x n grid by OR-Tools' GLOP, or None when it is not installed."""
    try:
        from pyepo.model.ort import shortestPathModel
    except ImportError:
        return None
    return shortestPathModel((n, n))


def spo_plus(oracle: Any) -> Callable[..., Tensor] | None:
    """Our SPO+ loss, where this version has it."""
    kind = getattr(dl.losses, "SPOPlus", None) or getattr(getattr(dl, "surrogates", None), "SPOPlus", None)
    return None if kind is None else kind(oracle)


def step(predictor: nn.Module, features: Tensor, loss: Callable[[Tensor], Tensor]) -> Callable[[], Tensor]:
    """One training step without the optimiser: returns the gradient of the predictor's bias."""

    def run() -> Tensor:
        predictor.zero_grad()
        loss(predictor(features)).backward()
        return predictor.bias.grad  # pyright: ignore[reportReturnType]

    return run


def contenders(n: int) -> tuple[dict[str, Callable[[], Tensor]], dict[str, Callable[[], Tensor]]]:
    """Ours and PyEPO's: a solve of the batch, and the training steps."""
    torch.manual_seed(n)
    edges = oracles.grid_edges(n, n)
    oracle = oracles.ShortestPath(edges, 0, n * n - 1, num_nodes=n * n)
    costs, features = torch.rand(BATCH, len(edges)), torch.randn(BATCH, FEATURES)
    solutions = oracle.solve(costs)
    optimum = (costs * solutions).sum(1, keepdim=True)
    predictor = nn.Linear(FEATURES, len(edges))
    with torch.no_grad():
        predictor.bias += 1.0

    def regret(layer: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        return lambda predicted: ((layer(predicted) * costs).sum(1, keepdim=True) - optimum).mean()

    layer = dl.SolverLayer(oracle, rule=dl.Blackbox(LAMBDA))
    ours = {
        "solve": lambda: oracle.solve(costs),
        "Blackbox step": step(predictor, features, regret(layer)),
    }
    plus = spo_plus(oracle)
    if plus is not None:
        ours["SPO+ step"] = step(predictor, features, lambda predicted: plus(predicted, costs, solutions).mean())
    model = pyepo_model(n)
    if model is None:
        return ours, {}
    from pyepo.func import SPOPlus, blackboxOpt

    def loop() -> Tensor:
        found = []
        for row in costs:
            model.setObj(row)
            found.append(torch.as_tensor(model.solve()[0]))
        return torch.stack(found)

    box = blackboxOpt(model, lambd=LAMBDA, processes=1)
    theirs = {"solve": loop, "Blackbox step": step(predictor, features, regret(box))}
    if plus is not None:
        spop = SPOPlus(model, processes=1)
        theirs["SPO+ step"] = step(predictor, features, lambda predicted: spop(predicted, costs, solutions, optimum))
    return ours, theirs


def against_pyepo(seconds: float) -> str:
    """Milliseconds a batch of both, and the ratio against the aim."""
    rows = []
    for n, aim in SIZES.items():
        ours, theirs = contenders(n)
        for name, run in ours.items():
            if name not in theirs:
                each = side_by_side({"ours": run}, seconds)["ours"]
                rows.append([f"{n} x {n}", name, f"{1e3 * each:.3g}", "", "", "", ""])
                continue
            difference = (run() - theirs[name]()).abs().max().item()
            times = side_by_side({"ours": run, "PyEPO": theirs[name]}, seconds)
            ratio = times["PyEPO"] / times["ours"]
            rows.append(
                [f"{n} x {n}", name, f"{1e3 * times['ours']:.3g}", f"{1e3 * times['PyEPO']:.3g}", f"{ratio:.0f}x",
                 f"{aim}x, {'reached' if ratio >= aim else 'missed'}", f"{difference:.1g}"]
            )  # fmt: skip
            print("  ".join(rows[-1]), file=sys.stderr, flush=True)
    header = ["grid", "work", "ours, ms a batch", "PyEPO, ms", "faster", "aim", "largest difference"]
    return table(rows, header)


def each_oracle(seconds: float) -> str:
    """Microseconds a row of every graph oracle."""
    complete = torch.combinations(torch.arange(20))
    grid = oracles.grid_edges(10, 10)
    supplies = torch.zeros(100)
    supplies[0], supplies[-1] = 5.0, -5.0
    looped = torch.cat([grid, grid.flip(1)])
    kinds: dict[str, Any] = {
        "ShortestPath, acyclic, 10 x 10 grid": oracles.ShortestPath(grid, 0, 99, num_nodes=100),
        "ShortestPath, Dijkstra, both directions": oracles.ShortestPath(looped, 0, 99, num_nodes=100),
        "ShortestPath, Bellman-Ford, both directions": oracles.ShortestPath(
            looped, 0, 99, num_nodes=100, allow_negative=True
        ),
        "GridShortestPath, 8 neighbours, 12 x 12": oracles.GridShortestPath((12, 12), neighbors=8),
        "GridShortestPath, 8 neighbours, 30 x 30": oracles.GridShortestPath((30, 30), neighbors=8),
        "Assignment, n = 20": oracles.Assignment(20),
        "Assignment, n = 100": oracles.Assignment(100),
        "Permutation, n = 100": oracles.Permutation(100),
        "MinimumSpanningTree, complete graph of 20": oracles.MinimumSpanningTree(complete, 20),
        "MinCostFlow, 10 x 10 grid": oracles.MinCostFlow(grid, torch.full((180,), 3), supplies, num_nodes=100),
    }
    rows = []
    for name, oracle in kinds.items():
        costs = torch.rand(BATCH, *oracle.cost_shape)
        each = side_by_side({name: lambda oracle=oracle, costs=costs: oracle.solve(costs)}, seconds)[name]
        rows.append([name, f"{1e6 * each / BATCH:.1f}"])
    return table(rows, ["oracle", "us a row"])


def main(arguments: list[str] | None = None) -> int:
    """Runs the benchmarks; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of the time")
    parser.add_argument("--untested", action="store_true", help="do not run the oracles' tests first")
    options = parser.parse_args(arguments)
    root = Path(__file__).resolve().parents[2]
    if not options.untested:
        tests = [sys.executable, "-m", "pytest", "-q", "-x", "tests/oracles/test_graph_oracles.py"]
        if subprocess.run(tests, cwd=root, check=False).returncode != 0:
            print("bench_oracles: the oracles' tests fail; numbers of wrong solvers are not reported", file=sys.stderr)
            return 1
    torch.set_num_threads(1)
    seconds = 0.1 if options.quick else 1.0
    parts = ["\n".join(f"- {line}" for line in machine(("pyepo", "ortools", "scipy", "numpy")))]
    if pyepo_model(2) is None:
        parts.append("PyEPO is not installed, so that only our times are shown: pip install pyepo==2.2.7")
    parts += ["### Shortest paths against PyEPO", against_pyepo(seconds)]
    parts += ["### Each", each_oracle(seconds / 4)]
    print("\n\n".join(parts))
    return 0


if __name__ == "__main__":
    sys.exit(main())
