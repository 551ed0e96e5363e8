"""SurCo-prior: a network that predicts surrogate costs, trained on instances and the objective alone."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .. import _checks
from ..rules import Blackbox
from .objective import Objective
from .result import SurCoRecord, SurCoResult
from .search import unit
from .surco import SurCo
from .tied import TiedCosts

__all__ = ["PriorRecord", "SurCoPrior"]


class PriorRecord(NamedTuple):
    """One epoch of training; epoch 0 is the network as it came.

    Attributes:
        epoch: from 0.
        training: mean objective while training, at what the rule returned; NaN in epoch 0.
        objective: mean objective of the network's solutions after the epoch, on the validation instances if any.
        best: the lowest of these so far.
        seconds: since the training began.
    """

    epoch: int
    training: float
    objective: float
    best: float
    seconds: float


class SurCoPrior:
    r"""Learns costs for whole families of problems, so that a new instance takes one solve.

    Trains the network's weights $\theta$ on instances y, with no optimal solutions and no true costs,

    $$\min_\theta \sum_i f(x^*(c_\theta(y_i)); y_i),$$

    through the gradient rule of the oracle. Costs are scaled to root mean square 1 before they are solved. With
    `penalty`, every training instance has costs of its own, which alone follow the objective,

    $$\min_{\theta, c} \sum_i f(x^*(c_i); y_i) + \lambda \|c_i - c_\theta(y_i)\|.$$

    Args:
        network: a module, instance -> costs `[*cost_shape]`; for oracles with nonnegative costs it must end in
            softplus or the like.
        oracle: of `difflayers.oracles`; or a function instance -> oracle, where feasible sets differ.
        rule: of `difflayers.rules`; default `Blackbox(10.0)`.
        objective_gradient: "autograd", "score" (antithetic noise on the costs; needs no gradient of the objective
            and no rule), or a function `(solutions[B, *cost_shape], instance) -> gradients` of that shape.
        noise, samples: of "score", as in `SurCo`.
        penalty: lambda, at least 0; None = the network's costs are solved themselves. The gradient by the solutions
            has unit scale, so that the same lambda suits objectives of all scales.

    Returns:
        Of `fit`: the history, with the network trained in place; of `solve`: a `SurCoResult`.

    Raises:
        TypeError, ValueError: unsuitable arguments.

    Cost:
        One solve forward and those of the rule backward, per instance and epoch; and one to measure.

    Transforms:
        none: `fit` runs the backward passes itself; the network may be any module.

    References:
        Ferber, Huang, Zha, Schubert, Steiner, Dilkina, Tian, "SurCo: Learning Linear Surrogates for Combinatorial
        Nonlinear Optimization Problems", ICML 2023, arXiv 2210.12547, eq. 5 (penalty), eq. 7 and Algorithms 2-4.

    Example:
        >>> import torch, difflayers as dl
        >>> from difflayers.surrogates import SurCoPrior
        >>> generator = torch.Generator().manual_seed(0)
        >>> instances = torch.randn(32, 6, generator=generator)
        >>> def objective(x, instance):  # the profit of a choice grows ever more slowly
        ...     return -(x * instance.exp()).sum(-1).sqrt()
        >>> _ = torch.manual_seed(0)  # of the network's weights
        >>> prior = SurCoPrior(torch.nn.Linear(6, 6), dl.oracles.TopK(6, 2))
        >>> history = prior.fit(instances, objective, epochs=20, learning_rate=0.1, generator=generator)
        >>> history[-1].best < history[0].objective
        True
        >>> prior.solve(instances[0], objective).solution.sum()
        tensor(2.)
    """

    name = "difflayers.SurCoPrior"

    def __init__(
        self,
        network: nn.Module,
        oracle: Any,
        *,
        rule: Any = None,
        objective_gradient: Any = "autograd",
        noise: float = 0.5,
        samples: int = 8,
        penalty: float | None = None,
    ) -> None:
        name = self.name
        if not isinstance(network, nn.Module):
            raise TypeError(f"{name}: argument 'network' must be a torch.nn.Module, got {type(network).__name__}")
        if not hasattr(oracle, "solve_batch") and not callable(oracle):
            raise TypeError(
                f"{name}: argument 'oracle' must be an oracle or a function from an instance to one, got "
                f"{type(oracle).__name__}"
            )
        rule = Blackbox(10.0) if rule is None else rule
        if not callable(rule):
            raise TypeError(f"{name}: argument 'rule' must be a rule of difflayers.rules, got {type(rule).__name__}")
        if not callable(objective_gradient):
            objective_gradient = _checks.choice(name, "objective_gradient", objective_gradient, ("autograd", "score"))
        self.network, self.oracle, self.rule, self.objective_gradient = network, oracle, rule, objective_gradient
        self.noise = _checks.number(name, "noise", noise, above=0.0)
        self.samples = _checks.integer(name, "samples", samples, minimum=2)
        self.penalty = None if penalty is None else _checks.number(name, "penalty", penalty, minimum=0.0)

    def fit(
        self,
        instances: Sequence[Any] | Tensor,
        objective: Callable[[Tensor, Any], Tensor],
        *,
        epochs: int = 50,
        batch_size: int = 16,
        learning_rate: float = 1e-3,
        optimizer: torch.optim.Optimizer | None = None,
        validation: Sequence[Any] | Tensor | None = None,
        seconds: float | None = None,
        generator: torch.Generator | None = None,
        callback: Callable[[PriorRecord], Any] | None = None,
        progress: bool = False,
    ) -> list[PriorRecord]:
        """Trains the network; it ends with the weights that measured best, after Ctrl-C too.

        Args:
            instances: a sequence, or a tensor whose first dimension counts them.
            objective: solutions `[..., *cost_shape]` and an instance -> values `[...]`, minimised.
            epochs: at most so many.
            batch_size: instances in a step; their solves are one batch.
            learning_rate: of Adam, where no optimizer is given.
            optimizer: of the network's parameters.
            validation: instances to measure on; default those of the training.
            seconds: no further step is begun after them.
            generator: of the order and of all noise; default PyTorch's global one.
            callback: called with the `PriorRecord` of every epoch; a true result ends the training.
            progress: shows a tqdm bar.

        Returns:
            One `PriorRecord` for every epoch, and one for the network as it came.

        Raises:
            TypeError, ValueError: unsuitable arguments; costs or values of the wrong shape.
            ObjectiveError: the objective or its gradient is NaN.
            InfeasibleError, SolverError: what the oracle raises.
            ImportError: progress=True without tqdm.
        """
        name = f"{self.name}.fit"
        epochs = _checks.integer(name, "epochs", epochs, minimum=0)
        batch_size = _checks.integer(name, "batch_size", batch_size, minimum=1)
        if optimizer is None:
            rate = _checks.number(name, "learning_rate", learning_rate, above=0.0)
            optimizer = torch.optim.Adam(self.network.parameters(), rate)
        if len(instances) == 0 or (validation is not None and len(validation) == 0):
            raise ValueError(f"{name}: arguments 'instances' and 'validation' must not be empty, got no instance")
        limit = None if seconds is None else _checks.number(name, "seconds", seconds, above=0.0)
        measured = instances if validation is None else validation
        started = time.perf_counter()
        first = self.measure(measured, objective)
        history = [PriorRecord(0, math.nan, first, first, time.perf_counter() - started)]
        weights = copy.deepcopy(self.network.state_dict())
        tied = None if self.penalty is None else self._tied(name, instances, self.penalty)
        bar = _bar(name, epochs) if _checks.boolean(name, "progress", progress) else None
        try:
            for epoch in range(1, epochs + 1):
                total, seen = 0.0, 0
                order = torch.randperm(len(instances), generator=generator, device=getattr(generator, "device", "cpu"))
                for rows in map(Tensor.tolist, order.split(batch_size)):
                    if limit is not None and time.perf_counter() - started >= limit:
                        break
                    batch = [instances[row] for row in rows]
                    optimizer.zero_grad()
                    costs = unit(self._costs(name, batch))
                    solved = costs if tied is None else tied.of(rows, costs)
                    total += len(batch) * self._backward(name, batch, solved, objective, generator)
                    seen += len(batch)
                    optimizer.step()
                    if tied is not None:
                        tied.step(rows)
                if seen == 0:
                    break
                value = self.measure(measured, objective)
                if value < history[-1].best:
                    weights = copy.deepcopy(self.network.state_dict())
                best = min(value, history[-1].best)
                history.append(PriorRecord(epoch, total / seen, value, best, time.perf_counter() - started))
                if bar is not None:
                    bar.update()
                    bar.set_postfix_str(f"objective {value:.6g}, best {best:.6g}", refresh=False)
                if callback is not None and callback(history[-1]):
                    break
        except KeyboardInterrupt:
            pass  # what was learned is kept
        finally:
            self.network.load_state_dict(weights)
            if bar is not None:
                bar.close()
        return history

    @torch.no_grad()
    def measure(self, instances: Sequence[Any] | Tensor, objective: Callable[[Tensor, Any], Tensor]) -> float:
        """The mean objective of the solutions at the network's costs, one solve an instance.

        Raises:
            As `fit`.
        """
        name = f"{self.name}.measure"
        rows, total = [instances[row] for row in range(len(instances))], 0.0
        # instances with oracles of their own may differ in size
        batches = [rows] if hasattr(self.oracle, "solve_batch") else [[row] for row in rows]
        for batch in batches:
            solutions = self._solve(batch, unit(self._costs(name, batch)), lambda oracle, costs: oracle.solve(costs))
            for solution, instance in zip(solutions, batch, strict=True):
                values, _ = self._objective(name, objective, instance, "function")(solution[None])
                total += float(values[0])
        return total / len(rows)

    def solve(
        self, instance: Any, objective: Callable[[Tensor, Any], Tensor], *, refine_steps: int = 0, **settings: Any
    ) -> SurCoResult:
        """Solves an instance at the network's costs, and from there improves on it.

        Args:
            instance: what the network takes.
            objective: as in `fit`.
            refine_steps: iterations of `SurCo` that begin at these costs (the paper's SurCo-hybrid); the result is
                never worse than that of 0.
            settings: further arguments of `SurCo` (starts, patience, polish, ...) and of `SurCo.solve` (evaluations,
                generator, callback, ...).

        Returns:
            `SurCoResult`; with refine_steps=0 its status is "prior" and its costs are the network's, scaled.

        Raises:
            As `SurCo.solve`.
        """
        name = f"{self.name}.solve"
        refine_steps = _checks.integer(name, "refine_steps", refine_steps, minimum=0)
        with torch.no_grad():
            costs = unit(self._costs(name, [instance]))
        if refine_steps == 0:
            if settings:
                raise TypeError(f"{name}: arguments {', '.join(settings)} need refine_steps > 0, got 0")
            started = time.perf_counter()
            solution = self._solve([instance], costs, lambda oracle, rows: oracle.solve(rows))
            values, _ = self._objective(name, objective, instance, "function")(solution)
            value = float(values[0])
            record = SurCoRecord(
                0, value, (value,), ("prior",), 1, 1, time.perf_counter() - started, 1, 0, 0, 0
            )  # fmt: skip
            return SurCoResult(solution[0], values[0].to(costs.dtype), costs[0], [record], "prior")
        own = {key: settings.pop(key) for key in list(settings) if key in SEARCH_SETTINGS}
        gradient = self.objective_gradient
        if callable(gradient):
            given: Any = gradient
            gradient = lambda solutions: given(solutions, instance)  # noqa: E731
        search = SurCo(
            self._oracle(instance),
            **{"rule": self.rule, "objective_gradient": gradient, "noise": self.noise, "samples": self.samples, **own},
        )
        return search.solve(lambda x: objective(x, instance), costs=costs, iterations=refine_steps, **settings)

    def _oracle(self, instance: Any) -> Any:
        return self.oracle if hasattr(self.oracle, "solve_batch") else self.oracle(instance)

    def _costs(self, name: str, batch: list[Any]) -> Tensor:
        """`[B, *cost_shape]` with the network's gradient."""
        rows = []
        for instance in batch:
            costs, event = self.network(instance), tuple(self._oracle(instance).cost_shape)
            if not isinstance(costs, Tensor) or tuple(costs.shape) != event:
                came = tuple(costs.shape) if isinstance(costs, Tensor) else type(costs).__name__
                raise ValueError(f"{name}: the network must return costs of the oracle's shape {event}, got {came}")
            rows.append(costs)
        if len({row.shape for row in rows}) > 1:
            raise ValueError(f"{name}: instances of different sizes need batch_size=1, got several sizes in a batch")
        return torch.stack(rows)

    def _solve(self, batch: list[Any], costs: Tensor, solve: Callable[[Any, Tensor], Any]) -> Tensor:
        """Solves in one batch where all instances share an oracle, else one by one."""
        if hasattr(self.oracle, "solve_batch"):
            return solve(self.oracle, costs)
        return torch.cat([solve(self._oracle(y), row[None]) for y, row in zip(batch, costs, strict=True)])

    def _objective(self, name: str, objective: Any, instance: Any, gradient: Any) -> Objective:
        return Objective(name, lambda solutions: objective(solutions, instance), gradient, "raise")

    @torch.no_grad()
    def _tied(self, name: str, instances: Sequence[Any] | Tensor, penalty: float) -> TiedCosts:
        rows = [instances[row] for row in range(len(instances))]
        costs = [unit(self._costs(name, [row]))[0] for row in rows]
        return TiedCosts(costs, [self._is_nonnegative(row) for row in rows], penalty)

    def _is_nonnegative(self, instance: Any) -> bool:
        return getattr(self._oracle(instance), "cost_domain", "any") == "nonnegative"

    def _backward(
        self, name: str, batch: list[Any], costs: Tensor, objective: Any, generator: torch.Generator | None
    ) -> float:
        """Adds the gradient of the mean objective to what the costs come from; returns that mean."""
        if self.objective_gradient == "score":
            return self._backward_score(name, batch, costs, objective, generator)
        solutions = self._solve(batch, costs, lambda oracle, rows: self.rule(oracle, rows, generator=generator))
        total, slopes = 0.0, []
        for solution, instance in zip(solutions.detach(), batch, strict=True):
            given = self.objective_gradient
            if callable(given):
                evaluated = self._objective(name, objective, instance, lambda x, y=instance, f=given: f(x, y))
                values, slope = evaluated(solution[None])[0], evaluated.gradients(solution[None])
            else:
                values, slope = self._objective(name, objective, instance, "autograd")(solution[None])
            assert slope is not None
            total += float(values[0])
            slopes.append(slope[0])
        gradient = torch.stack(slopes)
        gradient = unit(gradient.flatten()[None])[0].reshape(gradient.shape)  # one scale: instances keep their weights
        solutions.backward(gradient / len(batch))
        return total / len(batch)

    def _backward_score(self, name: str, batch: list[Any], costs: Tensor, objective: Any, generator: Any) -> float:
        pairs, total = max(1, self.samples // 2), 0.0
        shape = (pairs, *costs.shape)
        noise = torch.randn(shape, dtype=costs.dtype, device=costs.device, generator=generator)
        weights = torch.zeros(pairs, len(batch), dtype=costs.dtype, device=costs.device)
        for sign in (1.0, -1.0):
            for pair in range(pairs):
                moved = self.noise * sign * noise[pair]
                nonnegative = [self._is_nonnegative(instance) for instance in batch]
                fixed = costs.detach()
                rows = torch.stack(
                    [c * m.exp() if n else c + m for c, m, n in zip(fixed, moved, nonnegative, strict=True)]
                )
                solutions = self._solve(batch, rows, lambda oracle, c: oracle.solve(c))
                for i, instance in enumerate(batch):
                    values, _ = self._objective(name, objective, instance, "function")(solutions[i][None])
                    weights[pair, i] += sign * float(values[0]) / 2
                    total += float(values[0]) / (2 * pairs)
        weights = weights.reshape(pairs, len(batch), *[1] * (costs.dim() - 1))
        gradient = (weights * noise).mean(0) / self.noise
        gradient = unit(gradient.flatten()[None])[0].reshape(gradient.shape)
        costs.backward(gradient / len(batch))
        return total / len(batch)


SEARCH_SETTINGS = (
    "rule", "objective_gradient", "starts", "learning_rate", "patience", "restarts", "noise", "samples", "memory",
    "polish", "on_nan",
)  # fmt: skip


def _bar(name: str, total: int) -> Any:
    try:
        from tqdm import tqdm
    except ImportError as error:
        raise ImportError(f"{name}: progress=True needs tqdm; run: pip install 'difflayers[examples]'") from error
    return tqdm(total=total, unit="epoch", desc="SurCo-prior", dynamic_ncols=True, leave=False)
