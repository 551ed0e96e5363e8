"""Nodes of a graph, no two of which are neighbours."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import _checks
from ._cp_sat import SatModel
from .base import Instance, Oracle
from .graph import checked_edges
from .per_thread import PerThread
from .result import Row, Status

__all__ = ["IndependentSet"]


class IndependentSet(Oracle):
    r"""The nodes of least total cost no two of which are joined by an edge.

    $$\min_y c^\top y \quad\text{s.t.}\quad y_u + y_v \le 1 \text{ for } uv \in E,\; y \in \{0, 1\}^n.$$

    Weights to maximise are passed as negative costs; nodes whose cost is not negative are never taken.

    Args:
        edges: `[E, 2]` or a sequence of pairs of nodes, undirected; repeated ones do no harm.
        num_nodes: nodes are 0..num_nodes - 1.
        settings: on_failure, time_limit, workers, cache: see `difflayers.oracles.Oracle`. A row whose time is up is
            FEASIBLE: it has the best set found, in the worst case a greedy one.

    Returns:
        Of `solve` with costs `[..., num_nodes]`: 1 for the nodes of the set, else 0, in that shape and dtype.

    Raises:
        TypeError: edges are not integers.
        ValueError: edges of another shape, nodes out of range, an edge from a node to itself.

    Cost:
        One CP-SAT search a row, in milliseconds for tens of nodes. The edges are covered with cliques, at most one node
        of each, which bounds the search far better than edges do.

    Transforms:
        none by itself; gradients come from a rule, see `difflayers.SolverLayer`.

    Example:
        >>> import torch, difflayers as dl
        >>> path = dl.oracles.IndependentSet([(0, 1), (1, 2)], 3)
        >>> path.solve(torch.tensor([[-1.0, -3.0, -1.0], [-2.0, -3.0, -2.0]]))
        tensor([[0., 1., 0.],
                [1., 0., 1.]])
    """

    name = "difflayers.oracles.IndependentSet"
    releases_gil = True

    def __init__(self, edges: Any, num_nodes: int, **settings: Any) -> None:
        super().__init__(**settings)
        self.num_nodes = _checks.integer(self.name, "num_nodes", num_nodes, minimum=0)
        self.edges = checked_edges(self.name, edges, self.num_nodes, loops=False)
        self._models = PerThread()

    @property
    def cost_shape(self) -> tuple[int, ...]:
        """(num_nodes,)."""
        return (self.num_nodes,)

    def _build(self) -> tuple[SatModel, list[Any]]:
        sat = SatModel()
        nodes = sat.booleans(self.num_nodes)
        for clique in _cliques(self.edges, self.num_nodes):
            sat.model.add_at_most_one(nodes[node] for node in clique)
        return sat, nodes

    def _solve_row(self, cost: np.ndarray, instance: Instance, deadline: float | None) -> Row:
        if (cost >= 0).all():
            return Row(np.zeros(self.num_nodes), Status.OPTIMAL)
        greedy = self._greedy(cost)
        sat, nodes = self._models.get("model", self._build)
        found = sat.minimise(nodes, cost, deadline=deadline, hint=greedy)
        if found.status == Status.FAILED:
            return Row(None, found.status, reason=found.reason)
        best = greedy if found.values is None or cost @ greedy < cost @ found.values else found.values
        status = Status.OPTIMAL if found.status == Status.OPTIMAL else Status.FEASIBLE
        return Row(np.where(cost < 0, best, 0.0), status, max(found.bound, float(cost[cost < 0].sum())))

    def _greedy(self, cost: np.ndarray) -> np.ndarray:
        taken = np.zeros(self.num_nodes)
        free = cost < 0
        first, second = self.edges.T
        for node in np.argsort(cost, kind="stable"):
            if free[node]:
                taken[node] = 1.0
                free[second[first == node]] = False
                free[first[second == node]] = False
        return taken

    def _is_feasible(self, solution: np.ndarray, instance: Instance) -> bool:
        first, second = self.edges.T
        return bool(np.isin(solution, (0.0, 1.0)).all() and (solution[first] + solution[second] <= 1).all())


def _cliques(edges: np.ndarray, num_nodes: int) -> list[list[int]]:
    """Cliques that cover all edges, each grown from an edge not yet covered."""
    neighbours: list[set[int]] = [set() for _ in range(num_nodes)]
    for first, second in edges.tolist():
        neighbours[first].add(second)
        neighbours[second].add(first)
    covered: set[tuple[int, int]] = set()
    cliques = []
    for first, second in sorted({(min(edge), max(edge)) for edge in edges.tolist()}):
        if (first, second) in covered:
            continue
        clique, common = [first, second], neighbours[first] & neighbours[second]
        while common:
            node = max(common, key=lambda candidate: (len(neighbours[candidate] & common), -candidate))
            clique.append(node)
            common = common & neighbours[node]
        clique.sort()
        covered.update((u, v) for i, u in enumerate(clique) for v in clique[i + 1 :])
        cliques.append(clique)
    return cliques
