"""The plain-PyTorch form of every kernel: ground truth, documentation, and what runs where no kernel does.

One function, `transport`, moves scores and a payload through a relaxed sorting network. With lo and hi
the ordered pair on a comparator, r = hi - lo and w = f(-r), the comparator puts out

    lo + w r,  hi - w r          and, for the payload rows that travel with them,
    p_lo + w (p_hi - p_lo),  p_hi - w (p_hi - p_lo).

That is alpha a + (1 - alpha) b with alpha = f(b - a), written so that nothing cancels and an infinite r
(an infinite operand, or a difference that overflows) is the exact swap, w = 0.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from . import networks
from .swaps import Swap


class Comparison(NamedTuple):
    """What one layer decided, for C comparators of B rows."""

    lower: Tensor  # [C] wire indices
    upper: Tensor  # [C]
    idle: Tensor  # [n - 2 C]
    position: Tensor  # [n] where each wire finds itself in (lower, upper, idle)
    exchanged: Tensor  # [B, C] bool: the pair came in the wrong order
    weight: Tensor  # [B, C] w


def _split(x: Tensor, layer: networks.Layer, n: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    lower, upper = (torch.as_tensor(wires, device=x.device) for wires in layer)
    idle = np.setdiff1d(np.arange(n), np.concatenate(layer), assume_unique=True)
    position = np.empty(n, dtype=np.int64)
    position[np.concatenate([*layer, idle])] = np.arange(n)
    return lower, upper, torch.as_tensor(idle, device=x.device), torch.as_tensor(position, device=x.device)


def _run(
    x: Tensor, s: Tensor, layers: tuple[networks.Layer, ...], swap: Swap, hard: bool
) -> tuple[Tensor, list[Comparison]]:
    """Sorted values and every layer's decisions for x: [B, n], s: [B, 1]."""
    trace = []
    for layer in layers:
        lower, upper, idle, position = _split(x, layer, x.shape[1])
        a, b = x[:, lower], x[:, upper]
        exchanged = a > b
        low, high = torch.where(exchanged, b, a), torch.where(exchanged, a, b)
        r = high - low
        exact = ~torch.isfinite(r)
        r = torch.where(exact, 0.0, r)
        weight = torch.where(exact, 0.0, swap.tail(r, s))
        shift = r * weight
        if hard:
            shift = shift - shift.detach()  # the value 0 with the gradient of the relaxed swap
        x = torch.cat([low + shift, high - shift, x[:, idle]], dim=1)[:, position]
        trace.append(Comparison(lower, upper, idle, position, exchanged, weight))
    return x, trace


def _mix(payload: Tensor, step: Comparison, hard: bool) -> Tensor:
    """One layer's mixture of payload: [B, n, m]; symmetric, so it is its own transpose."""
    a, b = payload[:, step.lower], payload[:, step.upper]
    exchanged, weight = step.exchanged[..., None], step.weight[..., None]
    low, high = torch.where(exchanged, b, a), torch.where(exchanged, a, b)
    shift = weight * (high - low)
    if hard:
        shift = shift - shift.detach()
    return torch.cat([low + shift, high - shift, payload[:, step.idle]], dim=1)[:, step.position]


def transport(
    scores: Tensor,
    steepness: Tensor | None,
    payload: Tensor | None,
    what: str,
    network: str,
    first: int,
    last: int,
    swap: Swap,
    constant: float,
    hard: bool,
) -> Tensor:
    """Moves scores, or a payload, through the network; only output wires first..last-1 are wanted.

    With k = last - first and P the relaxed permutation of the n scores of a row, `what` chooses

    | what                 | payload            | result                                   |
    |----------------------|--------------------|------------------------------------------|
    | "values"             | None               | [B, k] the sorted values                 |
    | "matrix"             | None               | [B, k, n] rows first..last-1 of P        |
    | "carry"              | [B or 1, n, m]     | [B, k, m] those rows of P @ payload      |
    | "carry_transposed"   | [B or 1, k, m]     | [B, n, m] those rows of P, ^T @ payload  |

    Args:
        scores: [B, n], float32 or float64. A row with a NaN comes out as NaN everywhere.
        steepness: [B], or None: then every row has the steepness `constant`.
        network: a specification string of `networks.resolve`.
    """
    n = scores.shape[1]
    layers = networks.layers(network, n, first, last)
    broken = torch.isnan(scores).any(dim=1, keepdim=True)
    poison = torch.where(broken, torch.nan, 1.0).to(scores.dtype)  # [B, 1]; multiplies values and gradients alike
    # an empty sum: ties the result to the graph of the scores even where no comparator does (n < 2)
    tie = scores[:, :0].sum(dim=1, keepdim=True)
    s = scores.new_full((1, 1), constant) if steepness is None else steepness[:, None]
    values, trace = _run(scores, s, layers, swap, hard)
    if what == "values":
        return values[:, first:last] * poison + tie
    if what == "matrix":
        payload = torch.eye(n, dtype=scores.dtype, device=scores.device)[None]
    assert payload is not None
    if hard and what != "matrix":
        # the straight-through gradient is that of the matrix, which a payload then multiplies
        matrix = transport(scores, steepness, None, "matrix", network, first, last, swap, constant, hard)
        return (matrix if what == "carry" else matrix.mT) @ payload
    moved = payload.expand(scores.shape[0], -1, -1)
    if what == "carry_transposed":
        moved = torch.nn.functional.pad(moved, (0, 0, first, n - last))
        for step in reversed(trace):
            moved = _mix(moved, step, hard)
    else:
        for step in trace:
            moved = _mix(moved, step, hard)
        moved = moved[:, first:last]
    return moved * poison[..., None] + tie[..., None]
