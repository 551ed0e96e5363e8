"""Small polytopes given by all their vertices, as oracles that can be enumerated."""

import numpy as np
import torch

import difflayers as dl


def enumerated(vertices, **settings):
    """The oracle of these vertices, and them as a float64 tensor."""
    vertices = torch.as_tensor(vertices, dtype=torch.float64)
    table = vertices.numpy()

    def f(costs):
        return table[(costs @ table.T).argmin(1)]

    return dl.oracles.FromCallable(f, (table.shape[1],), batched=True, **settings), vertices


def cube(n):
    """All 0/1 vectors."""
    return np.array([[i >> j & 1 for j in range(n)] for i in range(2**n)], dtype=float)


def subsets(n, k):
    """The 0/1 vectors with k ones."""
    return np.array([v for v in cube(n) if v.sum() == k])


def permutations(n):
    """The permutation matrices, flattened."""
    import itertools

    return np.array([np.eye(n)[list(p)].ravel() for p in itertools.permutations(range(n))])


def scattered(n, count, seed=0):
    """Random points, not 0/1."""
    return np.random.default_rng(seed).normal(size=(count, n))


POLYTOPES = {
    "cube": cube(5),
    "subsets": subsets(6, 2),
    "one of n": np.eye(7),
    "assignment": permutations(3)[:, :8],
    "scattered": scattered(4, 30),
    "segment": np.array([[0.0, 1.0, 2.0], [1.0, 1.0, 0.0]]),
    "point": np.ones((1, 3)),
}


def solve(vertices, costs):
    """The minimising vertices of costs [..., n], by enumeration."""
    return vertices[(costs @ vertices.T).argmin(-1)]


class Recorded(dl.oracles.FromCallable):
    """An enumerated oracle that keeps the costs of every call."""

    def __init__(self, vertices, **settings):
        self.calls = []
        table = np.asarray(vertices, dtype=float)
        super().__init__(lambda costs: table[(costs @ table.T).argmin(1)], (table.shape[1],), batched=True, **settings)

    def solve_batch(self, costs):
        """Remembers, then solves."""
        self.calls.append(costs.detach().clone())
        return super().solve_batch(costs)
