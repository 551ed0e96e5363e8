"""From gates to a budget, exactly."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .. import _checks
from ..errors import InfeasibleError
from ..oracles import Knapsack
from ._counts import ENUMERATED, Counts
from .attach import Gated
from .cost import Cost, checked
from .latency import Table

__all__ = ["Projection", "project"]

TOLERANCE = 0.005  # of the target: a selection that is this close below it meets it
CELLS = 2**20  # of the knapsack's table


class Projection(NamedTuple):
    """What `project` selected.

    Attributes:
        opened: `[size]` bool by group.
        share: of the dense model's cost that is left; never above the target.
        target: what was asked for.
        granularity: the least that any single step (one unit, or `round_to` of them) would add to the share; infinite
            when all is open. A share below the target by more than 0.5 % of it is due to this.
        kind: of the cost.
    """

    opened: dict[str, Tensor]
    share: float
    target: float
    granularity: float
    kind: str

    @property
    def met(self) -> bool:
        """Whether the share is within 0.5 % below the target."""
        return self.share >= self.target * (1 - TOLERANCE)

    def apply(self, gated: Gated) -> None:
        """Opens and closes the gates of a model so, by their weights; frozen gates stay frozen, at these values."""
        for name, gate in gated.gates.items():
            gate.set_open(self.opened[name])  # pyright: ignore[reportCallIssue]
        if gated.frozen is not None:
            gated.freeze(self.opened)


def project(
    gated: Gated,
    target: float,
    *,
    kind: str = "flops",
    table: Table | None = None,
    scores: Mapping[str, Tensor] | None = None,
    floors: int | float | Mapping[str, int] | None = None,
    round_to: int | Mapping[str, int] = 1,
    apply: bool = True,
) -> Projection:
    r"""Opens the gates that a budget pays for: at most the target, and within 0.5 % below it where that can be had.

    $$\max_S \sum_{u \in S} s_u \quad\text{s.t.}\quad C(S) \le \tau\, C_{full}$$

    approximately: C is a sum of products, so a threshold on all scores is found by bisection, the rest of the budget is
    filled by a knapsack on the costs that units add there, again and again; then exchanges between groups close the gap
    that is left. Small models (up to 200,000 choices of the groups' sizes) are enumerated. Within a group, units are
    kept in the order of their scores. A residual branch is worth its score for each unit within it, and these are worth
    nothing without it, nor where its score is below 0.

    Args:
        gated: of `difflayers.gates.attach`.
        target: the share $\tau$ of the dense model's cost, in (0, 1].
        kind: "flops", "parameters" or "latency".
        table: for "latency": seconds by module path, see `difflayers.gates.measure_latency`; None measures now.
        scores: how much each unit is worth, `[size]` by group, finite; each group is divided by its mean magnitude,
            residual branches by that of all of them. None: the gates' weights, as they are.
        floors: units that every group keeps: a number, a share of the group's size in (0, 1) (rounded up), or numbers
            by group; None: a sixteenth, at least 1. Rounded up to `round_to`. Residual branches may close whatever
            this is, but for those that are named with a 1.
        round_to: the groups' sizes are multiples of it (or whole); a number, or numbers by group.
        apply: writes the selection into the gates' weights.

    Returns:
        `Projection(opened, share, target, granularity, kind)`.

    Raises:
        InfeasibleError: the floors alone cost more than the target; it says how much.
        TypeError, ValueError: an argument of the wrong type or out of range.

    Cost, transforms:
        Some hundred evaluations of the cost; milliseconds to a second. No gradient.

    References:
        Dantzig, "Discrete-Variable Extremum Problems", 1957 (the knapsack).

    Example:
        >>> import torch, difflayers as dl
        >>> from torch import nn
        >>> net = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 4))
        >>> gated = dl.gates.attach(net, torch.randn(1, 4))
        >>> found = dl.gates.project(gated, 0.5, scores={"0": torch.arange(1.0, 17)})
        >>> found.share, found.met, gated.opened()["0"].nonzero().flatten().tolist()
        (0.5, True, [8, 9, 10, 11, 12, 13, 14, 15])
    """
    name = "difflayers.gates.project"
    gated = checked(name, gated)
    target = _checks.number(name, "target", target, above=0, maximum=1)
    apply = _checks.boolean(name, "apply", apply)
    cost = Cost(gated, kind, table)
    rounds = _by_group(name, "round_to", round_to, gated)
    choices = Counts(cost, _scores(name, gated, scores), floor_counts(name, gated, floors, round_to), rounds)
    lowest = float(choices.cost(choices.at(np.zeros(len(choices.names), dtype=int))[None])[0])
    # sums of shares are exact to a few ulp: 0.5 is to be reached by a half
    room = target * (1 + 1e-12)
    if lowest > room:
        raise InfeasibleError(
            f"{name}: argument 'target' must be at least {_up(lowest):g}, the share of {kind} that the floors cost, "
            f"got {target:g}; lower 'floors' or 'round_to', or raise the target"
        )
    best = _enumerated(choices, room) if choices.combinations() <= ENUMERATED else _searched(choices, room)
    counts = choices.at(best)
    opened = {}
    for group, count in zip(choices.names, counts.tolist(), strict=True):
        opened[group] = torch.zeros(cost.sizes[group], dtype=torch.bool)
        opened[group][choices.order[group][:count]] = True
    share = float(choices.cost(counts[None])[0])
    steps = _neighbours(best, choices)
    granularity = float((choices.cost(choices.at(steps)) - share).min()) if len(steps) else math.inf
    found = Projection(opened, min(share, target), target, granularity, kind)
    if apply:
        found.apply(gated)
    return found


def _enumerated(choices: Counts, room: float) -> np.ndarray:
    """The best choice of all: the highest score among those within the tolerance, else the dearest that fits."""
    best, key = choices.last, (-1, -math.inf, -math.inf)
    for indices in choices.all():
        counts = choices.at(indices)
        cost, gain = choices.cost(counts), choices.gain(counts)
        near = (cost <= room) & (cost >= room * (1 - TOLERANCE))
        fits = near if near.any() else cost <= room
        if fits.any():
            first, second = (gain, cost) if near.any() else (cost, gain)
            i = np.flatnonzero(fits)[np.lexsort((second[fits], first[fits]))[-1]]
            mine = (int(near.any()), float(first[i]), float(second[i]))
            if mine > key:
                best, key = indices[i], mine
    return best


def _searched(choices: Counts, room: float) -> np.ndarray:
    """Threshold, knapsack, exchanges."""
    at = _threshold(choices, room)
    for _ in range(8):
        filled = _filled(choices, at, room)
        if (filled == at).all():
            break
        at = filled
    at = _exchanged(choices, _greedy(choices, at, room), room)
    if choices.cost(choices.at(at)[None])[0] >= room * (1 - TOLERANCE):
        return at
    # other ways in: one group smaller, the rest filled up
    starts = [at - down * row for down in (1, 2, 4, 8) for row in np.eye(len(at), dtype=int)]
    ends = [_exchanged(choices, _greedy(choices, start, room), room) for start in starts if (start >= 0).all()]
    return max([at, *ends], key=lambda end: float(choices.cost(choices.at(end)[None])[0]))


def _threshold(choices: Counts, room: float) -> np.ndarray:
    """The units above one threshold of scores, the lowest that fits; equal scores count by their rank in the group, so
    that groups whose scores say nothing shrink in proportion."""
    scores = np.concatenate(choices.sorted_scores)
    ranks = np.concatenate([np.arange(size) / size for size in choices.sizes])
    groups = np.repeat(np.arange(len(choices.sizes)), choices.sizes)[np.lexsort((ranks, -scores))]

    def first(number: int) -> np.ndarray:
        kept = np.bincount(groups[:number], minlength=len(choices.sizes))
        return np.array(
            [max(0, int(np.searchsorted(a, k, side="right")) - 1) for a, k in zip(choices.allowed, kept, strict=True)]
        )

    low, high = 0, len(groups)  # none but the floors: these fit
    while low < high:
        middle = (low + high + 1) // 2
        if choices.cost(choices.at(first(middle))[None])[0] <= room:
            low = middle
        else:
            high = middle - 1
    return first(low)


def _neighbours(at: np.ndarray, choices: Counts) -> np.ndarray:
    """The choices with one group a step larger."""
    larger = at + np.eye(len(at), dtype=int)
    return larger[at < choices.last]


def _filled(choices: Counts, at: np.ndarray, room: float) -> np.ndarray:
    """With more steps, as a knapsack takes them at their costs here; fewer where the costs of several multiply."""
    start = choices.cost(choices.at(at)[None])[0]
    slack = room - start
    groups = np.flatnonzero(at < choices.last)
    if slack <= 0 or not len(groups):
        return at
    added = choices.cost(choices.at(_neighbours(at, choices))) - start
    items: list[tuple[int, float, float]] = []
    lowest = min(float(score.min()) for score in choices.sorted_scores)
    opening = choices.gain(choices.at(_neighbours(at, choices))) - choices.gain(choices.at(at)[None])
    first = dict(zip(groups.tolist(), opening.tolist(), strict=True))
    for g, cost in zip(groups.tolist(), added.tolist(), strict=True):
        steps = choices.allowed[g][at[g] :]
        cost = max(cost, slack * 1e-6)  # a step may cost nothing
        for low, high in pairwise(steps.tolist()):
            if cost * (1 + sum(item[0] == g for item in items[-64:])) > slack:
                break  # so many do not fit anyway
            # positive, so that the budget is used; of the units' order, so that earlier ones are preferred
            if choices.branch[g]:  # with all that is open within
                gain = max(0.0, first[g] - choices.counted[g] * lowest)
            else:
                gain = choices.gains[g][high] - choices.gains[g][low] - (high - low) * lowest
            items.append((g, cost, gain + 1e-9 * (high - low)))
    if not items:
        return at
    units = max(16, min(4096, CELLS // len(items)))
    for portion in (1.0, 0.9, 0.7, 0.4, 0.15):
        sizes = [max(1, math.ceil(cost / (slack * portion) * units)) for _, cost, _ in items]
        pack = Knapsack(sizes, units, method="dynamic_program")
        taken = pack.solve(torch.tensor([-gain for _, _, gain in items], dtype=torch.float64))
        larger = at.copy()
        for (g, _, _), take in zip(items, taken.tolist(), strict=True):
            larger[g] += round(take)
        if choices.cost(choices.at(larger)[None])[0] <= room:
            return larger
    return at


def _greedy(choices: Counts, at: np.ndarray, room: float) -> np.ndarray:
    """With single steps while any fits, the most worth first."""
    while True:
        larger = _neighbours(at, choices)
        if not len(larger):
            return at
        fits = choices.cost(choices.at(larger)) <= room
        if not fits.any():
            return at
        gain = choices.gain(choices.at(larger))
        at = larger[np.flatnonzero(fits)[gain[fits].argmax()]]


def _exchanged(choices: Counts, at: np.ndarray, room: float) -> np.ndarray:
    """Exchanges of steps between groups until the cost is within the tolerance, or none comes nearer."""
    moves = _moves(len(at))
    for _ in range(100):
        cost = choices.cost(choices.at(at)[None])[0]
        if cost >= room * (1 - TOLERANCE):
            return at
        others = at + moves
        others = others[((others >= 0) & (others <= choices.last)).all(1)]
        costs = np.concatenate(
            [choices.cost(choices.at(part)) for part in np.array_split(others, len(others) // 5000 + 1)]
        )
        better = (costs <= room) & (costs > cost * (1 + 1e-9))
        if not better.any():
            return at
        near = better & (costs >= room * (1 - TOLERANCE))
        if near.any():  # of those that are near enough, what is worth most
            return others[np.flatnonzero(near)[choices.gain(choices.at(others[near])).argmax()]]
        at = _greedy(choices, others[np.flatnonzero(better)[costs[better].argmax()]], room)
    return at


def _moves(groups: int) -> np.ndarray:
    """Steps of all groups at once where these are few, else of every two."""
    radius = next((r for r in (6, 5, 4, 3, 2) if (2 * r + 1) ** groups <= 20_000), 0)
    if radius:
        return np.stack(np.meshgrid(*[np.arange(-radius, radius + 1)] * groups), -1).reshape(-1, groups)
    units = np.eye(groups, dtype=int)
    return np.concatenate([up * units[:, None] - down * units[None] for up in (1, 2, 3) for down in (1, 2, 3)]).reshape(
        -1, groups
    )


def _scores(name: str, gated: Gated, scores: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
    if scores is None:
        weights: dict[str, Any] = {group: gate.weight for group, gate in gated.gates.items()}
        weights = {group: weight.detach().cpu() for group, weight in weights.items()}
        bad = [group for group, weight in weights.items() if not bool(weight.isfinite().all())]
        if bad:
            raise ValueError(f"{name}: the gates' weights must be finite, got others in group '{bad[0]}'")
        return weights  # pyright: ignore[reportReturnType]
    result = {}
    branches = {group for group, value in gated.groups.items() if value.branch is not None}
    for group, value in gated.groups.items():
        score = scores.get(group)
        if not isinstance(score, Tensor) or score.shape != (value.size,) or not bool(score.isfinite().all()):
            came = f"a tensor of shape {tuple(score.shape)}" if isinstance(score, Tensor) else type(score).__name__
            raise ValueError(
                f"{name}: argument 'scores' must have finite numbers of shape ({value.size},) for group '{group}', "
                f"got {came}"
            )
        score = score.detach().cpu().double()
        scale = float(score.abs().mean())
        result[group] = score / scale if scale > 0 and group not in branches else score
    if branches:  # of one unit each: measured by each other
        scale = float(torch.cat([result[group] for group in branches]).abs().mean())
        for group in branches:
            result[group] = result[group] / scale if scale > 0 else result[group]
    return result


def _by_group(name: str, what: str, value: int | Mapping[str, int], gated: Gated) -> dict[str, int]:
    if not isinstance(value, Mapping):
        return dict.fromkeys(gated.groups, _checks.integer(name, what, value, minimum=1))
    strange = [group for group in value if group not in gated.groups]
    if strange:
        raise ValueError(
            f"{name}: argument '{what}' has '{strange[0]}', which is no group; they are {', '.join(gated.groups)}"
        )
    return {group: _checks.integer(name, what, value.get(group, 1), minimum=1) for group in gated.groups}


def floor_counts(
    name: str, gated: Gated, floors: int | float | Mapping[str, int] | None, round_to: int | Mapping[str, int]
) -> dict[str, int]:
    """How many units each group keeps at least."""
    rounds = _by_group(name, "round_to", round_to, gated)
    sizes = {group: value.size for group, value in gated.groups.items()}
    if floors is None or isinstance(floors, float):
        part = 1 / 16 if floors is None else _checks.number(name, "floors", floors, above=0, below=1)
        wanted = {group: max(1, math.ceil(size * part - 1e-9)) for group, size in sizes.items()}
    else:
        wanted = _by_group(name, "floors", floors, gated)
    named = floors if isinstance(floors, Mapping) else {}
    result = {}
    for group, size in sizes.items():
        whole = -(-min(wanted[group], size) // rounds[group]) * rounds[group]
        result[group] = min(size, whole) if gated.groups[group].branch is None or group in named else 0
    return result


def _up(value: float) -> float:
    """Rounded up to four digits."""
    scale = 10.0 ** (3 - math.floor(math.log10(value)))
    return math.ceil(value * scale) / scale
