"""Iterated local search for SurCo: the user says what the neighbours of a solution are."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .. import _checks
from .memory import keys

__all__ = ["LocalSearch"]


class LocalSearch:
    r"""Improves solutions by moving to neighbours, the most promising ones first; for `SurCo(polish=...)`.

    Descends from a solution x: its neighbours x' are evaluated a few at a time in the order of the linear model
    $\nabla f(x)^\top (x' - x)$, and the best of the first few that improve is the next x, until none of the most
    promising ones does. Then it moves the best solution seen to a random neighbour a few times over and descends from
    there, and so on; where that leads to nothing better, the rest of the best solution's neighbours are tried too. With
    objective_gradient="score" there are no slopes, and the order is random.

    Args:
        neighbors: solution `[*cost_shape]` -> feasible solutions near it, `[B, *cost_shape]`; B may be 0.
        breadth: how many neighbours are promising; None = all.
        chunk: how many to evaluate at once.
        kicks: random moves away from the best solution.
        rounds: descents after kicks, each time that SurCo calls.

    Returns:
        Of a call with a solution and `evaluate`, as SurCo makes it: None. What it evaluates, SurCo remembers.

    Raises:
        TypeError, ValueError: unsuitable arguments; neighbours of the wrong shape.

    Cost:
        Up to breadth evaluations for a move, and as many to find that there is none.

    Transforms:
        none: a search.

    References:
        Lourenço, Martin, Stützle, "Iterated Local Search", 2003, arXiv math/0102188, section 2.

    Example:
        >>> import torch, difflayers as dl
        >>> def neighbors(x):  # exchange one chosen item for another
        ...     pairs = torch.cartesian_prod(x.nonzero().flatten(), (x == 0).nonzero().flatten())
        ...     rows = torch.arange(len(pairs))
        ...     near = x.repeat(len(pairs), 1)
        ...     near[rows, pairs[:, 0]], near[rows, pairs[:, 1]] = 0.0, 1.0
        ...     return near
        >>> weights = torch.tensor([3.0, 5.0, 7.0, 8.0, 11.0])
        >>> search = dl.SurCo(dl.oracles.TopK(5, 2), polish=dl.surrogates.LocalSearch(neighbors))
        >>> search.solve(lambda x: (x @ weights - 13).square(), iterations=30).solution  # 5 + 8
        tensor([0., 1., 0., 1., 0.])
    """

    name = "difflayers.surrogates.LocalSearch"

    def __init__(
        self,
        neighbors: Callable[[Tensor], Tensor],
        *,
        breadth: int | None = 64,
        chunk: int = 16,
        kicks: int = 4,
        rounds: int = 8,
    ) -> None:
        if not callable(neighbors):
            raise TypeError(f"{self.name}: argument 'neighbors' must be callable, got {type(neighbors).__name__}")
        self.neighbors = neighbors
        self.breadth = None if breadth is None else _checks.integer(self.name, "breadth", breadth, minimum=1)
        self.chunk = _checks.integer(self.name, "chunk", chunk, minimum=1)
        self.kicks = _checks.integer(self.name, "kicks", kicks, minimum=1)
        self.rounds = _checks.integer(self.name, "rounds", rounds, minimum=0)

    def __call__(self, solution: Tensor, evaluate: Any) -> None:
        """Descends from the best solution seen, from the given one, and from the best one kicked."""
        self._descend(evaluate.best, evaluate, self.breadth)  # first: what the budget is for
        before = evaluate.best
        self._descend(solution, evaluate, self.breadth)
        for _ in range(self.rounds):
            self._descend(self._kicked(evaluate.best, evaluate), evaluate, self.breadth)
        if torch.equal(evaluate.best, before):
            self._descend(before, evaluate, None)  # what was tried before costs nothing

    def _descend(self, solution: Tensor, evaluate: Any, breadth: int | None) -> None:
        value, tried = float(_values(evaluate, solution[None])[0]), math.inf if breadth is None else breadth
        while evaluate.optima.get(keys(solution[None])[0], 0) < tried:
            near = self._near(solution)
            order = self._order(solution, near, evaluate)[:breadth]
            for some in order.split(self.chunk) if len(order) else ():
                values = _values(evaluate, near[some])
                if float(values.min()) < value:
                    best = int(values.argmin())
                    solution, value = near[some[best]].clone(), float(values[best])
                    break
            else:
                evaluate.optima[keys(solution[None])[0]] = tried

    def _order(self, solution: Tensor, near: Tensor, evaluate: Any) -> Tensor:
        """The neighbours to try, best prospects first, ties in random order."""
        mixed = torch.randperm(len(near), generator=evaluate.generator, device=near.device)
        changes = (near[mixed] - solution).flatten(1) @ evaluate.slope(solution).flatten()
        return mixed[changes.argsort(stable=True)]

    def _kicked(self, solution: Tensor, evaluate: Any) -> Tensor:
        for _ in range(self.kicks):
            near = self._near(solution)
            if len(near) == 0:
                break
            chosen = torch.randint(len(near), (1,), generator=evaluate.generator, device=near.device)
            solution = near[int(chosen)].clone()
        return solution

    def _near(self, solution: Tensor) -> Tensor:
        near = self.neighbors(solution.clone())
        if not isinstance(near, Tensor) or near.shape[1:] != solution.shape or near.dim() != solution.dim() + 1:
            came = tuple(near.shape) if isinstance(near, Tensor) else type(near).__name__
            raise ValueError(
                f"{self.name}: the function 'neighbors' must return solutions of shape "
                f"[B, {', '.join(map(str, solution.shape))}], got {came}"
            )
        return near.to(solution)


def _values(evaluate: Any, candidates: Tensor) -> Tensor:
    values = evaluate(candidates)
    return torch.where(values.isnan(), math.inf, values)  # with on_nan="skip": NaN is worse than any value
