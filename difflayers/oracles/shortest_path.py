"""Shortest paths between two nodes of a graph that is given once."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import _checks
from .base import Instance, Oracle
from .graph import Graph, checked_edges, checked_mask, checked_nodes
from .result import Row, Status

__all__ = ["ShortestPath", "grid_edges"]


class ShortestPath(Oracle):
    r"""The path from source to target of least total cost: solutions mark its edges with ones.

    $$y(c) = \arg\min_{y \in \{0, 1\}^E} c^\top y, \qquad A y = e_\text{source} - e_\text{target},$$

    with A the incidence matrix. The algorithm follows from the graph and the sign of the costs: without cycles a
    dynamic program over the levels of the graph, all rows of the batch at once, and costs of any sign; with cycles
    Dijkstra's algorithm for costs that are not negative; with `allow_negative=True` Bellman and Ford's.

    Args:
        edges: integers `[E, 2]`, rows (tail, head); directed, in the order of the costs. Parallel edges and loops are
            allowed. For an undirected graph, give both directions.
        source: the first node; may differ between rows through `with_parameters(source=...)`.
        target: the last node; likewise. Where both are the same, the path is empty.
        num_nodes: N; nodes are 0 ... N - 1.
        allow_negative: in a graph with cycles, take negative costs too. A row with a negative cycle on the way from
            source to target is UNBOUNDED, and the reason names the cycle.
        settings: on_failure, time_limit, workers, cache: see `difflayers.oracles.Oracle`.

    `with_parameters` further takes `available`, bool `[..., E]`: the edges that exist in each row.

    Returns:
        Of `solve` with costs `[..., E]`: 1 for the edges of the path, else 0, in that shape and dtype.

    Raises:
        TypeError: edges or nodes are not integers.
        ValueError: a node that is out of range; a shape that does not fit.

    Cost:
        E operations a row (acyclic), E log N (Dijkstra), E times the length of the path (Bellman-Ford, E N at worst).
        A target that cannot be reached gives an INFEASIBLE row.

    Transforms:
        none by itself; gradients come from a rule, see `difflayers.SolverLayer`.

    Example:
        >>> import torch, difflayers as dl
        >>> edges = [(0, 1), (0, 2), (1, 3), (2, 3)]
        >>> paths = dl.oracles.ShortestPath(edges, 0, 3, num_nodes=4)
        >>> paths.solve(torch.tensor([[1.0, 2.0, 1.0, 1.0], [4.0, 2.0, 1.0, 1.0]]))
        tensor([[1., 0., 1., 0.],
                [0., 1., 0., 1.]])
    """

    name = "difflayers.oracles.ShortestPath"

    def __init__(
        self, edges: Any, source: int, target: int, *, num_nodes: int, allow_negative: bool = False, **settings: Any
    ) -> None:
        super().__init__(**settings)
        self.num_nodes = _checks.integer(self.name, "num_nodes", num_nodes, minimum=1)
        self.edges = checked_edges(self.name, edges, self.num_nodes)
        self.source = _checks.integer(self.name, "source", source, minimum=0, maximum=self.num_nodes - 1)
        self.target = _checks.integer(self.name, "target", target, minimum=0, maximum=self.num_nodes - 1)
        self.allow_negative = _checks.boolean(self.name, "allow_negative", allow_negative)
        self._prepared: Graph | None = None
        self.cost_domain = "any" if self.allow_negative or self._graph.acyclic else "nonnegative"

    @property
    def cost_shape(self) -> tuple[int, ...]:
        """(E,)."""
        return (len(self.edges),)

    @property
    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        """source and target, numbers; available, (E,)."""
        return {"source": (), "target": (), "available": (len(self.edges),)}

    @property
    def _graph(self) -> Graph:
        if self._prepared is None:
            self._prepared = Graph(self.edges, self.num_nodes)
        return self._prepared

    def _check_parameters(self) -> None:
        for name in ("source", "target"):
            if name in self.parameters:
                checked_nodes(self.name, name, self.parameters[name], self.num_nodes)
        if "available" in self.parameters:
            checked_mask(self.name, "available", self.parameters["available"])

    def _solve_rows(self, costs: np.ndarray, instances: list[Instance], time_limit: float | None) -> list[Row]:
        size = len(costs)
        sources = np.array([instance.get("source", self.source) for instance in instances], dtype=np.int64)
        targets = np.array([instance.get("target", self.target) for instance in instances], dtype=np.int64)
        if "available" in self.parameters or (instances and "available" in instances[0]):
            costs = np.where(np.stack([instance["available"] for instance in instances]), costs, np.inf)
        deadline = None if time_limit is None else time.monotonic() + time_limit * size
        paths = self._graph.shortest_paths(costs, sources, targets, negative=self.allow_negative, deadline=deadline)
        solutions = np.zeros(costs.shape)
        solutions[paths.rows, paths.edges] = 1.0
        rows = [Row(solution, Status.OPTIMAL) for solution in solutions]
        for row, (status, reason) in paths.failures.items():
            rows[row] = Row(None, status, reason=reason)
        return rows

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_prepared": None}  # quicker to rebuild than to send


def grid_edges(rows: int, columns: int) -> Tensor:
    """The edges of a grid of nodes that lead right and down, as in the shortest-path benchmark of PyEPO.

    Nodes are numbered row by row, node r * columns + c; the edges come row by row: those to the right within row r,
    then those down to row r + 1.

    Args:
        rows, columns: of nodes, at least 1.

    Returns:
        int64 `[E, 2]`, E = rows (columns - 1) + (rows - 1) columns.

    Raises:
        TypeError, ValueError: rows or columns is not a positive integer.

    Cost:
        One entry an edge.

    Transforms:
        none: it is of integers.

    Example:
        >>> import difflayers as dl
        >>> dl.oracles.grid_edges(2, 2).tolist()
        [[0, 1], [0, 2], [1, 3], [2, 3]]
    """
    name = "difflayers.oracles.grid_edges"
    rows = _checks.integer(name, "rows", rows, minimum=1)
    columns = _checks.integer(name, "columns", columns, minimum=1)
    nodes = torch.arange(rows * columns).reshape(rows, columns)
    edges = []
    for r in range(rows):
        edges.append(torch.stack([nodes[r, :-1], nodes[r, 1:]], dim=1))
        if r + 1 < rows:
            edges.append(torch.stack([nodes[r], nodes[r + 1]], dim=1))
    return torch.cat(edges)
