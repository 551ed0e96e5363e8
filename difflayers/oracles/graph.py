"""A directed graph, prepared once, and shortest paths in it for many rows of costs at once."""

from __future__ import annotations

import time
from functools import cached_property, partial
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from ._ortools import solver_module
from .per_thread import PerThread
from .result import Status

DOUBLES_AT_ONCE = 1 << 21  # rows are worked on in chunks whose arrays of (edges, rows) stay around 16 MB
EPSILON = np.finfo(np.float64).eps


class Paths(NamedTuple):
    """The paths of a batch of B rows, as pairs (row, edge), and what went wrong in the rows that have none."""

    rows: np.ndarray
    edges: np.ndarray
    failures: dict[int, tuple[Status, str]]


def checked_edges(function: str, edges: object, num_nodes: int | None, *, loops: bool = True) -> np.ndarray:
    """The edges as int64 `[E, 2]`, checked: nodes in range, without num_nodes from 0 on; loops only where allowed."""
    array = edges.detach().cpu().numpy() if isinstance(edges, Tensor) else np.asarray(edges)
    if array.size == 0:
        return np.zeros((0, 2), dtype=np.int64)
    if array.dtype.kind not in "iu":
        raise TypeError(f"{function}: argument 'edges' must hold integers, got {array.dtype}; nodes are 0, 1, 2, ...")
    if array.ndim != 2 or array.shape[1] != 2:
        raise ValueError(f"{function}: argument 'edges' must have shape [E, 2], rows (tail, head), got {array.shape}")
    array = array.astype(np.int64)
    outside = (array < 0) | (array >= num_nodes) if num_nodes is not None else array < 0
    if outside.any():
        bad = int(np.flatnonzero(outside.any(1))[0])
        rule = (
            "not be negative" if num_nodes is None else f"name nodes in [0, {num_nodes - 1}] (num_nodes = {num_nodes})"
        )
        raise ValueError(f"{function}: argument 'edges' must {rule}, got {tuple(array[bad].tolist())} in edge {bad}")
    same = np.flatnonzero(array[:, 0] == array[:, 1])
    if len(same) and not loops:
        raise ValueError(
            f"{function}: argument 'edges' must join different nodes, got {tuple(array[same[0]].tolist())} in edge "
            f"{same[0]}"
        )
    return array


def checked_nodes(function: str, name: str, values: np.ndarray, num_nodes: int) -> None:
    """Raises unless these are integers in [0, num_nodes)."""
    if values.dtype.kind not in "iu":
        raise TypeError(f"{function}: parameter {name!r} must hold integers, got {values.dtype}")
    if values.size and not 0 <= values.min() <= values.max() < num_nodes:
        bad = int(values.min()) if values.min() < 0 else int(values.max())
        raise ValueError(f"{function}: parameter {name!r} must be in [0, {num_nodes - 1}], got {bad}")


def checked_mask(function: str, name: str, values: np.ndarray) -> None:
    """Raises unless these are booleans."""
    if values.dtype.kind != "b":
        raise TypeError(f"{function}: parameter {name!r} must be boolean, True = present, got {values.dtype}")


class Graph:
    """A directed graph whose structure is analysed once.

    Args:
        edges: int64 `[E, 2]`, rows (tail, head); parallel edges and loops are allowed.
        num_nodes: N.
    """

    def __init__(self, edges: np.ndarray, num_nodes: int) -> None:
        self.num_nodes = num_nodes
        self._unions = PerThread()
        self.tails, self.heads = np.ascontiguousarray(edges[:, 0]), np.ascontiguousarray(edges[:, 1])

    @cached_property
    def levels(self) -> np.ndarray | None:
        """The longest number of edges on a walk that ends in each node; None when there is a cycle."""
        by_tail = np.argsort(self.tails, kind="stable")
        first = np.searchsorted(self.tails[by_tail], np.arange(self.num_nodes + 1)).tolist()
        heads, missing = self.heads[by_tail].tolist(), np.bincount(self.heads, minlength=self.num_nodes).tolist()
        levels, ready = [0] * self.num_nodes, [v for v, count in enumerate(missing) if count == 0]
        for node in ready:  # grows as it goes
            for head in heads[first[node] : first[node + 1]]:
                levels[head] = max(levels[head], levels[node] + 1)
                missing[head] -= 1
                if missing[head] == 0:
                    ready.append(head)
        return np.array(levels, dtype=np.int64) if len(ready) == self.num_nodes else None

    @property
    def acyclic(self) -> bool:
        """Whether there is no directed cycle."""
        return self.levels is not None

    def shortest_paths(
        self,
        costs: np.ndarray,
        sources: np.ndarray,
        targets: np.ndarray,
        *,
        negative: bool = False,
        deadline: float | None = None,
    ) -> Paths:
        """Shortest paths by the algorithm that fits.

        Args:
            costs: `[B, E]`; +inf where an edge is absent.
            sources, targets: `[B]`.
            negative: whether costs may be negative although there are cycles.
            deadline: of `time.monotonic()`; between chunks of rows, and in Bellman-Ford between sweeps.
        """
        solve: Any = self._dynamic_program if self.acyclic else self._bellman_ford if negative else self._dijkstra
        costs = _scaled(costs, self.num_nodes)
        step = max(1, DOUBLES_AT_ONCE // max(1, len(self.tails)))
        rows, edges, failures = [], [], {}
        for start in range(0, len(costs), step):
            part = slice(start, start + step)
            if deadline is not None and time.monotonic() > deadline:
                late = range(start, len(costs))
                failures.update((row, (Status.TIMEOUT, "the time was up before its turn")) for row in late)
                break
            found = solve(costs[part], sources[part], targets[part], deadline)
            rows.append(found.rows + start)
            edges.append(found.edges)
            failures.update((row + start, why) for row, why in found.failures.items())
        empty = [np.zeros(0, dtype=np.int64)]
        return Paths(np.concatenate(rows or empty), np.concatenate(edges or empty), failures)

    # --- acyclic: dynamic program over the levels, all rows at once ---

    @cached_property
    def _plan(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, list[tuple[int, int, int, int]], int]:
        """Nodes renumbered by level, edges sorted by head, and each level's slices of both."""
        levels = self.levels
        assert levels is not None
        nodes = np.argsort(levels, kind="stable")
        place = np.empty_like(nodes)
        place[nodes] = np.arange(len(nodes))
        order = np.argsort(place[self.heads], kind="stable")
        heads = place[self.heads][order]
        roots = int((levels == 0).sum())  # exactly the nodes without incoming edges
        starts = np.searchsorted(heads, np.arange(roots, self.num_nodes))
        ends = np.append(starts, len(heads))
        slices, sizes = [], np.bincount(levels)
        node = roots
        for size in sizes[1:].tolist():
            slices.append((node, node + size, int(ends[node - roots]), int(ends[node - roots + size])))
            node += size
        return place, order, place[self.tails][order], starts, slices, roots

    def _dynamic_program(self, costs: np.ndarray, sources: np.ndarray, targets: np.ndarray, deadline: Any) -> Paths:
        place, order, tails, starts, slices, roots = self._plan
        size, columns = len(costs), np.arange(len(costs))
        begin, end = place[sources], place[targets]
        cost = np.ascontiguousarray(costs.T[order])  # shape: (E, B), so that a level is one contiguous block
        distance = np.full((self.num_nodes, size), np.inf)
        distance[begin, columns] = 0.0
        sourced = set(begin.tolist())
        through = np.empty_like(cost)
        for low, high, first, last in slices:
            block = through[first:last]
            np.take(distance, tails[first:last], axis=0, out=block)
            block += cost[first:last]
            best = np.minimum.reduceat(block, starts[low - roots : high - roots] - first, axis=0)
            if any(low <= node < high for node in sourced):
                np.minimum(best, distance[low:high], out=best)
            distance[low:high] = best
        if len(order) == 0:
            parent = np.zeros((self.num_nodes, size), dtype=np.int64)
        else:
            counts = np.diff(np.append(starts, len(order)))
            parent = np.zeros((self.num_nodes, size), dtype=np.int64)
            parent[roots:] = _first_true(through == np.repeat(distance[roots:], counts, axis=0), starts)
        rows, edges = _follow(
            lambda node, row: parent[node, row], tails, begin, end, np.isfinite(distance[end, columns])
        )
        return Paths(rows, order[edges], self._unreachable(np.isfinite(distance[end, columns]), sources, targets))

    # --- cycles, no negative cost: Dijkstra on disjoint copies of the graph, one a row ---

    @cached_property
    def _pairs(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Edges sorted by (tail, head), where each pair of nodes begins in them, and the pairs' keys."""
        keys = self.tails * self.num_nodes + self.heads
        order = np.argsort(keys, kind="stable")
        unique, starts = np.unique(keys[order], return_index=True)
        return order, starts, unique

    @cached_property
    def _copies(self) -> tuple[int, np.ndarray, np.ndarray]:
        """How many copies of the graph are solved in one call, and the sparse structure of so many."""
        keys, nodes = self._pairs[2], self.num_nodes
        count = max(1, 2000 // nodes)  # larger unions only make SciPy's heap slower
        tails, heads = np.divmod(keys, nodes)
        offsets = np.arange(count)[:, None]
        indices = (heads + offsets * nodes).ravel().astype(np.int32)
        first = np.searchsorted(tails, np.arange(nodes))
        pointers = np.append((first + offsets * len(keys)).ravel(), count * len(keys)).astype(np.int32)
        return count, indices, pointers

    def _union(self, count: int) -> Any:
        """So many disjoint copies of the graph, as a sparse matrix whose costs are put in with every use."""
        sparse = solver_module("difflayers.oracles.ShortestPath", "scipy.sparse")
        _, indices, pointers = self._copies
        nodes, pairs = count * self.num_nodes, count * len(self._pairs[2])
        # built from its three arrays: other constructors drop the explicit zeros, which are edges of cost 0
        return sparse.csr_array((np.zeros(pairs), indices[:pairs], pointers[: nodes + 1]), shape=(nodes, nodes))

    def _dijkstra(self, costs: np.ndarray, sources: np.ndarray, targets: np.ndarray, deadline: Any) -> Paths:
        search = solver_module("difflayers.oracles.ShortestPath", "scipy.sparse.csgraph")
        order, starts, keys = self._pairs
        copies = self._copies[0]
        nodes, pairs, size = self.num_nodes, len(keys), len(costs)
        parallel = pairs < len(order)
        sorted_costs = costs[:, order]
        # SciPy would add up parallel edges; the cheapest of them is what counts
        weights = np.minimum.reduceat(sorted_costs, starts, axis=1) if parallel else sorted_costs
        good, lengths, steps = np.ones(size, dtype=bool), [], []
        for start in range(0, size, copies):
            count = min(copies, size - start)
            part = slice(start, start + count)
            union = self._unions.get(count, partial(self._union, count))
            union.data = weights[part].ravel()
            offsets = np.arange(count) * nodes
            origins, ends = sources[part] + offsets, targets[part] + offsets
            distance, previous, _ = search.dijkstra(union, indices=origins, min_only=True, return_predecessors=True)
            good[part] = np.isfinite(distance[ends])
            # the predecessors are a tree even where zero costs tie, which equal distances alone would not give
            before = previous.tolist()
            ends = zip(origins.tolist(), ends.tolist(), offsets.tolist(), good[part].tolist(), strict=True)
            for origin, node, offset, found in ends:
                walked = len(steps)
                while found and node != origin:
                    tail = before[node]
                    steps.append((tail - offset) * nodes + node - offset)
                    node = tail
                lengths.append(len(steps) - walked)
        rows = np.repeat(np.arange(size), lengths)
        which = np.searchsorted(keys, np.array(steps, dtype=np.int64))
        if parallel:
            counts = np.diff(np.append(starts, len(order)))
            hit = sorted_costs == np.repeat(weights, counts, axis=1)
            which = _first_true(hit.T, starts)[which, rows]
        return Paths(rows, order[which], self._unreachable(good, sources, targets))

    # --- cycles and negative costs: Bellman-Ford, all rows at once ---

    def _bellman_ford(
        self, costs: np.ndarray, sources: np.ndarray, targets: np.ndarray, deadline: float | None
    ) -> Paths:
        nodes, size, columns = self.num_nodes, len(costs), np.arange(len(costs))
        # a negative cycle that leads nowhere near the target does not matter
        useful: dict[tuple[int, int, bytes], np.ndarray] = {}
        costs = costs.copy()
        for row, (source, target) in enumerate(zip(sources.tolist(), targets.tolist(), strict=True)):
            present = np.isfinite(costs[row])
            key = (source, target, present.tobytes())
            if key not in useful:
                useful[key] = self._useful(present, source, target)
            costs[row, ~useful[key]] = np.inf
        order = np.argsort(self.heads, kind="stable")
        entered, starts = np.unique(self.heads[order], return_index=True)
        counts = np.diff(np.append(starts, len(order)))
        tails, cost = self.tails[order], np.ascontiguousarray(costs.T[order])
        # below this an improvement is rounding; a cycle of total cost 0 must not look negative
        largest = np.where(np.isfinite(cost), np.abs(cost), 0.0).max(axis=0, initial=0.0)
        tolerance = 2 * EPSILON * nodes * largest
        distance = np.full((nodes, size), np.inf)
        distance[sources, columns] = 0.0
        parent = np.full((nodes, size), -1, dtype=np.int64)  # of sorted edges
        failures: dict[int, tuple[Status, str]] = {}
        for sweep in range(1, nodes + 2):
            through = distance[tails] + cost
            best = np.minimum.reduceat(through, starts, axis=0) if len(order) else np.zeros((0, size))
            better = best < distance[entered] - tolerance
            if not better.any():
                break
            edge = _first_true(through == np.repeat(best, counts, axis=0), starts)
            parent[entered] = np.where(better, edge, parent[entered])
            distance[entered] = np.where(better, best, distance[entered])
            if sweep & (sweep - 1) == 0 or sweep >= nodes:  # now and then: a cycle of parents is a negative cycle
                for row, cycle in self._cycles(np.where(parent >= 0, tails[parent], -1)).items():
                    shown = " -> ".join(map(str, cycle[:8])) + (" -> ..." if len(cycle) > 8 else "")
                    failures[row] = (Status.UNBOUNDED, f"negative cycle {shown}")
                    cost[:, row] = np.inf  # finished with
                    distance[:, row], parent[:, row] = np.inf, -1
            if deadline is not None and time.monotonic() > deadline:
                late = [row for row in np.flatnonzero(better.any(axis=0)).tolist() if row not in failures]
                failures.update((row, (Status.TIMEOUT, f"{sweep} sweeps of Bellman-Ford")) for row in late)
                break
        good = np.isfinite(distance[targets, columns])
        good[list(failures)] = False
        rows, edges = _follow(lambda node, row: parent[node, row], tails, sources, targets, good)
        return Paths(rows, order[edges], {**self._unreachable(good, sources, targets), **failures})

    def _useful(self, present: np.ndarray, source: int, target: int) -> np.ndarray:
        """Which of the present edges lie on a walk from source to target."""
        reached = self._reach(self.tails[present], self.heads[present], source)
        reaching = self._reach(self.heads[present], self.tails[present], target)
        return present & reached[self.tails] & reaching[self.heads]

    def _reach(self, tails: np.ndarray, heads: np.ndarray, start: int) -> np.ndarray:
        sparse = solver_module("difflayers.oracles.ShortestPath", "scipy.sparse")
        search = solver_module("difflayers.oracles.ShortestPath", "scipy.sparse.csgraph")
        matrix = sparse.csr_array((np.ones(len(tails)), (tails, heads)), shape=(self.num_nodes, self.num_nodes))
        seen = np.zeros(self.num_nodes, dtype=bool)
        seen[search.breadth_first_order(matrix, start, return_predecessors=False)] = True
        return seen

    def _cycles(self, before: np.ndarray) -> dict[int, list[int]]:
        """A cycle of each row whose predecessors (nodes by rows, -1 = none) have one, in the edges' direction."""
        nodes, size = before.shape
        # one node more, its own predecessor, stands for "none"
        ancestor = np.vstack([np.where(before < 0, nodes, before), np.full((1, size), nodes)])
        far, steps = ancestor, 1
        while steps < nodes:
            far, steps = np.take_along_axis(far, far, axis=0), 2 * steps
        found = {}
        for row in np.flatnonzero((far < nodes).any(axis=0)).tolist():
            node = int(far[far[:, row] < nodes, row][0])  # so many steps back that it must lie on the cycle
            cycle = [node]
            while (node := int(before[node, row])) != cycle[0]:
                cycle.append(node)
            found[row] = [*cycle, cycle[0]][::-1]
        return found

    def _unreachable(self, good: np.ndarray, sources: np.ndarray, targets: np.ndarray) -> dict:
        return {
            row: (Status.INFEASIBLE, f"no path from node {sources[row]} to node {targets[row]}")
            for row in np.flatnonzero(~good).tolist()
        }


def _scaled(costs: np.ndarray, num_nodes: int) -> np.ndarray:
    """The costs with rows near the end of the floating-point range scaled down, so that no sum overflows."""
    limit = np.finfo(np.float64).max / (4 * num_nodes)
    if costs.size == 0 or max(costs.max(), -costs.min()) <= limit:
        return costs
    finite = np.where(np.isfinite(costs), np.abs(costs), 0.0)
    return np.where(finite.max(axis=1, keepdims=True) > limit, np.ldexp(costs, -64), costs)


def _first_true(hits: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """The first true row of each segment of rows that begins at `starts`, column by column."""
    places = np.where(hits, np.arange(len(hits))[:, None], len(hits) - 1)
    return np.minimum.reduceat(places, starts, axis=0) if len(starts) else np.zeros((0, hits.shape[1]), dtype=np.int64)


def _follow(edge_into: Any, tails: np.ndarray, sources: np.ndarray, targets: np.ndarray, good: np.ndarray) -> Any:
    """Pairs (row, edge) of the paths, walked back from the targets along the edge that enters each node."""
    rows, edges = [np.zeros(0, dtype=np.int64)], [np.zeros(0, dtype=np.int64)]
    row = np.flatnonzero(good & (sources != targets))
    node, source = targets[row], sources[row]
    while len(row):
        edge = edge_into(node, row)
        rows.append(row)
        edges.append(edge)
        node = tails[edge]
        on = node != source
        if not on.all():
            row, node, source = row[on], node[on], source[on]
    return np.concatenate(rows), np.concatenate(edges)
