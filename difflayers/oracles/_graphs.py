"""Edges of undirected graphs, checked; and what is known of tours."""

from __future__ import annotations

import numpy as np


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
