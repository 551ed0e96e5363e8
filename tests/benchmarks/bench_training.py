"""Times an epoch of decision-focused training against PyEPO with its OR-Tools models; prints a Markdown table.

    python tests/benchmarks/bench_training.py

One thread, batches of 64, float64. Both sides get the same features, costs, true solutions, linear model and steps of
gradient descent; the data are those of PyEPO's generators (degree 4, noise 0.5). Before the timing, all batches of an
epoch go through both at the same weights and the gradients of the linear model are compared: the table says by how much
they differ at most, relative to the largest entry. PyEPO runs as it does by default: GLOP for paths, SCIP for
knapsacks, rows one after another. Its SCIP stops within 1e-4 of the optimum, so that a row may have another solution;
such rows are counted and left out of the comparison. Contenders take turns; each shows its fastest epoch.
Without PyEPO (MIT, `pip install pyepo==2.2.7`) only our times are printed.
"""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from measure import machine, side_by_side
from torch import Tensor, nn

import difflayers as dl

BATCH, FEATURES, LAM, LEARNING_RATE = 64, 5, 10.0, 1e-2
TOLERANCE = 1e-5
PYEPO = importlib.util.find_spec("pyepo") is not None

Loss = Callable[[Tensor, "Data"], Tensor]  # of predicted costs (PyEPO's sign) and a batch


class Data(NamedTuple):
    """Features, costs (profits where PyEPO maximises), their best solutions and objectives."""

    features: Tensor
    costs: Tensor
    solutions: Tensor
    objectives: Tensor

    def batches(self) -> list[Data]:
        """Of 64 rows, always in the same order."""
        return [Data(*(part[i : i + BATCH] for part in self)) for i in range(0, len(self.features), BATCH)]


class Problem(NamedTuple):
    """An oracle, the same model in PyEPO (None where it is absent), the data, the aim; sign is -1 for profits."""

    name: str
    oracle: dl.oracles.Oracle
    peer: Any
    data: Data
    aim: float
    sign: float


def polynomial(rows: int, entries: int, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Features and costs as in the benchmarks of PyEPO (arXiv 2206.14234), degree 4 and noise 0.5."""
    features = random.normal(size=(rows, FEATURES))
    weights = random.binomial(1, 0.5, (entries, FEATURES))
    costs = ((features @ weights.T / np.sqrt(FEATURES) + 3) ** 4 + 1) / 3.5**4
    return features, costs * random.uniform(0.5, 1.5, costs.shape)


def with_solutions(oracle: dl.oracles.Oracle, features: np.ndarray, costs: np.ndarray, sign: float) -> Data:
    values = torch.from_numpy(costs)
    solutions = oracle.solve(sign * values)
    return Data(torch.from_numpy(features), values, solutions, (values * solutions).sum(1))


def path(side: int, rows: int, aim: float) -> Problem:
    """Shortest paths from corner to corner of a grid, right and down."""
    edges = dl.oracles.grid_edges(side, side)
    oracle = dl.oracles.ShortestPath(edges, 0, side * side - 1, num_nodes=side * side)
    data = with_solutions(oracle, *polynomial(rows, len(edges), np.random.default_rng(0)), 1.0)
    peer = None
    if PYEPO:
        from pyepo.model.ort import shortestPathModel  # pyright: ignore[reportMissingImports]

        peer = shortestPathModel((side, side))
        assert list(peer.arcs) == [tuple(edge) for edge in edges.tolist()]  # the costs mean the same
    return Problem(f"path, {side}x{side}, {len(edges)} edges", oracle, peer, data, aim, 1.0)


def knapsack(items: int, rows: int, aim: float) -> Problem:
    """One constraint; weights from 3.00 to 7.99, a fifth of which fits."""
    random = np.random.default_rng(0)
    weights = random.integers(300, 800, (1, items)) / 100
    room = np.array([round(float(weights.sum()) / 5, 1)])
    oracle = dl.oracles.Knapsack(weights, room)
    data = with_solutions(oracle, *polynomial(rows, items, random), -1.0)
    peer = None
    if PYEPO:
        from pyepo.model.ort import knapsackModel  # pyright: ignore[reportMissingImports]

        peer = knapsackModel(weights, room)
    return Problem(f"knapsack, {items} items", oracle, peer, data, aim, -1.0)


def losses(problem: Problem, method: str) -> tuple[Loss, Loss | None]:
    """The same loss, ours and PyEPO's, of predicted costs."""
    sign = problem.sign
    if method == "SPO+":
        own = dl.losses.SPOPlus(problem.oracle)

        def ours(predicted: Tensor, batch: Data) -> Tensor:
            return own(sign * predicted, sign * batch.costs, batch.solutions, sign * batch.objectives)

        if problem.peer is None:
            return ours, None
        from pyepo.func import SPOPlus  # pyright: ignore[reportMissingImports]

        other = SPOPlus(problem.peer)
        return ours, lambda predicted, batch: other(predicted, batch.costs, batch.solutions, batch.objectives[:, None])

    def regret(solutions: Tensor, batch: Data) -> Tensor:
        return (sign * ((solutions * batch.costs).sum(1) - batch.objectives)).mean()

    layer = dl.SolverLayer(problem.oracle, rule=dl.Blackbox(LAM))

    def through_layer(predicted: Tensor, batch: Data) -> Tensor:
        return regret(layer(sign * predicted), batch)

    if problem.peer is None:
        return through_layer, None
    from pyepo.func import blackboxOpt  # pyright: ignore[reportMissingImports]

    peer = blackboxOpt(problem.peer, lambd=LAM)
    return through_layer, lambda predicted, batch: regret(peer(predicted), batch)


def predictor(data: Data) -> nn.Linear:
    """The same linear model each time."""
    torch.manual_seed(0)
    model = nn.Linear(FEATURES, data.costs.shape[1], dtype=torch.float64)
    nn.init.ones_(model.bias)
    return model


def training(loss: Loss, data: Data) -> Callable[[], object]:
    """One epoch from the same weights: forward, backward, step."""
    batches, model = data.batches(), predictor(data)
    start = {name: value.clone() for name, value in model.state_dict().items()}

    def epoch() -> None:
        model.load_state_dict(start)
        optimiser = torch.optim.SGD(model.parameters(), LEARNING_RATE)
        for batch in batches:
            optimiser.zero_grad()
            loss(model(batch.features), batch).backward()
            optimiser.step()

    return epoch


def compare(problem: Problem, method: str, ours: Loss, theirs: Loss) -> tuple[float, int]:
    """The largest relative difference of the model's gradients, and the rows whose solutions differ.

    Those are found through the gradients by the predictions, which are differences of solutions, and left out of the
    model's gradients. SPO+ is a maximum over the solutions: the better solver's loss is the larger one.
    """
    model = predictor(problem.data)
    optimiser = torch.optim.SGD(model.parameters(), LEARNING_RATE)
    worst, odd = 0.0, 0
    for batch in problem.data.batches():
        predicted = model(batch.features)
        own, other = ours(predicted, batch), theirs(predicted, batch)
        gradients = [torch.autograd.grad(loss, predicted, retain_graph=True)[0] for loss in (own, other)]
        same = ((gradients[0] - gradients[1]).abs() <= TOLERANCE * gradients[0].abs().max()).all(1, keepdim=True)
        odd += int((~same).sum())
        if method == "SPO+" and own.item() < other.item() * (1 - 1e-7):
            raise AssertionError(f"{problem.name}: PyEPO found better solutions, {own.item()} < {other.item()}")
        of_model = [torch.autograd.grad(predicted, model.weight, g * same, retain_graph=True)[0] for g in gradients]
        worst = max(worst, ((of_model[0] - of_model[1]).abs().max() / of_model[0].abs().max()).item())
        optimiser.zero_grad()
        own.backward()
        optimiser.step()
    return worst, odd


def row(problem: Problem, method: str, seconds: float) -> str:
    """One line of the table."""
    ours, theirs = losses(problem, method)
    contenders = {"ours": training(ours, problem.data)}
    agreement = "-"
    if theirs is not None:
        worst, odd = compare(problem, method, ours, theirs)
        if not worst < TOLERANCE or odd > (0.05 * len(problem.data.features) if problem.sign < 0 else 0):
            raise AssertionError(f"{problem.name}, {method}: gradients differ by {worst:g}, {odd} rows by solutions")
        agreement = f"{worst:.0e}" + (f"; {odd} of {len(problem.data.features)} rows differ" if odd else "")
        contenders["PyEPO"] = training(theirs, problem.data)
    times = side_by_side(contenders, seconds)
    cells = [problem.name, method, f"{1e3 * times['ours']:.1f}"]
    if theirs is None:
        cells += ["-", "-"]
    else:
        cells += [f"{1e3 * times['PyEPO']:.1f}", f"{times['PyEPO'] / times['ours']:.1f}x"]
    reached = "" if theirs is None else ", reached" if times["PyEPO"] >= problem.aim * times["ours"] else ", missed"
    return f"| {' | '.join([*cells, f'{problem.aim:g}x{reached}', agreement])} |"


def main(argv: Sequence[str] | None = None) -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=256, help="rows of an epoch (default 256: four batches)")
    parser.add_argument("--seconds", type=float, default=3.0, help="for each contender (default 3)")
    options = parser.parse_args(argv)
    if options.rows < 1 or not options.seconds > 0:
        parser.error("--rows and --seconds must be positive")
    torch.set_num_threads(1)
    print("\n".join(f"- {line}" for line in machine(("pyepo", "ortools", "scipy"))), "\n")
    if not PYEPO:
        print("PyEPO is not installed, so that only our times are shown: pip install pyepo==2.2.7\n")
    print(f"An epoch of {options.rows} rows in batches of {BATCH}, one thread, milliseconds.\n")
    print(
        "| problem | method | ours, ms | PyEPO, ms | ratio | aim | gradients differ by |\n|---|---|---|---|---|---|---|"
    )
    for problem in (
        path(5, options.rows, 5),
        path(12, options.rows, 10),
        path(30, options.rows, 50),
        knapsack(50, options.rows, 5),
    ):
        for method in ("SPO+", "Blackbox"):
            print(row(problem, method, options.seconds), flush=True)


if __name__ == "__main__":
    main()
