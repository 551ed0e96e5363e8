r"""Exactly k of n in plain PyTorch: what the kernels compute, and what runs where there is none.

With $P(z) \propto \exp(\theta \cdot z)$ on the z in {0, 1}^n that sum to k, adding a constant to theta changes
nothing. So theta is shifted by the lambda of `threshold`, which makes k the expected count of independent
variables with probabilities $p_i = \sigma(\theta_i - \lambda)$, and the dynamic program of their count (the
Poisson binomial distribution) has positive terms only and loses nothing to cancellation or underflow. Lambda is a
constant to every derivative.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .threshold import threshold


def _product(a: Tensor, b: Tensor) -> Tensor:
    """The product of two truncated polynomials in m directions, [2^m, ...] each.

    Component c is the derivative along the directions in the bits of c, so that of the product is the sum over
    the subsets u of c of a[u] b[c without u].
    """
    if a.shape[0] == 1:
        return a * b
    terms = [
        sum((a[u] * b[c ^ u] for u in range(1, c + 1) if u & c == u), a[0] * b[c])  # shape: [...]
        for c in range(a.shape[0])
    ]
    return torch.stack(terms)


def _probabilities(theta: Tensor, shift: Tensor, directions: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    """sigmoid(theta - shift) and sigmoid(shift - theta) with their derivatives: [2^m, B, n] each, m <= 3."""
    p, q = torch.sigmoid(theta - shift), torch.sigmoid(shift - theta)
    # derivatives of the sigmoid of order 0, 1, 2, 3
    orders = [p, p * q, p * q * (q - p), p * q * ((q - p) ** 2 - 2 * p * q)]
    parts = []
    for c in range(2 ** len(directions)):
        chosen = [d for bit, d in enumerate(directions) if c >> bit & 1]
        part = orders[len(chosen)]
        for d in chosen:
            part = part * d
        parts.append(part)
    return torch.stack(parts), torch.stack([q, *(-part for part in parts[1:])])


def _counts(r: Tensor, s: Tensor, counts: int) -> list[Tensor]:
    """Distributions of the number of events among the first 0, ..., n elements: [2^m, B, counts] each."""
    row = torch.cat([torch.ones_like(r[:1, :, :1]), torch.zeros_like(r[1:, :, :1])])  # shape: [2^m, B, 1]
    row = torch.nn.functional.pad(row, (0, counts - 1))
    rows = [row]
    for i in range(r.shape[2]):
        moved = torch.nn.functional.pad(row[..., :-1], (1, 0))
        row = _product(s[:, :, i, None], row) + _product(r[:, :, i, None], moved)
        rows.append(row)
    return rows


def marginals(theta: Tensor, k: int, directions: tuple[Tensor, ...] = ()) -> Tensor:
    """P(z_i = 1), or its derivative along up to three directions.

    Args:
        theta: [B, n], finite.
        k: in (0, n).
        directions: [B, n] each.

    Returns:
        [B, n], differentiable without limit. O(n k) time and, for backward, memory per row.
    """
    few = 2 * k <= theta.shape[1]
    p, q = _probabilities(theta, threshold(theta, k), directions)
    r, s = (p, q) if few else (q, p)
    wanted = k - 1 if few else theta.shape[1] - k
    prefix = _counts(r, s, wanted + 1)[:-1]
    suffix = _counts(r.flip(2), s.flip(2), wanted + 1)[-2::-1]  # of the elements after i
    joint = [_product(a, b.flip(2)).sum(2) for a, b in zip(prefix, suffix, strict=True)]
    shares = _product(p, torch.stack(joint, dim=2))
    total = shares.sum(2, keepdim=True) / k  # P(the count is k)
    return _quotient(shares, total)


def _quotient(a: Tensor, b: Tensor) -> Tensor:
    """The last component of a / b."""
    parts: list[Tensor] = []
    for c in range(a.shape[0]):
        rest = a[c]
        for u in range(1, c + 1):
            if u & c == u:
                rest = rest - b[u] * parts[c ^ u]
        parts.append(rest / b[0])
    return parts[-1]


def log_normalizer(theta: Tensor, k: int) -> Tensor:
    """log sum over the subsets of k of exp(sum of their theta): [B, n] -> [B], 0 < k < n."""
    few = 2 * k <= theta.shape[1]
    shift = threshold(theta, k)
    p, q = _probabilities(theta, shift, ())
    r, s = (p, q) if few else (q, p)
    wanted = k if few else theta.shape[1] - k
    last = _counts(r, s, wanted + 1)[-1][0, :, -1]
    # (softplus of PyTorch drops exp(-20))
    return last.log() + k * shift[:, 0] - torch.nn.functional.logsigmoid(shift - theta).sum(1)


def sample(theta: Tensor, uniform: Tensor, k: int) -> Tensor:
    """Exact samples by walking the table of counts backwards.

    Args:
        theta: [B, n], finite; gets no gradient.
        uniform: [B, samples, n] in [0, 1).
        k: in (0, n).

    Returns:
        [B, samples, n] of 0 and 1 in the dtype of theta, k ones in each row.
    """
    theta = theta.detach()
    n = theta.shape[1]
    few = 2 * k <= n
    p, q = _probabilities(theta, threshold(theta, k), ())
    r, s = (p, q) if few else (q, p)
    wanted = k if few else n - k
    rows = _counts(r, s, wanted + 1)
    left = torch.full_like(uniform[..., 0], wanted, dtype=torch.int64)  # shape: [B, samples]
    members = []
    for i in range(n - 1, -1, -1):
        before = rows[i][0]  # shape: [B, wanted + 1]
        given = r[0, :, i, None] * before.gather(1, (left - 1).clamp(min=0))
        other = s[0, :, i, None] * before.gather(1, left)
        # the ends are certain, whatever rounding says
        happens = (left > 0) & ((left == i + 1) | (uniform[..., i] * (given + other) < given))
        left = left - happens.to(torch.int64)
        members.append(happens if few else ~happens)
    return torch.stack(members[::-1], dim=2).to(theta.dtype)
