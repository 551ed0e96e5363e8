"""Regret: what decisions for predicted costs cost in truth, beyond the optimum."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _checks
from ..oracles import Oracle
from ._loss import REDUCTIONS, checked_costs, checked_oracle, companion, dot, on_host

__all__ = ["normalized_regret", "regret", "unambiguous_regret"]


def regret(
    predicted_costs: Tensor,
    true_costs: Tensor,
    oracle: Oracle,
    *,
    true_objective: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    r"""How much more than the optimum the decisions for predicted costs cost, $c^\top x^*(\hat c) - c^\top x^*(c)$.

    Args:
        predicted_costs: `[..., *cost_shape]`.
        true_costs: the same shape.
        oracle: what is minimised; see `difflayers.oracles`.
        true_objective: `[...]`, the optimum at the true costs, if known.
        reduction: "mean", "sum", or "none" (one number a row).

    Returns:
        The regret in the dtype of the predictions, without a gradient. An exact oracle makes it non-negative.

    Raises:
        TypeError: oracle is not an oracle, the costs are not floating-point tensors.
        ValueError: NaN or infinite costs, shapes that do not fit, unknown reduction.
        What the oracle raises.

    Cost:
        Two solves a row, one when the objective is given.

    Transforms:
        It has no gradient. torch.compile breaks the graph, and refuses with fullgraph=True; torch.func and torch.export
        raise UnsupportedOperationError.

    References:
        Elmachtoub, Grigas, "Smart 'Predict, then Optimize'", Management Science 2022, arXiv 1710.08005, Definition 1.

    Example:
        >>> import torch, difflayers as dl
        >>> truth, predicted = torch.tensor([1.0, 2.0, 4.0]), torch.tensor([1.0, 0.0, 4.0])
        >>> dl.surrogates.regret(predicted, truth, dl.oracles.TopK(3, 1))
        tensor(1.)
    """
    name = "difflayers.surrogates.regret"
    _checks.choice(name, "reduction", reduction, REDUCTIONS)
    predicted, true, optimum = _prepared(name, predicted_costs, true_costs, oracle, true_objective)
    rows = dot(true, _solved(oracle, predicted), len(oracle.cost_shape)) - optimum
    return _reduced(rows, reduction, predicted_costs.dtype)


def normalized_regret(
    predicted_costs: Tensor, true_costs: Tensor, oracle: Oracle, *, true_objective: Tensor | None = None
) -> Tensor:
    r"""The sum of the regrets over the sum of the optima's magnitudes, $\sum_i r_i / \sum_i |z_i|$.

    Args:
        predicted_costs, true_costs, oracle, true_objective: as for `regret`.

    Returns:
        A scalar; 0 when all regrets are, NaN or infinite when all optima are 0.

    Raises:
        As `regret`.

    Cost:
        As `regret`.

    Transforms:
        As `regret`.

    Example:
        >>> import torch, difflayers as dl
        >>> truth, predicted = torch.tensor([1.0, 2.0, 4.0]), torch.tensor([1.0, 0.0, 4.0])
        >>> dl.surrogates.normalized_regret(predicted, truth, dl.oracles.TopK(3, 1))
        tensor(1.)
    """
    name = "difflayers.surrogates.normalized_regret"
    predicted, true, optimum = _prepared(name, predicted_costs, true_costs, oracle, true_objective)
    rows = dot(true, _solved(oracle, predicted), len(oracle.cost_shape)) - optimum
    total = rows.sum()
    return torch.where(total == 0, total, total / optimum.abs().sum()).to(predicted_costs.dtype)


def unambiguous_regret(
    predicted_costs: Tensor,
    true_costs: Tensor,
    oracle: Oracle,
    *,
    true_objective: Tensor | None = None,
    tolerance: float = 1e-6,
    reduction: str = "mean",
) -> Tensor:
    r"""The regret of the worst decision that the predicted costs leave open: all their optima, ties included.

    $\max_{x \in X^*(\hat c)} c^\top x - z$, found by solving at $\hat c - \varepsilon c$ with
    $\varepsilon = \text{tolerance} \cdot \|\hat c\|_\infty / \|c\|_\infty$: among decisions that tie, the worst is
    then the only optimum; decisions that differ by less than $\varepsilon\,c^\top(x - x')$ count as ties too. This
    needs nothing of the oracle but its linear minimum. A constant prediction of zero, which the plain regret may
    reward, is as bad here as it deserves.

    Args:
        predicted_costs, true_costs, oracle, true_objective, reduction: as for `regret`. On a "nonnegative" cost domain
            the moved costs are clamped at 0, so that ties between costs of zero may go undetected there.
        tolerance: relative difference of costs that still counts as a tie, > 0.

    Returns:
        The worst-case regret in the dtype of the predictions, at least `regret`, without a gradient.

    Raises:
        As `regret`.

    Cost:
        Three solves a row, two when the objective is given.

    Transforms:
        As `regret`.

    References:
        Elmachtoub, Grigas, "Smart 'Predict, then Optimize'", Management Science 2022, arXiv 1710.08005, Definition 2.

    Example:
        >>> import torch, difflayers as dl
        >>> truth, nothing = torch.tensor([1.0, 2.0, 4.0]), torch.zeros(3)
        >>> oracle = dl.oracles.TopK(3, 1)
        >>> dl.surrogates.regret(nothing, truth, oracle), dl.surrogates.unambiguous_regret(nothing, truth, oracle)
        (tensor(0.), tensor(3.))
    """
    name = "difflayers.surrogates.unambiguous_regret"
    _checks.choice(name, "reduction", reduction, REDUCTIONS)
    tolerance = _checks.number(name, "tolerance", tolerance, above=0.0)
    predicted, true, optimum = _prepared(name, predicted_costs, true_costs, oracle, true_objective)
    event = len(oracle.cost_shape)
    size = _largest(predicted, event), _largest(true, event)
    # costs that are zero throughout: any step decides between the ties (ones in the place of zeros)
    step = tolerance * torch.where(size[0] > 0, size[0], 1.0) / torch.where(size[1] > 0, size[1], 1.0)
    # in float64, the precision of the oracles: in float32 a step of 1e-6 would drown in rounding
    moved = predicted.cpu().double() - (step * true).cpu().double()
    if oracle.cost_domain == "nonnegative":
        moved = moved.clamp(min=0.0)
    worst = _solved(oracle, moved).to(true)
    rows = torch.maximum(dot(true, _solved(oracle, predicted), event), dot(true, worst, event)) - optimum
    return _reduced(rows, reduction, predicted_costs.dtype)


@on_host
def _solved(oracle: Oracle, costs: Tensor) -> Tensor:
    return oracle.solve(costs)


def _prepared(
    name: str, predicted_costs: Tensor, true_costs: Tensor, oracle: Oracle, true_objective: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    event = tuple(checked_oracle(name, oracle).cost_shape)
    predicted = checked_costs(name, "predicted_costs", predicted_costs, event).detach()
    true = companion(name, "true_costs", true_costs, predicted)
    if true_objective is None:
        return predicted, true, dot(true, _solved(oracle, true), len(event))
    lead = predicted.shape[: predicted.dim() - len(event)]
    return predicted, true, companion(name, "true_objective", true_objective, predicted, lead)


def _largest(costs: Tensor, event: int) -> Tensor:
    flat = costs.abs().reshape(*costs.shape[: costs.dim() - event], -1)
    largest = flat.amax(-1) if flat.shape[-1] else flat.sum(-1)
    return largest.reshape(*largest.shape, *[1] * event)


def _reduced(rows: Tensor, reduction: str, dtype: torch.dtype) -> Tensor:
    return (rows.mean() if reduction == "mean" else rows.sum() if reduction == "sum" else rows).to(dtype)
