"""Cuts of a graph."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from .. import _checks
from ._cp_sat import SatModel
from ._graphs import complete_edges
from .base import Instance, Oracle
from .graph import checked_edges
from .per_thread import PerThread
from .result import Row, Status

__all__ = ["MaxCut"]

FEW_NODES = 13  # 4096 cuts: one matrix product for the whole batch
MANY_TRIANGLES = 5000  # more inequalities than this slow the search down


class MaxCut(Oracle):
    r"""The cut of least total cost: 1 for the edges between two sides into which the nodes are divided.

    $$\min_y c^\top y \quad\text{s.t.}\quad y_{uv} = [s_u \ne s_v],\; s \in \{0, 1\}^n.$$

    Weights to maximise are passed as negative costs; with all costs positive the cut is empty.

    Args:
        graph: the number of nodes of a complete graph, or the edges `[E, 2]` of any other.
        num_nodes: with edges, the number of nodes; default the largest node and one.
        settings: on_failure, time_limit, workers, cache: see `difflayers.oracles.Oracle`. A row whose time is up is
            FEASIBLE: it has the best cut found, in the worst case one that local search found.

    Returns:
        Of `solve` with costs `[..., E]`, E = n (n - 1) / 2 in lexicographic order for a complete graph: 1 for the edges
        of the cut, else 0, in that shape and dtype.

    Raises:
        TypeError: neither an integer nor edges of integers.
        ValueError: edges of another shape, nodes out of range, an edge from a node to itself.

    Cost:
        Up to 13 nodes, one matrix product with all cuts. Beyond, one CP-SAT search a row, exponential in the number of
        nodes on dense graphs (18: 0.1 to 0.3 s).

    Transforms:
        none by itself; gradients come from a rule, see `difflayers.SolverLayer`.

    Example:
        >>> import torch, difflayers as dl
        >>> dl.oracles.MaxCut(3).solve(torch.tensor([-1.0, -2.0, -3.0]))  # edges 01, 02, 12
        tensor([0., 1., 1.])
    """

    name = "difflayers.oracles.MaxCut"
    releases_gil = True

    def __init__(self, graph: Any, *, num_nodes: int | None = None, **settings: Any) -> None:
        super().__init__(**settings)
        if isinstance(graph, (int, np.integer)):
            n = _checks.integer(self.name, "graph", graph, minimum=0)
            if num_nodes is not None and num_nodes != n:
                raise ValueError(f"{self.name}: argument 'num_nodes' must be {n} or None here, got {num_nodes}")
            self.edges, self.num_nodes = complete_edges(n), n
        else:
            if num_nodes is not None:
                num_nodes = _checks.integer(self.name, "num_nodes", num_nodes, minimum=0)
            self.edges = checked_edges(self.name, graph, num_nodes, loops=False)
            self.num_nodes = int(self.edges.max(initial=-1)) + 1 if num_nodes is None else num_nodes
        self._models = PerThread()

    @property
    def cost_shape(self) -> tuple[int, ...]:
        """(E,): of a complete graph in the order of torch.triu_indices(n, n, 1)."""
        return (len(self.edges),)

    def _solve_rows(self, costs: np.ndarray, instances: list[Instance], time_limit: float | None) -> list[Row]:
        if self.num_nodes > FEW_NODES:
            return super()._solve_rows(costs, instances, time_limit)
        cuts = self._models.get("cuts", self._every_cut)
        best = (costs @ cuts.T).argmin(axis=1) if costs.shape[1] else np.zeros(len(costs), dtype=np.int64)
        return [Row(cuts[index].copy(), Status.OPTIMAL) for index in best]

    def _every_cut(self) -> np.ndarray:
        """(2^(n-1), E): node 0 on one side, all ways for the others; the empty cut first."""
        count = 2 ** max(self.num_nodes - 1, 0)
        sides = (np.arange(count)[:, None] >> np.arange(max(self.num_nodes - 1, 0))) & 1
        sides = np.concatenate([np.zeros((count, 1), dtype=sides.dtype), sides], axis=1)
        return self._cut(sides)

    def _cut(self, sides: np.ndarray) -> np.ndarray:
        first, second = self.edges.T
        return (sides[..., first] != sides[..., second]).astype(np.float64)

    def _build(self) -> tuple[SatModel, list[Any], list[Any]]:
        sat = SatModel()
        cut, sides = sat.booleans(len(self.edges)), sat.booleans(self.num_nodes)
        sat.model.add(sides[0] == 0)
        between: dict[tuple[int, int], Any] = {}
        for edge, (u, v) in zip(cut, self.edges.tolist(), strict=True):
            a, b = sides[u], sides[v]
            sat.model.add_bool_or([~edge, a, b])
            sat.model.add_bool_or([~edge, ~a, ~b])
            sat.model.add_bool_or([edge, ~a, b])
            sat.model.add_bool_or([edge, a, ~b])
            between[u, v] = between[v, u] = edge
        for x, y, z in itertools.islice(self._triangles(between), MANY_TRIANGLES):
            # implied, but they make the linear relaxation six times as strong
            sat.model.add(x + y + z <= 2)
            sat.model.add(x <= y + z)
            sat.model.add(y <= x + z)
            sat.model.add(z <= x + y)
        return sat, cut, sides

    def _triangles(self, between: dict[tuple[int, int], Any]) -> Any:
        for u, v in between:
            if u < v:
                for w in range(v + 1, self.num_nodes):
                    if (u, w) in between and (v, w) in between:
                        yield between[u, v], between[u, w], between[v, w]

    def _solve_row(self, cost: np.ndarray, instance: Instance, deadline: float | None) -> Row:
        sides = self._local_search(cost)
        sat, cut, _ = self._models.get("model", self._build)
        found = sat.minimise(cut, cost, deadline=deadline, hint=self._cut(sides))
        if found.status == Status.FAILED:
            return Row(None, found.status, reason=found.reason)
        best = self._cut(sides)
        if found.values is not None and cost @ found.values <= cost @ best:
            best = found.values
        status = Status.OPTIMAL if found.status == Status.OPTIMAL else Status.FEASIBLE
        return Row(best, status, max(found.bound, float(cost[cost < 0].sum())))

    def _local_search(self, cost: np.ndarray) -> np.ndarray:
        """Moves the node that gains most from side to side until none does."""
        first, second = self.edges.T
        sides = np.zeros(self.num_nodes, dtype=np.int64)
        for _ in range(10 * self.num_nodes):
            change = np.where(sides[first] != sides[second], -cost, cost)  # of moving one end of the edge
            gain = np.bincount(first, change, self.num_nodes) + np.bincount(second, change, self.num_nodes)
            node = int(gain.argmin())
            if gain[node] >= 0:
                break
            sides[node] = 1 - sides[node]
        return sides

    def _is_feasible(self, solution: np.ndarray, instance: Instance) -> bool:
        """Whether two sides exist with these edges between them."""
        if not np.isin(solution, (0.0, 1.0)).all():
            return False
        neighbours: list[list[tuple[int, int]]] = [[] for _ in range(self.num_nodes)]
        for (u, v), crosses in zip(self.edges.tolist(), solution.tolist(), strict=True):
            neighbours[u].append((v, int(crosses)))
            neighbours[v].append((u, int(crosses)))
        sides = np.full(self.num_nodes, -1)
        for root in range(self.num_nodes):
            if sides[root] < 0:
                sides[root], stack = 0, [root]
                while stack:
                    node = stack.pop()
                    for other, crosses in neighbours[node]:
                        if sides[other] < 0:
                            sides[other] = sides[node] ^ crosses
                            stack.append(other)
        return bool((self._cut(sides) == solution).all())
