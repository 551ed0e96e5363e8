"""Small feasible sets by enumeration: what the losses are checked against."""

import itertools
import math

import numpy as np
import torch

import difflayers as dl

ROWS, COLUMNS = 3, 3


def enumerated(vertices, **settings):
    """An oracle over listed solutions `[P, *cost_shape]`."""
    flat = np.asarray(vertices, dtype=float).reshape(len(vertices), -1)
    shape = tuple(vertices.shape[1:])

    def f(costs):
        return flat[(costs.reshape(len(costs), -1) @ flat.T).argmin(1)].reshape(costs.shape)

    return dl.oracles.FromCallable(f, shape, batched=True, **settings)


def subsets(n, k):
    """The 0-1 vectors of length n with k ones."""
    chosen = list(itertools.combinations(range(n), k))
    vertices = torch.zeros(len(chosen), n, dtype=torch.float64)
    for row, members in zip(vertices, chosen, strict=True):
        row[list(members)] = 1
    return vertices


def assignments(n):
    """The permutation matrices `[n!, n, n]`."""
    return torch.stack([torch.eye(n, dtype=torch.float64)[list(p)] for p in itertools.permutations(range(n))])


def grid_edges(rows, columns):
    """The edges of a grid, right and down, row by row."""
    edges = []
    for r in range(rows):
        edges += [(r * columns + c, r * columns + c + 1) for c in range(columns - 1)]
        edges += [(r * columns + c, (r + 1) * columns + c) for c in range(columns) if r + 1 < rows]
    return edges


def paths(rows, columns):
    """All monotone paths of a grid as 0-1 vectors over its edges."""
    edges = {edge: i for i, edge in enumerate(grid_edges(rows, columns))}
    found = []
    for downs in itertools.combinations(range(rows + columns - 2), rows - 1):
        at, path = 0, torch.zeros(len(edges), dtype=torch.float64)
        for step in range(rows + columns - 2):
            to = at + (columns if step in downs else 1)
            path[edges[at, to]] = 1
            at = to
        found.append(path)
    assert len(found) == math.comb(rows + columns - 2, rows - 1)
    return torch.stack(found)


def flow_constraints(rows, columns):
    """A_eq, b_eq of a unit flow through the grid."""
    edges = grid_edges(rows, columns)
    A = np.zeros((rows * columns, len(edges)))
    for i, (tail, head) in enumerate(edges):
        A[tail, i], A[head, i] = 1, -1
    b = np.zeros(rows * columns)
    b[0], b[-1] = 1, -1
    return A, b


SETS = {
    "one of four": torch.eye(4, dtype=torch.float64),
    "two of five": subsets(5, 2),
    "any of three": torch.tensor(list(itertools.product([0.0, 1.0], repeat=3)), dtype=torch.float64),
    "paths": paths(ROWS, COLUMNS),
    "assignments": assignments(3),
    "integers": torch.tensor([[0, 2, 1], [1, 0, 3], [2, 2, 0], [-1, 1, 1]], dtype=torch.float64),
}


def rows_of(vertices, batch, seed=0):
    """Predicted and true costs `[batch, *cost_shape]` and the solutions of the true ones."""
    generator = torch.Generator().manual_seed(seed)
    predicted, true = torch.randn(2, batch, *vertices.shape[1:], generator=generator, dtype=torch.float64)
    return predicted, true, minimiser(vertices, true)


def values(vertices, costs):
    """`[B, P]`: the cost of every vertex."""
    return costs.flatten(1) @ vertices.flatten(1).T


def minimiser(vertices, costs):
    return vertices[values(vertices, costs).argmin(1)]


def gradient(f, x):
    """Of a sum of rows, by autograd."""
    x = x.clone().requires_grad_()
    return torch.autograd.grad(f(x).sum(), x)[0]


def finite_difference(f, x, step=1e-6):
    """Of a sum of rows, entry by entry."""
    result = torch.empty_like(x)
    for i in range(x[0].numel()):
        move = torch.zeros_like(x).flatten(1)
        move[:, i] = step
        move = move.reshape(x.shape)
        result.flatten(1)[:, i] = (f(x + move) - f(x - move)) / (2 * step)
    return result


def assert_convex(f, draw, trials=20):
    """f(b) >= f(a) + <g(a), b - a> for rows a, b that `draw(seed)` makes."""
    for seed in range(trials):
        a, b = draw(2 * seed), draw(2 * seed + 1)
        g = gradient(f, a)
        bound = f(a) + (g * (b - a)).flatten(1).sum(1)
        assert (f(b) - bound).min() > -1e-9
