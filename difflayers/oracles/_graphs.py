"""Edges of undirected graphs, checked; and what is known of tours."""

from __future__ import annotations

from typing import Any

import numpy as np

from ._ortools import array


def checked_edges(name: str, edges: Any, num_nodes: int | None) -> np.ndarray:
    """int64 (E, 2), without loops, nodes in range."""
    result = array(name, "edges", edges)
    if result.size == 0:
        return np.zeros((0, 2), dtype=np.int64)
    if result.dtype.kind == "f":
        raise TypeError(f"{name}: argument 'edges' must hold integers, got dtype {result.dtype}")
    if result.ndim != 2 or result.shape[1] != 2:
        raise ValueError(f"{name}: argument 'edges' must have shape [E, 2], got {result.shape}")
    result = result.astype(np.int64)
    if (result < 0).any() or (num_nodes is not None and (result >= num_nodes).any()):
        rule = "not be negative" if num_nodes is None else f"be nodes in [0, {num_nodes - 1}]"
        worst = result.min() if (result < 0).any() else result.max()
        raise ValueError(f"{name}: argument 'edges' must {rule}, got {worst}")
    loops = np.flatnonzero(result[:, 0] == result[:, 1])
    if len(loops):
        raise ValueError(f"{name}: argument 'edges' must join different nodes, got {result[loops[0]].tolist()}")
    return result


def complete_edges(n: int) -> np.ndarray:
    """int64 (n (n - 1) / 2, 2), the pairs i < j in the order of `torch.triu_indices(n, n, 1)`."""
    return np.stack(np.triu_indices(n, 1), axis=1).astype(np.int64)


def components(first: np.ndarray, second: np.ndarray, num_nodes: int) -> list[list[int]]:
    """The connected components of the graph with these edges."""
    neighbours: list[list[int]] = [[] for _ in range(num_nodes)]
    for u, v in zip(first.tolist(), second.tolist(), strict=True):
        neighbours[u].append(v)
        neighbours[v].append(u)
    seen = [False] * num_nodes
    found = []
    for root in range(num_nodes):
        if not seen[root]:
            seen[root] = True
            stack, part = [root], []
            while stack:
                node = stack.pop()
                part.append(node)
                for other in neighbours[node]:
                    if not seen[other]:
                        seen[other] = True
                        stack.append(other)
            found.append(part)
    return found
