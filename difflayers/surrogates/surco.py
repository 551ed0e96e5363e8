"""SurCo: minimises a nonlinear objective over a combinatorial set through linear surrogate costs."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .. import _checks
from ..errors import InfeasibleError
from ..rules import Blackbox
from .budget import Budget, Exhausted
from .descent import Descent, Settings
from .memory import Memory
from .objective import GRADIENTS, Objective, ObjectiveError
from .result import SurCoRecord, SurCoResult
from .search import Search

__all__ = ["SurCo"]


class SurCo:
    r"""Minimises any objective f over the feasible set of an oracle, as an anytime optimiser.

    Looks for linear costs c whose minimiser is good for f,

    $$\min_c f(x^*(c)), \qquad x^*(c) = \operatorname*{argmin}_{x \in S} c^\top x,$$

    so that every solution is feasible, and returns the best solution seen, by whatever solve. Each of several starts

    1. linearises: $c \leftarrow \nabla f(x^*(c))$, until a solution returns;
    2. in a cycle of several solutions, or from disturbed costs, follows the rule's gradient
       $\nabla_c f(x^*(c))$ with Adam, until nothing better was found for `patience` steps;
    3. restarts from the gradient at one of the best solutions, disturbed (now and then from pure noise).

    Costs and gradients are scaled to root mean square 1, so the settings mean the same in every problem. A solution
    that was seen before is not evaluated again: f must be a function of the solution alone.

    Args:
        oracle: of `difflayers.oracles`; rows that it cannot solve (on_failure="nan") are counted and passed over.
        rule: of `difflayers.rules`, for step 2; default `Blackbox(3.0)`.
        objective_gradient: "autograd"; for black boxes "score" (antithetic noise on the costs, `samples` solves and
            evaluations a step, in place of all of the above but the restarts) or "fitted" (the slope of a linear
            model of the solutions seen, nearest first), or a function from solutions `[B, *cost_shape]` to
            gradients of that shape (of f, or of a smooth function in its place).
        starts: how many points move at once; their solves are one batch.
        learning_rate: of Adam.
        patience: gradient steps without anything better before a restart.
        restarts: how many in all; None = as many as the budget allows.
        noise: scale of the disturbances: a factor exp(noise * normal) for oracles with nonnegative costs.
        samples: noisy solves of one start in a step of "score".
        memory: how many evaluated solutions to remember, at least 64.
        polish: a local search, `LocalSearch(neighbors)` or your own: `polish(solution, evaluate)` gets a start's best
            solution before each restart, and may call `evaluate(candidates[B, *cost_shape]) -> float64 values [B]` as
            often as it likes; `evaluate.best` is the best solution seen, `evaluate.slope(solution)` the gradient of
            unit scale. Candidates must be feasible; they count as evaluations, and the best of them may be what
            `solve` returns.
        on_nan: "raise" (`ObjectiveError`, which carries the solution and the result so far) or "skip" (counted in the
            history), where f or its gradient is NaN. +inf is a value like any other.

    Returns:
        Of `solve`: a `SurCoResult`, whose solution is feasible and the best of all that were seen.

    Raises:
        TypeError, ValueError: unsuitable arguments.

    Cost:
        One oracle call a start and iteration while linearising; while following a gradient, those of the rule.

    Transforms:
        none: a search, whose result has no gradient. The objective may use any operation.

    References:
        Ferber, Huang, Zha, Schubert, Steiner, Dilkina, Tian, "SurCo: Learning Linear Surrogates for Combinatorial
        Nonlinear Optimization Problems", ICML 2023, arXiv 2210.12547, eq. 2 and Algorithm 1 (SurCo-zero), which
        returns the last solution of one start from random costs.

    Example:
        >>> import torch, difflayers as dl
        >>> weights = torch.tensor([3.0, 5.0, 7.0, 8.0, 11.0])
        >>> search = dl.surrogates.SurCo(dl.oracles.TopK(5, 2))
        >>> search.solve(lambda x: (x @ weights - 13).square(), iterations=50).solution  # 5 + 8
        tensor([0., 1., 0., 1., 0.])
    """

    name = "difflayers.SurCo"

    def __init__(
        self,
        oracle: Any,
        *,
        rule: Any = None,
        objective_gradient: Any = "autograd",
        starts: int = 4,
        learning_rate: float = 0.1,
        patience: int = 5,
        restarts: int | None = None,
        noise: float = 0.5,
        samples: int = 8,
        memory: int = 10_000,
        polish: Callable[..., Any] | None = None,
        on_nan: str = "raise",
    ) -> None:
        name = self.name
        if not hasattr(oracle, "solve_batch"):
            raise TypeError(
                f"{name}: argument 'oracle' must be an oracle, got {type(oracle).__name__}; wrap a function with "
                f"difflayers.oracles.FromCallable"
            )
        rule = Blackbox(3.0) if rule is None else rule
        if not callable(rule):
            raise TypeError(f"{name}: argument 'rule' must be a rule of difflayers.rules, got {type(rule).__name__}")
        if not callable(objective_gradient):
            objective_gradient = _checks.choice(name, "objective_gradient", objective_gradient, GRADIENTS)
        if polish is not None and not callable(polish):
            raise TypeError(f"{name}: argument 'polish' must be callable, got {type(polish).__name__}")
        self.oracle, self.objective_gradient = oracle, objective_gradient
        self.memory = _checks.integer(name, "memory", memory, minimum=64)
        self.on_nan = _checks.choice(name, "on_nan", on_nan, ("raise", "skip"))
        self.settings = Settings(
            rule=rule,
            starts=_checks.integer(name, "starts", starts, minimum=1),
            learning_rate=_checks.number(name, "learning_rate", learning_rate, above=0.0),
            patience=_checks.integer(name, "patience", patience, minimum=1),
            restarts=None if restarts is None else _checks.integer(name, "restarts", restarts, minimum=0),
            noise=_checks.number(name, "noise", noise, above=0.0),
            samples=_checks.integer(name, "samples", samples, minimum=2),
            polish=polish,
        )

    def solve(
        self,
        objective: Callable[[Tensor], Tensor],
        *,
        start: Tensor | None = None,
        costs: Tensor | None = None,
        iterations: int | None = None,
        evaluations: int | None = None,
        oracle_calls: int | None = None,
        seconds: float | None = None,
        generator: torch.Generator | None = None,
        callback: Callable[[SurCoRecord, Tensor], Any] | None = None,
        progress: bool = False,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> SurCoResult:
        """Searches until a budget is spent, or Ctrl-C; the default budget is 100 iterations.

        Args:
            objective: solutions `[..., *cost_shape]` -> values `[...]`, minimised.
            start: feasible solutions `[*cost_shape]` or `[m, *cost_shape]`, m <= starts, to begin at.
            costs: in place of a start, costs of that shape to solve first. Default: random ones.
            iterations: steps after the initialisation.
            evaluations: solutions that the objective may be called with.
            oracle_calls: rows that the oracle may solve, forward and backward.
            seconds: looked at before every call of the oracle and of the objective.
            generator: of all noise; the same seed gives the same result. Default: PyTorch's global one.
            callback: called as `callback(record, solution)` with a `SurCoRecord` and the best solution after every
                iteration; a true result ends the search.
            progress: shows a tqdm bar.
            dtype: of the solutions that the objective gets; default that of start or costs, else torch's default.
            device: likewise.

        Returns:
            `SurCoResult`.

        Raises:
            TypeError, ValueError: unsuitable arguments; values of the wrong shape, or without a gradient.
            ObjectiveError: the objective is NaN (see on_nan).
            InfeasibleError, SolverError: what the oracle raises, or that it never found a solution.
            ImportError: progress=True without tqdm.
            KeyboardInterrupt: before there was any solution to return.
        """
        name = f"{self.name}.solve"
        budget = Budget(
            name, iterations=iterations, evaluations=evaluations, oracle_calls=oracle_calls, seconds=seconds
        )
        like, start, costs = self._template(name, start, costs, dtype, device)
        if callback is not None and not callable(callback):
            raise TypeError(f"{name}: argument 'callback' must be callable, got {type(callback).__name__}")
        bar = _bar(name) if _checks.boolean(name, "progress", progress) else None
        evaluated = Objective(name, objective, self.objective_gradient, self.on_nan)
        noise = _checks.generator(name, generator, like.device)
        search = Search(self.oracle, evaluated, budget, Memory(self.memory), noise, like)
        descent = Descent(search, self.settings)
        history: list[SurCoRecord] = []

        def record() -> None:
            best, used = search.memory.best, budget.used
            history.append(
                SurCoRecord(
                    used["iterations"], math.nan if best is None else best.value, tuple(descent.current),
                    tuple(descent.phases), used["evaluations"], used["oracle_calls"], budget.elapsed(),
                    search.memory.distinct, descent.restarted, search.failed, evaluated.undefined,
                )
            )  # fmt: skip
            if bar is not None:
                bar.update(round(100 * budget.fraction()) - bar.n)
                bar.set_postfix_str(f"best {history[-1].objective:.6g}", refresh=False)

        def result(status: str) -> SurCoResult:
            best = search.memory.best
            assert best is not None
            value = torch.tensor(best.value, dtype=like.dtype, device=like.device)
            return SurCoResult(best.solution.clone(), value, best.costs, history, status)

        try:
            descent.begin(like, start, costs)
            record()
            while not (callback and search.memory.best and callback(history[-1], search.memory.best.solution.clone())):
                budget.left("iterations", 1)
                budget.spend("iterations", 1)
                descent.step()
                record()
            status = "callback"
        except Exhausted as end:
            status = end.reason
            _spend_the_rest(search)
            record()
        except KeyboardInterrupt:
            if search.memory.best is None:
                raise
            status = "interrupted"
            record()
        except ObjectiveError as error:
            if search.memory.best is not None:
                record()
                error.result = result("undefined")
            raise
        finally:
            if bar is not None:
                bar.refresh()
                bar.close()
        if search.memory.best is None:
            raise _nothing_found(name, search)
        return result(status)

    def _template(
        self, name: str, start: Tensor | None, costs: Tensor | None, dtype: Any, device: Any
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Zeros of cost_shape, and what the user begins with as `[m, *cost_shape]`, all of one dtype and device."""
        event = tuple(self.oracle.cost_shape)
        if start is not None and costs is not None:
            raise ValueError(f"{name}: arguments 'start' and 'costs' exclude each other, got both; pass one")
        given = {"start": start, "costs": costs}
        for argument, value in given.items():
            if value is None:
                continue
            value = _checks.tensor(name, argument, value).detach()
            if tuple(value.shape) == event:
                value = value[None]
            if tuple(value.shape[1:]) != event or not 1 <= len(value) <= self.settings.starts:
                raise ValueError(
                    f"{name}: argument '{argument}' must have shape {event} or (m, *{event}) with m <= starts = "
                    f"{self.settings.starts}, got {tuple(value.shape)}"
                )
            if not bool(value.isfinite().all()):
                raise ValueError(f"{name}: argument '{argument}' must be finite, got NaN or infinity")
            dtype, device = dtype or value.dtype, device or value.device
            given[argument] = value.to(dtype=dtype, device=device)
        like = torch.zeros(event, dtype=dtype, device=device)
        if not like.is_floating_point():
            raise TypeError(f"{name}: argument 'dtype' must be a floating dtype, got {dtype}")
        return like, given["start"], given["costs"]


def _spend_the_rest(search: Search) -> None:
    """Evaluates what the last solves found, as far as the evaluations and the time go."""
    try:
        search.flush()
    except Exhausted:
        search.pending = []


def _nothing_found(name: str, search: Search) -> Exception:
    if search.memory.distinct:
        return ObjectiveError(
            f"{name}: the objective must be a number somewhere, got NaN at all {search.memory.distinct} solutions seen"
        )
    return InfeasibleError(
        f"{name}: the oracle must find a solution, got none in {search.budget.used['oracle_calls']} calls; look at "
        f"oracle.solve_batch(costs).status"
    )


def _bar(name: str) -> Any:
    try:
        from tqdm import tqdm
    except ImportError as error:
        raise ImportError(f"{name}: progress=True needs tqdm; run: pip install 'difflayers[examples]'") from error
    return tqdm(total=100, unit="%", desc="SurCo", dynamic_ncols=True, leave=False)
