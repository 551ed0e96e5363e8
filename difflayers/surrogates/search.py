"""One SurCo search: solves, evaluates and remembers within a budget, one iteration after another."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor

from .. import _checks
from .budget import Budget, Exhausted
from .memory import Entry, Memory, keys
from .objective import Objective

__all__ = ["Evaluator", "Search", "unit"]


def unit(costs: Tensor) -> Tensor:
    """Every row divided by its root mean square; rows of zeros stay."""
    flat = costs.flatten(1)
    # first by the largest, so that squares neither overflow nor vanish; clamped for rows of zeros
    flat = flat / flat.abs().amax(1, keepdim=True).clamp(min=torch.finfo(costs.dtype).tiny)
    length = torch.linalg.vector_norm(flat, dim=1, keepdim=True).clamp(min=0.5)  # at least 1, but in rows of zeros
    return (flat * (math.sqrt(flat.shape[1]) / length)).reshape(costs.shape)


class Search:
    """What the phases of a search share: the recorded oracle, the evaluated solutions, the budget.

    Args:
        oracle: finds feasible solutions.
        objective: evaluates them.
        budget: ends it.
        memory: of evaluated solutions.
        generator: of all noise.
        like: of the dtype and device that the objective gets.
    """

    def __init__(
        self,
        oracle: Any,
        objective: Objective,
        budget: Budget,
        memory: Memory,
        generator: torch.Generator | None,
        like: Tensor,
    ) -> None:
        self.like = like
        self.objective, self.budget, self.memory, self.generator = objective, budget, memory, generator
        self.nonnegative = getattr(oracle, "cost_domain", "any") == "nonnegative"
        self.dims = len(oracle.cost_shape)
        self.pending: list[tuple[list[bytes], Tensor, Tensor]] = []
        self.noted: list[bytes | None] = []  # the keys of the rows solved last; None = no solution
        self.failed = 0
        self.oracle = self._recorded(oracle)

    def _recorded(self, oracle: Any) -> Any:
        """A copy of the oracle that shows this search every solution it finds, and stops at the budget's end.

        A copy and not a wrapper, so that rules still see the type and the attributes that they may rely on.
        """
        recorded = copy.copy(oracle)

        def solve_batch(costs: Tensor) -> Any:
            lead = costs.shape[: costs.dim() - self.dims]
            rows = costs.detach().reshape(-1, *costs.shape[costs.dim() - self.dims :])
            allowed = self.budget.left("oracle_calls", len(rows))
            self.budget.spend("oracle_calls", allowed)
            if allowed < len(rows):
                self._note(rows[:allowed], oracle.solve(rows[:allowed]))
                raise Exhausted("oracle_calls")
            result = oracle.solve_batch(costs)
            self._note(rows, result.solutions.reshape(rows.shape) if lead else result.solutions[None])
            return result

        recorded.solve_batch = solve_batch
        recorded.solve = lambda costs: solve_batch(costs).solutions
        recorded.with_parameters = lambda **parameters: self._recorded(oracle.with_parameters(**parameters))
        return recorded

    def _note(self, costs: Tensor, solutions: Tensor) -> None:
        costs, solutions = costs.to(self.like), solutions.to(self.like)  # some rules solve in float64
        names = keys(solutions)
        self.noted = [*names]
        if not _checks.all_finite(solutions):
            found = solutions.flatten(1).isfinite().all(1)
            good = found.tolist()
            self.noted = [name if there else None for name, there in zip(names, good, strict=True)]
            names = [name for name in self.noted if name is not None]
            self.failed += len(good) - len(names)
            costs, solutions = costs[found], solutions[found]
        self.pending.append((names, solutions, costs))

    def project(self, costs: Tensor) -> Tensor:
        """Costs that the search made up, moved into the oracle's domain."""
        return costs.clamp(min=0.0) if self.nonnegative else costs

    def noise(self, like: Tensor) -> Tensor:
        """Standard normal."""
        return torch.randn(like.shape, dtype=like.dtype, device=like.device, generator=self.generator)

    def disturbed(self, costs: Tensor, scale: float | Tensor) -> Tensor:
        """Costs of unit scale with noise: a factor where costs may not be negative, else a summand."""
        noise = scale * self.noise(costs)
        return costs * noise.exp() if self.nonnegative else costs + noise

    def neutral(self, like: Tensor) -> Tensor:
        """Costs that, disturbed at scale 1, are nothing but noise."""
        return torch.ones_like(like) if self.nonnegative else torch.zeros_like(like)

    def guess(self, like: Tensor) -> Tensor:
        """Random costs of unit scale."""
        return self.disturbed(self.neutral(like), 1.0)

    def solve(self, costs: Tensor) -> tuple[Tensor, list[bytes | None]]:
        """Solutions of costs `[S, *cost_shape]`, and their keys; None where there is no solution."""
        solutions = self.oracle.solve(self.project(costs))
        return solutions, self.noted

    def flush(self) -> None:
        """Evaluates the solutions noted since the last time, each but once, as far as the budget goes."""
        pending, self.pending = self.pending, []
        if len(pending) == 1:
            names, solutions, costs = pending[0]
            self.evaluate(solutions, costs, names)
        elif pending:
            names = [name for names, _, _ in pending for name in names]
            self.evaluate(torch.cat([x for _, x, _ in pending]), torch.cat([c for _, _, c in pending]), names)

    def evaluate(self, solutions: Tensor, costs: Tensor | None = None, names: list[bytes] | None = None) -> list[float]:
        """Values of feasible solutions `[B, *cost_shape]`; only those not in memory are computed, and counted."""
        names = keys(solutions) if names is None else names
        entries = self.memory.entries
        known = {key: entries[key].value for key in names if key in entries}
        new: dict[bytes, int] = {}
        for row, key in enumerate(names):
            if key not in known:
                new.setdefault(key, row)
        if new:
            allowed = self.budget.left("evaluations", len(new))
            chosen = dict(list(new.items())[:allowed])
            which = list(chosen.values())
            rows = solutions[which].detach()
            self.budget.spend("evaluations", allowed)
            values, gradients = self.objective(rows)
            known.update(zip(chosen, values.tolist(), strict=True))
            binary = ((rows == 0) | (rows == 1)).flatten(1).all(1).tolist()
            none = [None] * allowed
            minimised = none if costs is None else costs[which].detach().unbind()
            slopes = none if gradients is None else unit(gradients).unbind()
            for key, row, cost, slope, whole in zip(chosen, rows.unbind(), minimised, slopes, binary, strict=True):
                self.memory.add(key, Entry(row, known[key], cost, slope, whole))
            if allowed < len(new):
                raise Exhausted("evaluations")
        return [known[key] for key in names]

    def slopes(self, entries: list[Entry]) -> Tensor:
        """The objective's gradients, of unit scale, at solutions in memory; zero where there is none."""
        if self.objective.gradient == "fitted":  # afresh: the model improves with the solutions seen
            return unit(torch.stack([self.memory.fitted_gradient(entry.solution) for entry in entries]))
        if callable(self.objective.gradient):
            unknown = {id(entry): entry for entry in entries if entry.slope is None}
            if unknown:
                at = torch.stack([entry.solution for entry in unknown.values()])
                for entry, slope in zip(unknown.values(), unit(self.objective.gradients(at)).unbind(), strict=True):
                    entry.slope = slope
        return torch.stack([torch.zeros_like(self.like) if entry.slope is None else entry.slope for entry in entries])

    def slopes_at(self, solutions: Tensor, names: list[bytes]) -> Tensor:
        """Slopes at what a rule returned: feasible solutions, from memory, or averages of them, evaluated."""
        entries = self.memory.entries
        if all(key in entries for key in names):
            return self.slopes([entries[key] for key in names]).to(solutions)
        result = torch.zeros_like(solutions)
        known = [row for row, key in enumerate(names) if key in entries]
        if known:
            result[known] = self.slopes([entries[names[row]] for row in known]).to(solutions)
        finite = solutions.flatten(1).isfinite().all(1).tolist()
        averages = [row for row, key in enumerate(names) if key not in entries and finite[row]]
        if averages and self.objective.gradient == "fitted":
            for row in averages:
                result[row] = self.memory.fitted_gradient(solutions[row])
        elif averages:
            allowed = averages[: self.budget.left("evaluations", len(averages))]
            self.budget.spend("evaluations", len(allowed))
            at = solutions[allowed].detach()
            found = self.objective(at)[1] if self.objective.gradient == "autograd" else self.objective.gradients(at)
            if found is not None:
                result[allowed] = found
            if len(allowed) < len(averages):
                raise Exhausted("evaluations")
        return unit(result)


class Evaluator:
    """What a local search gets: called with candidates `[B, *cost_shape]`, it returns their values, float64 `[B]`.

    Whatever it evaluates is remembered and counted.

    Attributes:
        generator: of the search's noise.
        optima: for the local search to remember, from one call to the next, where it need not begin again.
    """

    def __init__(self, search: Search) -> None:
        self.search, self.generator = search, search.generator
        self.optima: dict[bytes, float] = {}

    def __call__(self, candidates: Tensor) -> Tensor:
        search, shape = self.search, self.search.like.shape
        if not isinstance(candidates, Tensor) or candidates.dim() == 0 or candidates.shape[1:] != shape:
            came = tuple(candidates.shape) if isinstance(candidates, Tensor) else type(candidates).__name__
            raise ValueError(
                f"{search.objective.function}: polish must evaluate candidates of shape "
                f"[B, {', '.join(map(str, shape))}], got {came}"
            )
        return torch.tensor(search.evaluate(candidates.to(search.like)), dtype=torch.float64)

    @property
    def best(self) -> Tensor:
        """The best solution seen so far."""
        best = self.search.memory.best
        assert best is not None  # nothing is polished before there is a solution
        return best.solution.clone()

    def slope(self, solution: Tensor) -> Tensor:
        """The objective's gradient at an evaluated solution, of unit scale; zero where there is none."""
        entry = self.search.memory.entries.get(keys(solution[None])[0])
        return torch.zeros_like(solution) if entry is None else self.search.slopes([entry])[0]
