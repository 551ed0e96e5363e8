"""Draws without replacement whose cost does not depend on the number of points: O(count) a problem, after a sort."""

from __future__ import annotations

import torch
from torch import Tensor

from ... import _random

RANGE = 600.0  # nats; exp(-RANGE) and a hundred nats less are still normal float64 numbers


def distinct(limit: Tensor, uniform: Tensor) -> Tensor:
    """Different integers of 0 ... limit - 1, every sequence equally likely.

    Fisher and Yates' shuffle, whose i-th step swaps place i with one from i on; the few swaps are undone for one place
    instead of done for all.

    Args:
        limit: `[...]` int64, at least k.
        uniform: `[..., k]` float64 in [0, 1); the draw.

    Returns:
        `[..., k]` int64.
    """
    places: list[Tensor] = []
    result = torch.empty(uniform.shape, dtype=torch.int64, device=uniform.device)
    for i in range(uniform.shape[-1]):
        place = i + (uniform[..., i] * (limit - i)).long()  # u < 1 keeps the rounded product below limit - i
        value = place
        for t in reversed(range(i)):
            value = torch.where(value == places[t], t, torch.where(value == t, places[t], value))
        places.append(place)
        result[..., i] = value
    return result


def uniform_sets(logits: Tensor, size: int, count: int, generator: torch.Generator | None) -> Tensor:
    """Different points among those whose logits `[B, N]` are not -inf, every sequence equally likely;
    `[B, count, size]`."""
    absent = logits.isneginf()
    number = (~absent).sum(-1, keepdim=True).expand(-1, count)
    uniform = _random.uniform((len(logits), count, size), device=logits.device, generator=generator)
    drawn = distinct(number, uniform)
    if not bool(absent.any()):
        return drawn
    order = absent.byte().sort(dim=-1, stable=True).indices  # those that may be drawn come first
    return order.gather(1, drawn.flatten(1)).view(drawn.shape)


def plackett_luce(logits: Tensor, size: int, count: int, generator: torch.Generator | None) -> Tensor:
    r"""Points drawn one after the other with probability $\propto e^{\theta_i}$ among those not drawn yet.

    By inverse distribution: the point at position u * (mass that is left) of a line on which the points that are
    left lie side by side, as long as their weights. The line is never built: a position is moved past the points
    drawn before, in their order on the line of all.

    The points lie in the order of their weights, the lightest first. So the mass that is left is a cumulative
    weight, of all up to the heaviest point left, less points that are no heavier than that one: at most size - 1
    of them, of a sum at least their heaviest. Nothing cancels, however few points hold however much of the mass.

    Args:
        logits: `[B, N]`, -inf or finite, at least `size` finite.

    Returns:
        `[B, count, size]` int64, in the order drawn.
    """
    if bool(((logits == logits.amax(-1, keepdim=True)) | logits.isneginf()).all()):
        return uniform_sets(logits, size, count, generator)
    ascending, order = logits.double().sort(-1)
    batch, n = ascending.shape
    weight = _representable(ascending, size).exp()
    upto = weight.cumsum(-1)
    before = torch.cat([upto.new_zeros(batch, 1), upto[:, :-1]], -1)
    uniform = _random.uniform((batch, count, size), device=logits.device, generator=generator)
    drawn = torch.empty((batch, count, 0), dtype=torch.int64, device=logits.device)

    def of(table: Tensor, position: Tensor) -> Tensor:
        return table.gather(1, position.reshape(batch, -1)).view(position.shape)

    for i in range(size):
        earlier = drawn.sort(-1).values
        heaviest = torch.full((batch, count), n - 1, device=logits.device)
        for t in reversed(range(i)):
            heaviest = heaviest - (earlier[..., t] == heaviest).long()
        own, start, end = of(weight, earlier), of(before, earlier), of(upto, earlier)
        left = of(upto, heaviest) - torch.where(earlier < heaviest.unsqueeze(-1), own, 0).sum(-1)
        at = uniform[..., i] * left
        for t in range(i):
            # at least `end`, whatever rounding does: a point is never drawn twice
            at = torch.where(at >= start[..., t], torch.maximum(at + own[..., t], end[..., t]), at)
        position = torch.searchsorted(upto, at, right=True)
        # rounding at the very end of the line
        drawn = torch.cat([drawn, torch.minimum(position, heaviest).unsqueeze(-1)], -1)
    return of(order, drawn)


def _representable(ascending: Tensor, size: int) -> Tensor:
    """Sorted logits, the largest 0, moved together where the `size` largest span more than float64 can hold.

    Gaps above RANGE / size become that: the chance that a draw overcomes such a gap, below exp(-75) for 8 points, is
    less than what 53 random bits resolve."""
    top = ascending[:, -size:]
    gaps = top.diff(dim=-1).clamp(max=RANGE / size)
    shifted = torch.cat([gaps.flip(-1).cumsum(-1).flip(-1).neg(), torch.zeros_like(top[:, :1])], -1)
    rest = ascending[:, :-size] - top[:, :1] + shifted[:, :1]
    return torch.cat([rest, shifted], -1)
