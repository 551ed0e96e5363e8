"""One SurCo search: solves, evaluates and remembers within a budget, one iteration after another."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .budget import Budget, Exhausted
from .memory import Entry, Memory, keys
from .objective import Objective

__all__ = ["Search", "unit"]


def unit(costs: Tensor) -> Tensor:
    """Every row divided by its root mean square; rows of zeros stay."""
    flat = costs.flatten(1)
    size = flat.abs().amax(1, keepdim=True).clamp(min=torch.finfo(costs.dtype).tiny)
    flat = flat / size  # first by the largest, so that squares neither overflow nor vanish
    scale = flat.square().mean(1, keepdim=True).sqrt()
    return torch.where(scale > 0, flat / scale.clamp(min=1e-30), flat).reshape(costs.shape)


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
        self.pending: list[tuple[Tensor, Tensor | None]] = []
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
        found = solutions.flatten(1).isfinite().all(1)
        self.failed += int((~found).sum())
        self.pending.append((solutions[found].to(self.like), costs[found].to(self.like)))  # some rules solve in float64

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

    def guess(self, like: Tensor) -> Tensor:
        """Random costs of unit scale."""
        noise = self.noise(like)
        return noise.exp() if self.nonnegative else noise

    def solve(self, costs: Tensor) -> tuple[Tensor, list[bytes | None]]:
        """Solutions of costs `[S, *cost_shape]`, and their keys; None where there is no solution."""
        solutions = self.oracle.solve(self.project(costs))
        found = solutions.flatten(1).isfinite().all(1).tolist()
        return solutions, [key if good else None for key, good in zip(keys(solutions), found, strict=True)]

    def flush(self) -> None:
        """Evaluates the solutions noted since the last time, each but once, as far as the budget goes."""
        pending, self.pending = self.pending, []
        for solutions, costs in pending:
            self.evaluate(solutions, costs)

    def evaluate(self, solutions: Tensor, costs: Tensor | None = None) -> list[float]:
        """Values of feasible solutions `[B, *cost_shape]`; only those not in memory are computed, and counted."""
        names = keys(solutions)
        new: dict[bytes, int] = {}
        for row, key in enumerate(names):
            if key not in self.memory.entries:
                new.setdefault(key, row)
        known = {key: self.memory.entries[key].value for key in names if key in self.memory.entries}
        if new:
            allowed = self.budget.left("evaluations", len(new))
            chosen = dict(list(new.items())[:allowed])
            rows = solutions[list(chosen.values())].detach().clone()
            self.budget.spend("evaluations", allowed)
            values, gradients = self.objective(rows)
            for place, (key, row) in enumerate(chosen.items()):
                known[key] = float(values[place])
                cost = None if costs is None else costs[row].detach().clone()
                gradient = None if gradients is None else gradients[place]
                self.memory.add(key, Entry(rows[place], known[key], cost, gradient))
            if allowed < len(new):
                raise Exhausted("evaluations")
        return [known[key] for key in names]

    def gradient(self, entry: Entry) -> Tensor:
        """The objective's gradient at a solution in memory, zero where there is none."""
        if self.objective.gradient == "fitted":
            return self.memory.fitted_gradient(entry.solution)  # afresh: the model improves with the solutions seen
        if entry.gradient is None:
            if not callable(self.objective.gradient):
                return torch.zeros_like(entry.solution)
            entry.gradient = self.objective.gradients(entry.solution[None])[0]
        return entry.gradient

    def gradients_at(self, solutions: Tensor) -> Tensor:
        """Gradients at what a rule returned: feasible solutions, from memory, or averages of them, evaluated."""
        result = torch.zeros_like(solutions)
        averages = []
        for row, key in enumerate(keys(solutions)):
            if key in self.memory.entries:
                result[row] = self.gradient(self.memory.entries[key])
            elif bool(solutions[row].isfinite().all()):
                averages.append(row)
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
        return result

    def polish(self, polish: Callable[..., Any], solution: Tensor) -> None:
        """Hands a solution to the user's local search; whatever that evaluates is remembered."""

        def evaluate(candidates: Tensor) -> Tensor:
            if not isinstance(candidates, Tensor) or candidates.shape[1:] != solution.shape:
                came = tuple(candidates.shape) if isinstance(candidates, Tensor) else type(candidates).__name__
                raise ValueError(
                    f"{self.objective.function}: polish must evaluate candidates of shape "
                    f"[B, {', '.join(map(str, solution.shape))}], got {came}"
                )
            values = self.evaluate(candidates.to(solution))
            return torch.tensor(values, dtype=torch.float64)

        polish(solution.clone(), evaluate)
