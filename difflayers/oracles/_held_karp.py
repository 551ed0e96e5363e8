"""The shortest tours of a batch by the dynamic program over subsets, for a dozen nodes."""

from __future__ import annotations

import numpy as np

BATCH = 64  # at a time, so that the table stays within some megabytes


def shortest_tours(matrices: np.ndarray) -> np.ndarray:
    """Tours that start at node 0.

    Args:
        matrices: float64 (B, n, n), symmetric, n >= 3.

    Returns:
        int64 (B, n), the nodes in their order.

    References:
        Held, Karp, "A dynamic programming approach to sequencing problems", 1962.
    """
    parts = [_tours(matrices[start : start + BATCH]) for start in range(0, len(matrices), BATCH)]
    return np.concatenate(parts) if parts else np.zeros((0, matrices.shape[1]), dtype=np.int64)


def _tours(matrices: np.ndarray) -> np.ndarray:
    batch, n, _ = matrices.shape
    m = n - 1  # the nodes but 0; node j is bit j - 1
    between = np.ascontiguousarray(matrices[:, 1:, 1:].transpose(1, 2, 0))
    home = np.ascontiguousarray(matrices[:, 0, 1:].T)
    subsets = np.arange(2**m)
    size = np.array([int(subset).bit_count() for subset in subsets])
    # best[S, j]: the cheapest way from 0 through all of S that ends in j
    best = np.full((2**m, m, batch), np.inf)
    best[1 << np.arange(m), np.arange(m)] = home
    for count in range(2, m + 1):
        layer = subsets[size == count]
        for j in range(m):
            containing = layer[(layer >> j) & 1 == 1]
            before = best[containing ^ (1 << j)]  # (sets, m, B); infinite where the last node is not in the set
            best[containing, j] = (before + between[:, j]).min(axis=1)
    tours = np.zeros((batch, n), dtype=np.int64)
    rows = np.arange(batch)
    rest = np.full(batch, 2**m - 1)
    leg = home  # (m, B): from each node to the one after it
    for position in range(n - 1, 0, -1):
        last = (best[rest, :, rows].T + leg).argmin(axis=0)
        tours[:, position] = last + 1
        rest = rest ^ (1 << last)
        leg = between[:, last, rows]
    return tours
