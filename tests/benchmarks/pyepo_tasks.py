"""The problems on which regrets are compared with PyEPO's: the data of its generators, and its models."""

from __future__ import annotations

import importlib.util
import math
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

import difflayers as dl

FEATURES, DEGREE, TEST_ROWS = 5, 4, 1000
PYEPO = importlib.util.find_spec("pyepo") is not None


class Data(NamedTuple):
    """Features, costs (profits where PyEPO maximises), their best solutions and objectives, the binding normals."""

    features: Tensor
    costs: Tensor
    solutions: Tensor
    objectives: Tensor
    normals: Tensor


class Task(NamedTuple):
    """A problem with the data of one seed; sign is -1 for profits."""

    oracle: dl.oracles.Oracle
    peer: Any
    constraints: dict[str, Any]
    sign: float
    train: Data
    test: Data
    samples: int
    solve_ratio: float
    rate: float
    seed: int

    def regret(self, solutions: Tensor, batch: Data) -> Tensor:
        """The loss that is given to layers which return a solution."""
        return (self.sign * ((solutions * batch.costs).sum(1) - batch.objectives)).mean()


def polynomial(
    random: np.random.RandomState, rows: int, entries: int, noise: float, scale: float
) -> tuple[np.ndarray, np.ndarray]:
    """Features and costs, drawn in the order in which PyEPO draws them."""
    weights = random.binomial(1, 0.5, (entries, FEATURES))
    features = random.normal(0, 1, (rows, FEATURES))
    costs = ((features @ weights.T / math.sqrt(FEATURES) + 3) ** DEGREE + 1) * (scale / 3.5**DEGREE)
    return features, costs * random.uniform(1 - noise, 1 + noise, costs.shape)


def same(own: np.ndarray, other: np.ndarray) -> None:
    """Refuses to go on with other data than PyEPO's."""
    np.testing.assert_allclose(own, other, rtol=1e-5)


def normals(constraints: dict[str, Any], solutions: np.ndarray, entries: int) -> Tensor:
    """`[rows, most, entries]`: the normals of what binds at 0-1 solutions, as CaVE in PyEPO takes them, zeros behind.

    PyEPO's own extraction needs Gurobi.
    """
    A_ub, b_ub = constraints.get("A_ub", np.zeros((0, entries))), constraints.get("b_ub", np.zeros(0))
    A_eq, identity = constraints.get("A_eq", np.zeros((0, entries))), np.eye(entries)
    rows = []
    for x in solutions:
        tight = A_ub[np.abs(A_ub @ x - b_ub) < 1e-9]
        rows.append(torch.from_numpy(np.vstack([tight, A_eq, -A_eq, -identity[x < 0.5], identity[x > 0.5]])))
    return nn.utils.rnn.pad_sequence(rows, batch_first=True)


def task(
    oracle: dl.oracles.Oracle,
    peer: Any,
    constraints: dict[str, Any],
    sign: float,
    drawn: tuple[np.ndarray, np.ndarray],
    rows: int,
    **settings: Any,
) -> Task:
    """Solves for the true costs, and splits the data."""
    features, costs = (torch.from_numpy(part.astype(np.float32)).double() for part in drawn)  # as PyEPO rounds them
    solutions = oracle.solve(sign * costs)
    binding = normals(constraints, solutions.numpy(), costs.shape[1])
    parts = (features, costs, solutions, (costs * solutions).sum(1))
    train, test = Data(*(x[:rows] for x in (*parts, binding))), Data(*(x[rows:] for x in (*parts, binding)))
    return Task(oracle, peer, constraints, sign, train, test, **settings)


def path(seed: int, rows: int, noise: float) -> Task:
    """5x5, right and down."""
    edges = dl.oracles.grid_edges(5, 5)
    drawn = polynomial(np.random.RandomState(seed), rows + TEST_ROWS, len(edges), noise, 1.0)
    peer = None
    if PYEPO:
        from pyepo.data import shortestpath  # pyright: ignore[reportMissingImports]
        from pyepo.model.ort import shortestPathModel  # pyright: ignore[reportMissingImports]

        peer = shortestPathModel((5, 5))
        assert list(peer.arcs) == [tuple(edge) for edge in edges.tolist()]
        same(drawn[1], shortestpath.genData(rows + TEST_ROWS, FEATURES, (5, 5), DEGREE, noise, seed)[1])
    A, b = np.zeros((25, len(edges))), np.zeros(25)
    A[edges[:, 0], np.arange(len(edges))] = 1.0
    A[edges[:, 1], np.arange(len(edges))] = -1.0
    b[0], b[-1] = 1.0, -1.0
    oracle = dl.oracles.ShortestPath(edges, 0, 24, num_nodes=25)
    constraints = {"A_eq": A, "b_eq": b, "bounds": (0, 1)}
    return task(oracle, peer, constraints, 1.0, drawn, rows, samples=10, solve_ratio=1.0, rate=0.05, seed=seed)


def knapsack(seed: int, rows: int, noise: float) -> Task:
    """16 items with two weights from 3 to 8 each, 20 of either fit; profits are integers."""
    random = np.random.RandomState(seed)
    weights, room = random.choice(range(300, 800), size=(2, 16)) / 100, np.full(2, 20.0)
    features, profits = polynomial(random, rows + TEST_ROWS, 16, noise, 5.0)
    drawn, peer = (features, np.ceil(profits)), None
    if PYEPO:
        from pyepo.data import knapsack as generator  # pyright: ignore[reportMissingImports]
        from pyepo.model.ort import knapsackModel  # pyright: ignore[reportMissingImports]

        peer = knapsackModel(weights, room)
        same(drawn[1], generator.genData(rows + TEST_ROWS, FEATURES, 16, 2, DEGREE, noise, seed)[2])
    constraints = {"A_ub": weights, "b_ub": room, "bounds": (0, 1)}
    oracle = dl.oracles.Knapsack(weights, room)
    return task(oracle, peer, constraints, -1.0, drawn, rows, samples=2, solve_ratio=0.0, rate=0.15, seed=seed)
