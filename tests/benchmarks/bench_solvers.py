"""Times the oracles on OR-Tools against PyEPO's models; prints a Markdown table.

    python tests/benchmarks/bench_solvers.py

One thread, a batch of 64 random costs in float64, milliseconds for one row; PyEPO's rows are solved one after another
with setObj and solve, as it does in training with one process. Contenders take turns. PyEPO has no model on open
solvers for the problems without a ratio; there OR-Tools as one would use it by hand (the model built for every row)
stands in.
"""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from measure import machine, side_by_side

from difflayers import oracles

BATCH = 64


def pyepo(kind: str, *arguments: Any) -> Any:
    """PyEPO's knapsack model on an open solver, or None where PyEPO is not installed."""
    if importlib.util.find_spec("pyepo") is None:
        return None
    from pyepo.model.ort import knapsackCpModel, knapsackModel  # pyright: ignore[reportMissingImports]

    return {"SCIP": knapsackModel, "CP-SAT": knapsackCpModel}[kind](*arguments)


def each(model: Any, costs: np.ndarray) -> Callable[[], object]:
    """Solves every row with a model of PyEPO (which maximises profits)."""

    def run() -> None:
        for cost in costs:
            model.setObj(-cost)
            model.solve()

    return run


def knapsack(constraints: int, capacity: float, decimals: int) -> tuple[str, dict[str, Callable[[], object]], int]:
    """50 items whose weights are those of PyEPO's generator, integers or with decimals."""
    random = np.random.default_rng(0)
    weights = random.integers(300, 800, (constraints, 50)) / 10**decimals
    weights = weights.round().astype(int) if decimals == 0 else weights
    room = np.full(constraints, capacity)
    costs = -random.random((BATCH, 50))
    oracle, batch = oracles.Knapsack(weights, room), torch.from_numpy(costs)
    contenders: dict[str, Callable[[], object]] = {"ours": lambda: oracle.solve(batch)}
    expected = oracle.solve_batch(batch).objective.sum().item()
    for kind in ("SCIP", "CP-SAT"):
        if kind == "CP-SAT" and decimals:
            continue  # its model takes integer weights only
        model = pyepo(kind, weights, room)
        if model is not None:
            found = 0.0
            for cost in costs:
                model.setObj(-cost)
                found += model.solve()[1]
            assert abs(found + expected) < 1e-3, (kind, found, expected)
            contenders[f"PyEPO, {kind}"] = each(model, costs)
    what = f"knapsack, 50 items, {constraints} constraint{'s' * (constraints > 1)}, weights {weights.min():g} to "
    return f"{what}{weights.max():g}, capacity {capacity:g}", contenders, BATCH


def tour(n: int, rows: int) -> tuple[str, dict[str, Callable[[], object]], int]:
    """Points in the unit square."""
    random = np.random.default_rng(0)
    points = random.random((rows, n, 2))
    distances = np.linalg.norm(points[:, :, None] - points[:, None], axis=-1)
    first, second = np.triu_indices(n, 1)
    costs = torch.from_numpy(distances[:, first, second])
    oracle = oracles.TravelingSalesman(n)

    def by_hand() -> None:
        from ortools.sat.python import cp_model  # pyright: ignore[reportMissingImports]

        for cost in costs.tolist():
            model, arcs, terms = cp_model.CpModel(), [], []
            for i, j, length in zip(first.tolist(), second.tolist(), cost, strict=True):
                for tail, head in ((i, j), (j, i)):
                    arc = model.new_bool_var("")
                    arcs.append((tail, head, arc))
                    terms.append(length * arc)
            model.add_circuit(arcs)
            model.minimize(sum(terms))
            solver = cp_model.CpSolver()
            solver.parameters.num_workers = 1
            solver.solve(model)

    return f"tour, {n} nodes", {"ours": lambda: oracle.solve(costs), "CP-SAT by hand": by_hand}, rows


def generalized_assignment(rows: int) -> tuple[str, dict[str, Callable[[], object]], int]:
    """50 items, 4 bins, 15 % of slack."""
    random = np.random.default_rng(0)
    weights = random.integers(5, 30, 50)
    capacity = int(weights.sum() / 4 * 1.15)
    costs = random.random((rows, 50, 4))
    oracle, batch = oracles.GeneralizedAssignment(weights, [capacity] * 4), torch.from_numpy(costs)

    def by_hand() -> None:
        from ortools.linear_solver import pywraplp  # pyright: ignore[reportMissingImports]

        for cost in costs.tolist():
            solver = pywraplp.Solver.CreateSolver("SCIP")
            taken = [[solver.BoolVar("") for _ in range(4)] for _ in range(50)]
            for row in taken:
                solver.Add(sum(row) == 1)
            for j in range(4):
                solver.Add(sum(int(w) * row[j] for w, row in zip(weights, taken, strict=True)) <= capacity)
            solver.Minimize(
                sum(c * x for row, own in zip(cost, taken, strict=True) for c, x in zip(row, own, strict=True))
            )
            solver.Solve()

    name = "generalised assignment, 50 items, 4 bins"
    return name, {"ours": lambda: oracle.solve(batch), "SCIP by hand": by_hand}, rows


def linear(n: int, rows: int) -> tuple[str, dict[str, Callable[[], object]], int]:
    """A random program, 30 % dense."""
    from scipy.optimize import linprog  # pyright: ignore[reportMissingImports]

    random = np.random.default_rng(0)
    matrix = random.random((n // 2, n)) * (random.random((n // 2, n)) < 0.3)
    costs = -random.random((rows, n))
    oracle, batch = oracles.LinearProgram(matrix, np.ones(n // 2), bounds=(0, 1)), torch.from_numpy(costs)

    def scipy() -> None:
        for cost in costs:
            linprog(cost, matrix, np.ones(n // 2), bounds=(0, 1))

    name = f"linear program, {n} variables, {n // 2} rows"
    return name, {"ours": lambda: oracle.solve(batch), "scipy.optimize.linprog": scipy}, rows


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=3.0, help="for each contender")
    seconds = parser.parse_args().seconds
    torch.set_num_threads(1)
    print("\n".join(f"- {line}" for line in machine(("pyepo", "ortools", "scipy"))), "\n")
    if importlib.util.find_spec("pyepo") is None:
        print("PyEPO is not installed, so that knapsacks are compared with nothing: pip install pyepo==2.2.7\n")
    print("| problem | ours, ms | others, ms (ratio) |\n|---|---|---|")
    for name, contenders, rows in (
        knapsack(1, 1000.0, 1),
        knapsack(1, 10000, 0),
        knapsack(1, 100.0, 2),
        knapsack(2, 10000, 0),
        tour(10, 16),
        tour(20, 8),
        generalized_assignment(16),
        linear(40, 64),
        linear(200, 16),
    ):
        times = side_by_side(contenders, seconds)
        own = times.pop("ours")
        cells = [f"{other} {1e3 * time / rows:.3f} ({time / own:.1f}x)" for other, time in times.items()]
        print(f"| {name} | {1e3 * own / rows:.3f} | {', '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
