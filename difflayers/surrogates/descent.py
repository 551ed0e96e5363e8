"""How the starts of a SurCo search move: linearisation in a trust region, gradient steps on the costs, restarts."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .budget import Exhausted
from .memory import Entry, keys
from .search import Evaluator, Search, unit

__all__ = ["Descent", "Settings"]

LEAST_PULL, MOST_PULL = 1 / 16, 1e4  # trust regions outside are as good as none, or as none at all
STALE_RESTARTS = 20  # so many, of up to 4 starts, without a new solution end the search: the feasible set is small


@dataclass
class Settings:
    """The arguments of `SurCo` that its starts need."""

    rule: Any
    starts: int
    learning_rate: float
    patience: int
    restarts: int | None
    noise: float
    samples: int
    polish: Callable[..., Any] | None


@dataclass
class Region:
    """Where a start linearises.

    Attributes:
        anchor: the solution; None = the next one is taken whatever its value.
        key: of the anchor; without one, of a solution that the start is to get away from.
        pull: what it costs to leave the anchor, relative to costs of unit scale.
        loose: the largest pull that still led to something worse.
        tight: the smallest pull that led nowhere.
    """

    anchor: Entry | None = None
    key: bytes | None = None
    pull: float = 0.0
    loose: float = LEAST_PULL
    tight: float = math.inf

    def after(self, key: bytes, entry: Entry) -> Region | None:
        """The next region, when this one led to an entry; None when no pull leads to anything better."""
        if self.anchor is None:
            return None if key == self.key else Region(entry, key)
        if entry.value < self.anchor.value:
            return Region(entry, key, self.pull / 4 if self.pull > 4 * LEAST_PULL else 0.0)
        if not self.anchor.binary or (key == self.key and self.pull == 0):  # it minimises its own linear model
            return None
        loose = self.loose if key == self.key else max(self.loose, self.pull)
        tight = min(self.tight, self.pull) if key == self.key else self.tight
        if tight < 1.5 * loose or loose > MOST_PULL:
            return None
        pull = 4 * loose if tight == math.inf else math.sqrt(loose * tight)
        return Region(self.anchor, self.key, pull, loose, tight)


class Descent:
    """The starts of one search.

    Attributes:
        costs: `[starts, *cost_shape]` of unit scale.
        phases: "linearise", "gradient", or "done", of every start.
        current: the value at the newest solution of every start.
        restarted: how often any start began anew.
        patience: restarts without a new solution that end the search.
    """

    def __init__(self, search: Search, settings: Settings) -> None:
        self.search, self.settings = search, settings
        self.score = search.objective.gradient == "score"
        count = settings.starts
        self.phases = ["linearise"] * count
        self.current = [math.nan] * count
        self.best: list[tuple[float, Tensor | None]] = [(math.inf, None)] * count  # since the last restart
        self.idle = [0] * count  # gradient steps without anything better
        self.regions = [Region() for _ in range(count)]
        self.restarted = self.stale = self.distinct = 0
        self.patience = STALE_RESTARTS * max(1.0, count / 4)
        self.costs = self.mean = self.square = torch.empty(0)
        self.steps = [0] * count
        self.polished: set[bytes] = set()
        self.evaluator = Evaluator(search)

    def begin(self, like: Tensor, start: Tensor | None, costs: Tensor | None) -> None:
        """Evaluates the start, or solves the first guess, and linearises there."""
        search, count = self.search, self.settings.starts
        guessed = start is None and costs is None
        if start is not None:
            search.evaluate(start)
            solutions, names = start, list(keys(start))
        else:
            # the user's own costs go to the oracle as they are, which refuses what is not in its domain
            costs = search.guess(like.expand(count, *like.shape)) if costs is None else costs
            solutions = search.oracle.solve(costs)
            names = list(keys(solutions))
            search.flush()
        known = [search.memory.entries.get(key) for key in names]
        for row, entry in enumerate(known):
            self.current[row % count] = math.nan if entry is None else entry.value
            self._saw(row % count, None if entry is None else entry.value, solutions[row])
        if self.score:  # no gradient by the solution: costs that a binary start minimises, or the guess itself
            found = unit((1.5 if search.nonnegative else 0.5) - solutions) if costs is None else unit(costs)
        else:
            found = torch.zeros_like(solutions)
            there = [row for row, entry in enumerate(known) if entry is not None]
            if there:
                found[there] = search.slopes([entry for entry in known if entry is not None]).to(found)
        if guessed and not self.score and count > 1:
            found[0] = unit(found.mean(0, keepdim=True))[0]  # the slope of the objective averaged over the guesses
        # the user's own costs are also where the gradient steps begin, as in the paper's hybrid
        other = found if guessed or costs is None else unit(costs)
        rows, given = [], len(found)
        for s in range(count):
            base = found[s % given] if s % 2 == 0 else other[s % given]
            near = s < given or (s == 1 and other is not found)
            rows.append(base if near else search.disturbed(search.project(base), self.settings.noise))
        self.costs = search.project(torch.stack(rows)).detach().clone()
        self.mean, self.square = torch.zeros_like(self.costs), torch.zeros_like(self.costs)
        for s in range(count):
            self.phases[s] = "gradient" if self.score or s % 2 == 1 else "linearise"
            if not bool(self.costs[s].any()):  # flat, or no solution
                self.costs[s] = search.guess(like)
            entry = known[s] if s < given else None
            if entry is not None and self.phases[s] == "linearise" and not (guessed and s == 0):
                self.regions[s] = Region(entry, names[s])
        self.distinct = search.memory.distinct

    def step(self) -> None:
        """One step of every start, then restarts of those that are stuck."""
        search, before = self.search, self.search.memory.best
        linear, following = (
            [s for s, p in enumerate(self.phases) if p == phase] for phase in ("linearise", "gradient")
        )
        solved = search.solve(self.costs[self._at(linear)]) if linear else None
        forward = self._forward(following) if following and not self.score else None
        search.flush()  # what both of them found, in one call of the objective
        stuck = [] if solved is None else self._linearise(linear, *solved)
        if forward is not None:
            stuck += self._backward(following, *forward)
        elif following:
            stuck += self._ascend_score(following)
        if search.memory.best is not before:  # some solve, forward or backward, found it: all go on for a while
            self.idle = [0] * len(self.idle)
        stuck += [s for s in following if self.idle[s] >= self.settings.patience and s not in stuck]
        if stuck:
            self._restart(stuck)

    def _at(self, rows: list[int]) -> Any:
        """An index of these starts, all of them as a slice: tensors are quicker to index with it."""
        return slice(None) if len(rows) == len(self.phases) else torch.tensor(rows, device=self.costs.device)

    def _saw(self, s: int, value: float | None, solution: Tensor) -> None:
        self.idle[s] += 1
        if value is None or math.isnan(value):
            return
        self.current[s] = value
        if value < self.best[s][0]:
            self.best[s] = (value, solution)
            self.idle[s] = 0

    def _linearise(self, rows: list[int], solutions: Tensor, names: list[bytes | None]) -> list[int]:
        """The next linear model around each anchor, within its trust region; returns the rows that got nowhere."""
        entries, moving, stuck = self.search.memory.entries, [], []
        for s, key, solution in zip(rows, names, solutions.unbind(), strict=True):
            entry = None if key is None else entries.get(key)
            if key is None or entry is None:
                stuck.append(s)
                continue
            self._saw(s, entry.value, solution)
            region = self.regions[s].after(key, entry)
            if region is None or region.anchor is None:
                stuck.append(s)
                continue
            self.regions[s] = region
            moving.append((s, region.anchor, region.pull))
        if not moving:
            return stuck
        starts, anchors, pulls = map(list, zip(*moving, strict=True))
        costs = self._model(self.search.slopes(anchors), anchors, pulls)
        self.costs[self._at(starts)] = costs
        return stuck + [s for s, flat in zip(starts, _flat(costs), strict=True) if flat]

    def _model(self, slopes: Tensor, anchors: list[Entry], pulls: list[float]) -> Tensor:
        """Costs of linear models plus pull * |x - anchor|^2, which is itself linear for zeros and ones.

        Where costs may not be negative only what the anchor lacks is made dearer: the same, for sets of one size.
        """
        if any(pulls):
            at = torch.stack([anchor.solution for anchor in anchors])
            slopes = slopes + self._column(pulls) * (1 - at if self.search.nonnegative else 1 - 2 * at)
        return self.search.project(slopes)

    def _column(self, numbers: list[float]) -> Tensor:
        """One number for every start, broadcastable to their costs."""
        column = torch.tensor(numbers, dtype=self.costs.dtype, device=self.costs.device)
        return column.reshape(-1, *[1] * (self.costs.dim() - 1))

    def _forward(self, rows: list[int]) -> tuple[Tensor, Tensor]:
        """Costs that require a gradient, and the rule's solutions for them."""
        search = self.search
        costs = self.costs[self._at(rows)].detach().requires_grad_()
        with torch.enable_grad():
            solutions = self.settings.rule(search.oracle, costs, generator=search.generator)
        if not solutions.requires_grad:
            raise ValueError(
                f"{search.objective.function}: argument 'rule' must return solutions with a gradient by the costs, "
                f"and {self.settings.rule!r} does not; see difflayers.rules"
            )
        return costs, solutions

    def _backward(self, rows: list[int], costs: Tensor, solutions: Tensor) -> list[int]:
        """A step of Adam along the rule's gradient of the objective by the costs."""
        search, found = self.search, solutions.detach()
        names = keys(found)
        # costs and slopes of one scale, so that a rule's own lengths (lam, sigma) mean the same in every problem
        (gradients,) = torch.autograd.grad(solutions, costs, search.slopes_at(found, names))
        search.flush()
        for s, key, solution in zip(rows, names, found.unbind(), strict=True):
            entry = search.memory.entries.get(key)
            self._saw(s, None if entry is None else entry.value, solution)
        return self._adam(rows, gradients)

    def _ascend_score(self, rows: list[int]) -> list[int]:
        """A step of Adam along the score-function estimate: antithetic normal noise on the costs."""
        search, pairs, scale = self.search, max(1, self.settings.samples // 2), self.settings.noise
        costs = self.costs[rows]
        noise = search.noise(costs.expand(pairs, *costs.shape))
        both = torch.stack([noise, -noise])  # [2, pairs, rows, *cost_shape]
        moved = costs * (scale * both).exp() if search.nonnegative else costs + scale * both
        flat = moved.reshape(-1, *costs.shape[1:])
        solutions, names = search.solve(flat)
        search.flush()
        values = torch.full((len(names),), math.nan, dtype=torch.float64)
        for i, key in enumerate(names):
            entry = None if key is None else search.memory.entries.get(key)
            if entry is not None:
                values[i] = entry.value
                self._saw(rows[i % len(rows)], entry.value, solutions[i])
        for s in rows:  # a step counts once, not once a sample
            self.idle[s] = max(0, self.idle[s] - 2 * pairs) + (0 if self.idle[s] == 0 else 1)
        values = values.reshape(2, pairs, len(rows))
        # differences of a pair need no baseline; what is not finite says nothing
        differences = torch.nan_to_num((values[0] - values[1]) / 2, nan=0.0, posinf=0.0, neginf=0.0)
        weights = differences.to(costs).reshape(pairs, len(rows), *[1] * (costs.dim() - 1))
        gradients = (weights * noise).mean(0) / scale
        return self._adam(rows, gradients, stuck_at_zero=False)

    def _adam(self, rows: list[int], gradients: Tensor, stuck_at_zero: bool = True) -> list[int]:
        gradients = unit(torch.nan_to_num(gradients, nan=0.0, posinf=0.0, neginf=0.0))
        for s in rows:
            self.steps[s] += 1
        times, at = [self.steps[s] for s in rows], self._at(rows)
        mean = self.mean[at].lerp(gradients, 0.1)
        square = self.square[at].lerp(gradients.square(), 0.001)
        self.mean[at], self.square[at] = mean, square
        rate = self._column([self.settings.learning_rate / (1 - 0.9**t) for t in times])
        spread = self._column([1 / math.sqrt(1 - 0.999**t) for t in times])
        step = rate * mean / (spread * square.sqrt() + 1e-8)
        moved = unit(self.search.project(self.costs[at] - step))
        self.costs[at] = moved
        still = _flat(moved)
        if stuck_at_zero:
            still = [a or b for a, b in zip(still, _flat(gradients), strict=True)]
        return [s for s, stop in zip(rows, still, strict=True) if stop]

    def _restart(self, stuck: list[int]) -> None:
        search, settings, renewed = self.search, self.settings, []
        for s in stuck:
            best = self.best[s][1]
            if settings.polish is not None and best is not None:
                (key,) = keys(best[None])
                if key not in self.polished:
                    self.polished.add(key)
                    settings.polish(best.clone(), self.evaluator)
            if settings.restarts is not None and self.restarted >= settings.restarts:
                self.phases[s] = "done"
                if all(phase == "done" for phase in self.phases):
                    raise Exhausted("converged")
                continue
            self.restarted += 1
            # two of three descend quickly from where noise leads; the third follows the rule's gradient from there
            self.phases[s] = "gradient" if self.score or self.restarted % 3 == 0 else "linearise"
            renewed.append(s)
        self.stale = self.stale + len(renewed) if search.memory.distinct == self.distinct else 0
        self.distinct = search.memory.distinct
        if self.stale >= self.patience:
            raise Exhausted("converged")
        if renewed:
            at = self._at(renewed)
            self.costs[at], away = self._fresh(renewed)
            self.mean[at], self.square[at] = 0.0, 0.0
            for s, key in zip(renewed, away, strict=True):
                self.steps[s], self.idle[s], self.best[s], self.regions[s] = 0, 0, (math.inf, None), Region(key=key)

    def _fresh(self, rows: list[int]) -> tuple[Tensor, list[bytes | None]]:
        """New costs for starts: linear models at some of the best solutions, disturbed; now and then pure noise."""
        search, elite = self.search, self.search.memory.elite
        shape = (len(rows), 4)
        draws = torch.rand(shape, generator=search.generator, dtype=torch.float64, device=self.costs.device).tolist()
        costs = self.costs[self._at(rows)].clone()
        away: list[bytes | None] = [None] * len(rows)
        wild = max(0.1, self.stale / self.patience)  # where nothing new is found nearby, look elsewhere
        scales, pulls, places, anchors = [1.0] * len(rows), [], [], []
        for row, draw in enumerate(draws):
            if not elite or draw[0] < wild:
                costs[row] = search.neutral(search.like)
                continue
            key = elite[int(draw[1] ** 2 * len(elite))]  # the better, the more often
            away[row] = key
            places.append(row)
            anchors.append(search.memory.entries[key])
            scales[row] = self.settings.noise * 10 ** (1.2 * draw[2] - 0.6)
            # how far noise leads depends on the problem: hence pulls towards the old solution from none to strong
            free = self.score or draw[3] < 0.15
            pulls.append(0.0 if free else scales[row] * 10 ** (1.2 * draw[3] - 0.7))
        if self.score:
            for row, anchor in zip(places, anchors, strict=True):
                costs[row] = costs[row] if anchor.costs is None else unit(anchor.costs[None])[0]
        elif places:
            costs[places] = search.slopes(anchors)
        costs = search.disturbed(search.project(costs), self._column(scales))
        if places:
            costs[places] = self._model(costs[places], anchors, pulls)
        flat = _flat(costs)
        if any(flat):
            costs[flat] = search.guess(costs[flat])
        return costs, [None if empty else key for key, empty in zip(away, flat, strict=True)]


def _flat(costs: Tensor) -> list[bool]:
    """Which rows are zero throughout."""
    return costs.flatten(1).any(1).logical_not().tolist()
