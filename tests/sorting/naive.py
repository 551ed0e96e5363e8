"""The definitions, written out one comparator at a time in float64: what every function is compared with.

A row of scores is a 1-D tensor. Nothing here is shared with the library but the tables of comparators, which
test_networks.py checks on their own. Gradients come from autograd on these formulas.
"""

import math

import torch

from difflayers.sorting import networks

ART_LAMBDA = 0.25

# f(d; s) as published: weight of "already in order" for d = b - a
SIGMOIDS = {
    "logistic": lambda d, s: torch.sigmoid(s * d),
    "logistic_art": lambda d, s: torch.sigmoid(s * d / (d.abs() + 1e-10) ** ART_LAMBDA),
    "gaussian": lambda d, s: (1 + torch.erf(s * d / math.sqrt(2))) / 2,
    "reciprocal": lambda d, s: (1 + s * d / (2 + (s * d).abs())) / 2,
    "cauchy": lambda d, s: 0.5 + torch.atan(s * d) / math.pi,
    "optimal": lambda d, s: _optimal(s * d),
}


def _optimal(v):
    middle = v.abs() <= 0.25
    outside = torch.where(middle, torch.ones_like(v), v)
    return torch.where(middle, 0.5 + v, torch.where(v > 0, 1 - 1 / (16 * outside), -1 / (16 * outside)))


def comparators(network, n):
    """[(a, b), ...] in the order in which they act."""
    spec = network if isinstance(network, str) else network.spec
    return [(int(a), int(b)) for layer in networks.layers(spec, n) for a, b in zip(*layer, strict=True)]


def run(x, *, network="odd_even_merge", swap="cauchy", steepness=10.0, hard=False):
    """Sorted values and permutation matrix of one row; an infinite difference is the exact swap.

    With hard=True the forward is exact and the backward that of the soft swap at the exact wire values
    (error-free swaps, arXiv 2310.07174), for the values and for the matrix.
    """
    wires, n = list(x.unbind()), len(x)
    matrix = torch.eye(n, dtype=x.dtype)
    for a, b in comparators(network, n):
        low, high = (wires[b], wires[a]) if bool(wires[a] > wires[b]) else (wires[a], wires[b])
        ordered = float(low is wires[a])
        d = wires[b] - wires[a]
        if not bool(d.isfinite()):
            soft_low, soft_high, alpha = low, high, torch.tensor(ordered, dtype=x.dtype)
        else:
            alpha = SIGMOIDS[swap](d, steepness)
            soft_low = alpha * wires[a] + (1 - alpha) * wires[b]
            soft_high = (1 - alpha) * wires[a] + alpha * wires[b]
        step = _mixture(n, a, b, alpha)
        if hard:
            exact = _mixture(n, a, b, torch.tensor(ordered, dtype=x.dtype))
            step, soft = exact, step
            wires[a] = straight_through(low, soft_low)
            wires[b] = straight_through(high, soft_high)
            matrix = straight_through(step @ matrix, soft @ matrix)
        else:
            wires[a], wires[b] = soft_low, soft_high
            matrix = step @ matrix
    return (torch.stack(wires) if wires else x), matrix


def straight_through(exact, soft):
    """The value of `exact` with the gradient of `soft`; infinities stay as they are."""
    if not bool(torch.isfinite(soft).all()):
        return exact
    return soft + (exact - soft).detach()


def _mixture(n, a, b, alpha):
    one, other = torch.zeros(n, n, dtype=alpha.dtype), torch.zeros(n, n, dtype=alpha.dtype)
    one[a, a] = one[b, b] = other[a, b] = other[b, a] = 1
    idle = torch.eye(n, dtype=alpha.dtype)
    idle[a, a] = idle[b, b] = 0
    return idle + alpha * one + (1 - alpha) * other


def sort(x, *, descending=False, **settings):
    values = run(x, **settings)[0]
    return values.flip(0) if descending else values


def permutation(x, *, descending=False, **settings):
    matrix = run(x, **settings)[1]
    return matrix.flip(0) if descending else matrix


def rank(x, **settings):
    return permutation(x, **settings).T @ torch.arange(1, len(x) + 1, dtype=x.dtype)


def sort_by(x, payload, *, inverse=False, **settings):
    matrix = permutation(x, **settings)
    return (matrix.T if inverse else matrix) @ payload.to(matrix.dtype)


def topk_values(x, k, *, largest=True, **settings):
    return sort(x, descending=largest, **settings)[:k]


def topk_membership(x, k, *, largest=True, **settings):
    return permutation(x, descending=largest, **settings)[:k].sum(0)


def quantile(x, q, **settings):
    """q: a 0-dimensional or 1-dimensional tensor."""
    at = q.double() * (len(x) - 1)
    low = at.floor()
    values = sort(x, **settings)
    return values[low.long()] + (at - low) * (values[at.ceil().long()] - values[low.long()])


def cross_entropy(x, order, kind, **settings):
    matrix, n = permutation(x, **settings), len(x)
    total = 0.0
    for i in range(n):
        for j in range(n):
            right = int(order[i]) == j
            if right or kind == "binary":
                total = total - torch.log((matrix[i, j] if right else 1 - matrix[i, j]).clamp(min=1e-7))
    return total / (n * n if kind == "binary" else n)


def spearman(x, targets, **settings):
    ranks = rank(x, **settings)
    ranks, targets = ranks - ranks.mean(), targets.to(x.dtype) - targets.to(x.dtype).mean()
    return 1 - (ranks * targets).sum() / (ranks.square().sum() * targets.square().sum()).sqrt()


def ndcg(x, relevance, k, **settings):
    # descending order of the scores is the ascending order of their negatives
    gains = 2.0 ** relevance.to(x.dtype) - 1
    found, ideal = permutation(-x, **settings) @ gains, gains.sort(descending=True).values
    discount = 1 / torch.log2(torch.arange(2, len(x) + 2, dtype=x.dtype))
    return 1 - (found * discount)[:k].sum() / (ideal * discount)[:k].sum()


def topk_cross_entropy(x, label, distribution, top1, **settings):
    best_first = permutation(x, descending=True, **settings)[:, label]
    total = 0.0
    for k, p in enumerate(distribution, start=1):
        if k == 1 and top1 == "softmax":
            total = total + p * torch.softmax(x, 0)[label]
        else:
            total = total + p * best_first[:k].sum()
    return -torch.log(total * (1 - 2e-7) + 1e-7)
