"""The cheapest tree that joins all nodes of a graph."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import _checks
from ._ortools import solver_module
from .base import Instance, Oracle
from .graph import checked_edges, checked_mask
from .result import Row, Status

__all__ = ["MinimumSpanningTree"]


class MinimumSpanningTree(Oracle):
    r"""The spanning tree of least total cost: solutions mark its N - 1 edges with ones.

    Costs may have any sign; parallel edges and loops are allowed. Of equal costs the edge that comes first is taken.

    Args:
        edges: integers `[E, 2]`, undirected, in the order of the costs.
        num_nodes: N; nodes are 0 ... N - 1.
        settings: on_failure, time_limit, workers, cache: see `difflayers.oracles.Oracle`.

    `with_parameters` takes `available`, bool `[..., E]`: the edges that exist in each row.

    Returns:
        Of `solve` with costs `[..., E]`: 1 for the edges of the tree, else 0, in that shape and dtype.

    Raises:
        TypeError: edges are not integers.
        ValueError: a node that is out of range; a shape that does not fit.

    Cost:
        O(E log E) a row: one sort of the whole batch, then SciPy's Kruskal on the disjoint union of the rows' graphs.
        A graph that does not hang together gives INFEASIBLE rows.

    Transforms:
        none by itself; gradients come from a rule, see `difflayers.SolverLayer`.

    Example:
        >>> import torch, difflayers as dl
        >>> tree = dl.oracles.MinimumSpanningTree([(0, 1), (1, 2), (2, 0)], 3)
        >>> tree.solve(torch.tensor([[1.0, 2.0, 3.0], [0.0, 2.0, -1.0]]))
        tensor([[1., 1., 0.],
                [1., 0., 1.]])
    """

    name = "difflayers.oracles.MinimumSpanningTree"

    def __init__(self, edges: Any, num_nodes: int, **settings: Any) -> None:
        super().__init__(**settings)
        self.num_nodes = _checks.integer(self.name, "num_nodes", num_nodes, minimum=1)
        self.edges = checked_edges(self.name, edges, self.num_nodes)
        low, high = self.edges.min(axis=1, initial=num_nodes), self.edges.max(axis=1, initial=0)
        keys = low * self.num_nodes + high
        by_pair = np.argsort(keys, kind="stable")
        by_pair = by_pair[(low < high)[by_pair]]  # loops join nothing
        pairs, self._starts = np.unique(keys[by_pair], return_index=True)
        self._by_pair, (self._low, self._high) = by_pair, np.divmod(pairs, self.num_nodes)

    @property
    def cost_shape(self) -> tuple[int, ...]:
        """(E,)."""
        return (len(self.edges),)

    @property
    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        """available, (E,)."""
        return {"available": (len(self.edges),)}

    def _check_parameters(self) -> None:
        checked_mask(self.name, "available", self.parameters["available"])

    def _solve_rows(self, costs: np.ndarray, instances: list[Instance], time_limit: float | None) -> list[Row]:
        available = None
        if instances and "available" in instances[0]:
            available = np.stack([instance["available"] for instance in instances])
            costs = np.where(available, costs, np.inf)
        solutions = np.zeros(costs.shape)
        step = max(1, (1 << 20) // max(1, len(self.edges)))
        for start in range(0, len(costs), step):
            self._mark(costs[start : start + step], solutions[start : start + step])
        joined = solutions.sum(axis=1) == self.num_nodes - 1
        if available is not None:
            joined &= ~(solutions.astype(bool) & ~available).any(axis=1)
        missing = Row(None, Status.INFEASIBLE, reason=f"the edges do not join all {self.num_nodes} nodes")
        return [
            Row(solution, Status.OPTIMAL) if good else missing for solution, good in zip(solutions, joined, strict=True)
        ]

    def _mark(self, costs: np.ndarray, solutions: np.ndarray) -> None:
        """Marks the trees of some rows."""
        size, nodes = len(costs), self.num_nodes
        if len(self._low) == 0:
            return
        # Only the order of the costs matters; their ranks are positive and distinct, where SciPy would take a cost of
        # 0 for a missing edge, and lead back to the edges.
        order = np.argsort(costs, axis=1, kind="stable")
        ranks = np.empty(costs.shape)
        np.put_along_axis(ranks, order, np.broadcast_to(np.arange(1.0, costs.shape[1] + 1), costs.shape), axis=1)
        weights = np.minimum.reduceat(ranks[:, self._by_pair], self._starts, axis=1)
        offsets = np.arange(size)[:, None]
        sparse = solver_module(self.name, "scipy.sparse")
        indices = (self._high + offsets * nodes).ravel().astype(np.int32)
        first = np.searchsorted(self._low, np.arange(nodes))
        pointers = np.append((first + offsets * len(self._low)).ravel(), size * len(self._low)).astype(np.int32)
        union = sparse.csr_array((weights.ravel(), indices, pointers), shape=(size * nodes, size * nodes))
        forest = solver_module(self.name, "scipy.sparse.csgraph").minimum_spanning_tree(union).tocoo()
        row = forest.row // nodes
        solutions[row, order[row, forest.data.astype(np.int64) - 1]] = 1.0
