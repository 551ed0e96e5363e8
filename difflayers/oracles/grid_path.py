"""Shortest paths over the cells of a grid, each of which costs something to enter."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from .. import _checks
from .base import Instance, Oracle
from .graph import Graph, checked_mask
from .result import Row, Status

__all__ = ["GridShortestPath"]

STEPS = {4: [(0, 1), (1, 0), (0, -1), (-1, 0)]}
STEPS[8] = [*STEPS[4], (1, 1), (1, -1), (-1, 1), (-1, -1)]


class GridShortestPath(Oracle):
    """The cheapest way from cell to cell of a grid: solutions mark the visited cells, both ends included.

    The cost of a path is the sum over the cells that it visits, as in the Warcraft maps benchmark.

    Args:
        shape: (rows, columns) of the grid, the shape of one row's costs.
        neighbors: 4, or 8 with the diagonals.
        source: (row, column) of the first cell; negative numbers count from the end. May differ between rows through
            `with_parameters(source=...)`.
        target: of the last cell; likewise.
        settings: on_failure, time_limit, workers, cache: see `difflayers.oracles.Oracle`.

    `with_parameters` further takes `available`, bool `[..., rows, columns]`: the cells that exist in each row.

    Returns:
        Of `solve` with costs `[..., rows, columns]`: 1 in the cells of the path, else 0, in that shape and dtype.

    Raises:
        TypeError, ValueError: a shape, cell or number of neighbours that is out of range.
        ValueError: of solve, when a cost is negative (a cycle would never end).

    Cost:
        Dijkstra's algorithm: O(cells log cells) a row.

    Transforms:
        none by itself; gradients come from a rule, see `difflayers.SolverLayer`.

    References:
        Vlastelica, Paulus, Musil, Martius, Rolínek, "Differentiation of Blackbox Combinatorial Solvers", ICLR 2020,
        arXiv 1912.02175, section 4.1 (the benchmark).

    Example:
        >>> import torch, difflayers as dl
        >>> costs = torch.tensor([[1.0, 9.0, 1.0], [1.0, 9.0, 1.0], [9.0, 1.0, 1.0]])
        >>> dl.oracles.GridShortestPath((3, 3), neighbors=8).solve(costs)
        tensor([[1., 0., 0.],
                [1., 0., 0.],
                [0., 1., 1.]])
    """

    name = "difflayers.oracles.GridShortestPath"
    cost_domain = "nonnegative"

    def __init__(
        self,
        shape: tuple[int, int],
        *,
        neighbors: int = 4,
        source: tuple[int, int] = (0, 0),
        target: tuple[int, int] = (-1, -1),
        **settings: Any,
    ) -> None:
        super().__init__(**settings)
        self.shape = tuple(_checks.integer(self.name, "shape", size, minimum=1) for size in _pair(self, "shape", shape))
        self.neighbors = _checks.integer(self.name, "neighbors", neighbors)
        if self.neighbors not in STEPS:
            raise ValueError(f"{self.name}: argument 'neighbors' must be 4 or 8, got {neighbors}")
        self.source, self.target = self._cell("source", source), self._cell("target", target)
        self._prepared: Graph | None = None

    def _cell(self, name: str, cell: Any) -> tuple[int, ...]:
        return tuple(
            _checks.integer(self.name, name, place, minimum=-size, maximum=size - 1)
            for place, size in zip(_pair(self, name, cell), self.shape, strict=True)
        )

    @property
    def cost_shape(self) -> tuple[int, ...]:
        """(rows, columns)."""
        return self.shape

    @property
    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        """source and target, (2,); available, (rows, columns)."""
        return {"source": (2,), "target": (2,), "available": self.shape}

    @property
    def _graph(self) -> Graph:
        if self._prepared is None:
            rows, columns = self.shape
            cells = np.arange(rows * columns).reshape(rows, columns)
            edges = []
            for down, right in STEPS[self.neighbors]:
                tails = cells[max(0, -down) : rows - max(0, down), max(0, -right) : columns - max(0, right)]
                heads = cells[max(0, down) : rows - max(0, -down), max(0, right) : columns - max(0, -right)]
                edges.append(np.stack([tails.ravel(), heads.ravel()], axis=1))
            self._prepared = Graph(np.concatenate(edges), rows * columns)
        return self._prepared

    def _check_parameters(self) -> None:
        for name in ("source", "target"):
            if name in self.parameters:
                cells = self.parameters[name]
                if cells.dtype.kind not in "iu":
                    raise TypeError(f"{self.name}: parameter {name!r} must hold integers, got {cells.dtype}")
                sizes = np.array(self.shape)
                if not ((cells >= -sizes) & (cells < sizes)).all():
                    raise ValueError(f"{self.name}: parameter {name!r} must name cells of the grid {self.shape}")
        if "available" in self.parameters:
            checked_mask(self.name, "available", self.parameters["available"])

    def _solve_rows(self, costs: np.ndarray, instances: list[Instance], time_limit: float | None) -> list[Row]:
        size, (rows, columns) = len(costs), self.shape
        flat = costs.reshape(size, -1)
        if instances and "available" in instances[0]:
            present = np.stack([instance["available"] for instance in instances]).reshape(size, -1)
            flat = np.where(present, flat, np.inf)
        ends = []
        for name, default in (("source", self.source), ("target", self.target)):
            cells = np.array([instance.get(name, default) for instance in instances], dtype=np.int64).reshape(size, 2)
            ends.append(cells[:, 0] % rows * columns + cells[:, 1] % columns)
        deadline = None if time_limit is None else time.monotonic() + time_limit * size
        graph, batch = self._graph, np.arange(size)
        paths = graph.shortest_paths(flat[:, graph.heads], *ends, deadline=deadline)
        solutions = np.zeros((size, rows * columns))
        solutions[paths.rows, graph.heads[paths.edges]] = 1.0
        solutions[batch, ends[0]] = 1.0
        found = [Row(solution.reshape(self.shape), Status.OPTIMAL) for solution in solutions]
        blocked = np.flatnonzero(np.isinf(flat[batch, ends[0]])).tolist()
        for row in blocked:
            found[row] = Row(None, Status.INFEASIBLE, reason="its source is not available")
        for row, (status, reason) in paths.failures.items():
            found[row] = Row(None, status, reason=reason)
        return found

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_prepared": None}  # quicker to rebuild than to send


def _pair(oracle: Oracle, name: str, value: Any) -> tuple[Any, Any]:
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        raise TypeError(f"{oracle.name}: argument {name!r} must be two integers (rows, columns), got {value!r}")
    return value[0], value[1]
