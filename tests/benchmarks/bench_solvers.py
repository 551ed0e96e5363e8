"""Times the oracles on OR-Tools against PyEPO's models; prints a Markdown table.

    python tests/benchmarks/bench_solvers.py

One thread, a batch of 64 random costs in float64, milliseconds for one row; PyEPO's rows are solved one after another
with setObj and solve, as it does in training with one process. Contenders take turns. PyEPO has no model on open
solvers for the problems without a ratio; there OR-Tools as one would use it by hand (the model built for every row)
stands in. A second table says what certificates save while a predictor is trained.
"""

from __future__ import annotations

import argparse
import importlib.util
import time
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


def polytope(kind: str) -> tuple[str, dict[str, Any]]:
    """A linear program in which certificates are tried: its name and arguments."""
    random = np.random.default_rng(0)
    if kind == "packing":
        matrix = random.random((30, 60)) * (random.random((30, 60)) < 0.3)
        return "packing, 60 variables, 30 rows", {"A_ub": matrix, "b_ub": np.ones(30), "bounds": (0, 1)}
    if kind == "matching":
        rows, columns = np.kron(np.eye(8), np.ones((1, 8))), np.kron(np.ones((1, 8)), np.eye(8))
        return "matching of 8 to 8", {"A_eq": np.concatenate([rows, columns]), "b_eq": np.ones(16)}
    n = 5 if kind == "path" else 12
    tails, heads = oracles.grid_edges(n, n).numpy().T
    incidence, supply = np.zeros((n * n, len(tails))), np.zeros(n * n)
    incidence[tails, np.arange(len(tails))], incidence[heads, np.arange(len(tails))] = 1.0, -1.0
    supply[0], supply[-1] = 1.0, -1.0
    return f"path over a {n} x {n} grid", {"A_eq": incidence, "b_eq": supply}


def training(arguments: dict[str, Any], certificates: int, epochs: int) -> tuple[float, float, float]:
    """Trains a linear predictor by SPO+: processor seconds, the last loss, and the part of the rows that was certified.

    100 instances in shuffled batches of 25, Adam at 0.01; costs of a polynomial of the features with noise, as those of
    PyEPO's generator.
    """
    import difflayers as dl

    oracle = oracles.LinearProgram(**arguments, certificates=certificates)
    generator, n = torch.Generator().manual_seed(0), oracle.cost_shape[0]
    features = torch.randn(100, 5, generator=generator, dtype=torch.float64)
    mixing = (torch.rand(5, n, generator=generator) < 0.5).double()
    costs = ((features @ mixing / 5**0.5 + 3) ** 4 / 3.5**4 + 1) * (
        0.5 + torch.rand(100, n, generator=generator, dtype=torch.float64)
    )
    costs = -costs if "A_ub" in arguments else costs
    solutions = oracle.solve(costs)
    model, loss = torch.nn.Linear(5, n, dtype=torch.float64), dl.losses.SPOPlus(oracle)
    torch.nn.init.zeros_(model.weight)
    model.bias.data.copy_(costs.mean(0))
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    known = oracle.certified
    start, value = time.process_time(), torch.zeros(())
    for _ in range(epochs):
        for batch in torch.randperm(100, generator=generator).split(25):
            optimizer.zero_grad()
            value = loss(model(features[batch]), costs[batch], solutions[batch])
            value.backward()
            optimizer.step()
    return time.process_time() - start, value.item(), (oracle.certified - known) / (100 * epochs)


def drifting(
    arguments: dict[str, Any], certificates: int, size: float, count: int = 64, **settings: Any
) -> tuple[float, float, float]:
    """Rows whose costs walk by `size`, relative to their mean, in each of 30 steps: as `training`."""
    oracle = oracles.LinearProgram(**arguments, certificates=certificates, **settings)
    generator, n = torch.Generator().manual_seed(0), oracle.cost_shape[0]
    costs = 0.5 + torch.rand(count, n, generator=generator, dtype=torch.float64)
    costs = -costs if "A_ub" in arguments else costs
    start, total = time.process_time(), 0.0
    for _ in range(30):
        costs = costs + size * torch.randn(count, n, generator=generator, dtype=torch.float64)
        total += oracle.solve_batch(costs).objective.sum().item()
    return time.process_time() - start, total, oracle.certified / (count * 30)


def certificates(size: int = 1000) -> None:
    """Prints what certificates save."""
    print(
        f"\nLinearProgram(certificates={size}), ms of processor time a row. Training: a predictor by SPO+, 100 rows an"
    )
    print("epoch. Walk: 64 rows whose costs move by that much, of their mean, in each of 30 steps.\n")
    print("| program | work | without | with (ratio) | rows certified |\n|---|---|---|---|---|")
    for kind in ("packing", "matching", "path", "long path"):
        name, arguments = polytope(kind)
        drifting(arguments, 0, 0.0)  # warm up
        works: dict[str, Callable[[int], tuple[float, ...]]] = {
            "training, 60 epochs": lambda count, arguments=arguments: training(arguments, count, 60),
            "walk, 1 %": lambda count, arguments=arguments: drifting(arguments, count, 0.01),
            "walk, 0.1 %": lambda count, arguments=arguments: drifting(arguments, count, 0.001),
        }
        for work, run in works.items():
            (plain, value, *_), (seconds, same, part, *_) = run(0), run(size)
            assert abs(value - same) <= 1e-6 * abs(value), (kind, value, same)
            rows = 6000 if work.startswith("training") else 64 * 30
            own = f"{1e3 * seconds / rows:.3f} ({plain / seconds:.1f}x)"
            print(f"| {name} | {work} | {1e3 * plain / rows:.3f} | {own} | {part:.0%} |", flush=True)


def warm_starts(size: int = 256) -> None:
    """Prints what warm starts of PDLP save."""
    print(f"\nLinearProgram(method='pdlp', warm_starts={size}), ms of processor time a row, 8 rows that walk.\n")
    print("| program | work | without | with (ratio) |\n|---|---|---|---|")
    for kind, step in ((kind, step) for kind in ("packing", "matching", "long path") for step in (0.01, 0.001)):
        name, arguments = polytope(kind)
        plain, value, _ = drifting(arguments, 0, step, 8, method="pdlp")
        seconds, same, _ = drifting(arguments, 0, step, 8, method="pdlp", warm_starts=size)
        assert abs(value - same) <= 1e-4 * abs(value), (kind, value, same)
        each, own = 1e3 * plain / 240, 1e3 * seconds / 240
        print(f"| {name} | walk, {step:.1%} | {each:.3f} | {own:.3f} ({plain / seconds:.1f}x) |", flush=True)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=3.0, help="for each contender")
    parser.add_argument("--only-certificates", action="store_true", help="those and warm starts, not the other table")
    options = parser.parse_args()
    seconds = options.seconds
    torch.set_num_threads(1)
    print("\n".join(f"- {line}" for line in machine(("pyepo", "ortools", "scipy"))), "\n")
    if options.only_certificates:
        certificates()
        warm_starts()
        return
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
    certificates()
    warm_starts()


if __name__ == "__main__":
    main()
