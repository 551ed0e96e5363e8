"""Small problems whose optimum is found by enumeration."""

from __future__ import annotations

import itertools

import numpy as np
import torch

from difflayers.oracles import FromCallable


def subsets(n: int, k: int) -> torch.Tensor:
    """All choices of k of n, [choices, n]."""
    rows = [[float(i in chosen) for i in range(n)] for chosen in itertools.combinations(range(n), k)]
    return torch.tensor(rows, dtype=torch.float64)


def quadratic(n: int, seed: int, *, convex: bool):
    """x' Q x + b' x."""
    generator = torch.Generator().manual_seed(seed)
    square = torch.randn(n, n, generator=generator, dtype=torch.float64)
    square = square @ square.T if convex else -square @ square.T
    linear = torch.randn(n, generator=generator, dtype=torch.float64)
    return lambda x: ((x @ square.to(x)) * x).sum(-1) + x @ linear.to(x)


class GridRoutes:
    """Monotone routes of a size x size grid, by a batched dynamic program; edges across first, then down."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.across = np.arange(size * (size - 1)).reshape(size, size - 1)
        self.down = len(self.across.ravel()) + np.arange((size - 1) * size).reshape(size - 1, size)
        self.edges = 2 * size * (size - 1)

    def solve(self, costs: np.ndarray) -> np.ndarray:
        batch, size = len(costs), self.size
        reach = np.full((batch, size, size), np.inf)
        reach[:, 0, 0] = 0.0
        last = np.zeros((batch, size, size), dtype=int)  # the edge by which a node is reached best
        for i, j in itertools.product(range(size), range(size)):
            for edge, before in ((self.across[i, j - 1] if j else -1, (i, j - 1)),
                                 (self.down[i - 1, j] if i else -1, (i - 1, j))):  # fmt: skip
                if edge >= 0:
                    along = reach[:, before[0], before[1]] + costs[:, edge]
                    better = along < reach[:, i, j]
                    reach[:, i, j] = np.where(better, along, reach[:, i, j])
                    last[:, i, j] = np.where(better, edge, last[:, i, j])
        routes = np.zeros_like(costs)
        for row in range(batch):
            i = j = size - 1
            while i or j:
                edge = last[row, i, j]
                routes[row, edge] = 1.0
                i, j = (i, j - 1) if edge < self.down[0, 0] else (i - 1, j)
        return routes

    def oracle(self, **settings) -> FromCallable:
        return FromCallable(self.solve, (self.edges,), batched=True, cost_domain="nonnegative", **settings)

    def all(self) -> torch.Tensor:
        rows = []
        for downs in itertools.combinations(range(2 * self.size - 2), self.size - 1):
            row, i, j = [0.0] * self.edges, 0, 0
            for step in range(2 * self.size - 2):
                edge = self.down[i, j] if step in downs else self.across[i, j]
                i, j = (i + 1, j) if step in downs else (i, j + 1)
                row[edge] = 1.0
            rows.append(row)
        return torch.tensor(rows, dtype=torch.float64)
