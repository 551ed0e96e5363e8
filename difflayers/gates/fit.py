"""Training with gates to a budget."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .. import _checks
from .attach import Gated
from .budget import BudgetLoss
from .cost import checked
from .latency import Table, measure_latency
from .project import Projection, floor_counts, project
from .selection import importance_by_magnitude

__all__ = ["FitRecord", "FitResult", "fit", "recalibrate_batch_norm"]


class FitRecord(NamedTuple):
    """One step of training.

    Attributes:
        step: from 0.
        loss: without the budget's part.
        share: of the dense model's cost.
        frozen: whether the gates were.
    """

    step: int
    loss: float
    share: float
    frozen: bool


class FitResult(NamedTuple):
    """What `fit` returns.

    Attributes:
        gated: the model, its gates frozen at the selection.
        projection: the selection, see `Projection`.
        history: one record a step.
        status: "done", or "interrupted" by Ctrl-C: the selection is made then, from what was learnt.
        seconds: of all.
    """

    gated: Gated
    projection: Projection
    history: list[FitRecord]
    status: str
    seconds: float


def fit(
    gated: Gated,
    loss_fn: Callable[[Gated, Any], Tensor],
    data: Iterable[Any],
    *,
    target: float,
    epochs: int | None = None,
    steps: int | None = None,
    kind: str = "flops",
    table: Table | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    learning_rate: float = 1e-3,
    gate_learning_rate: float = 1e-2,
    budget_weight: float = 4.0,
    schedule: str = "gradual",
    freeze_at: float = 0.3,
    floors: int | float | Mapping[str, int] | None = None,
    round_to: int | Mapping[str, int] = 1,
    ordered: bool = True,
    recalibrate: bool = True,
    callback: Callable[[FitRecord], None] | None = None,
    progress: bool = True,
) -> FitResult:
    """Trains a model and its gates together, makes the budget exact, and trains what is left.

    Gates that nobody has set start in the order of `importance_by_magnitude`: the steps in which they move correct a
    guess. Until `freeze_at`, the loss is that of the task and of `BudgetLoss` with a schedule; no group falls
    below its floor. Then the gates are projected to the budget and frozen; the rest of the training goes to what they
    leave, and in the end batch norms estimate their statistics anew. `difflayers.gates.prune(gated)` makes the result
    small.

    Args:
        gated: of `difflayers.gates.attach`; trained in place.
        loss_fn: the task's loss of the model and a batch, a scalar with a gradient.
        data: batches; gone through again and again (a `DataLoader`, a list).
        target: the share of the dense model's cost, in (0, 1].
        epochs, steps: how long; one of them.
        kind, table, floors, round_to: see `project`.
        optimizer: of the model's parameters; default Adam with `learning_rate`. Gates that are not in it have an Adam
            of their own, with `gate_learning_rate`.
        learning_rate, gate_learning_rate: positive.
        budget_weight: of `BudgetLoss`, at the start.
        schedule: of `BudgetLoss`: "gradual", "progressive", "growing" or "constant"; its `steps` are four fifths of
            those before the gates are frozen, in which its weight can grow a millionfold.
        freeze_at: the part of the steps after which the gates are frozen, in [0, 1]; 0: before the first.
        ordered: spreads the weights of a group's gates, where all are equal, by the rank of their magnitude.
        recalibrate: estimates the batch norms' statistics anew in the end.
        callback: called with the record of each step; schedulers step here.
        progress: shows a tqdm bar.

    Returns:
        `FitResult(gated, projection, history, status, seconds)`. Ctrl-C returns what there is, on budget.

    Raises:
        InfeasibleError: the floors cost more than the target; before the first step.
        ValueError: no data, a loss that is no finite scalar, an argument out of range.
        TypeError: an argument of the wrong type.
        ImportError: progress=True without tqdm.

    Cost, transforms:
        The training's; the gates add a product per gated weight and the budget's sum.

    References:
        Kim, Park, Jung, Choe, AAAI 2020, arXiv 1904.10921; the floors, the projection and the frozen phase are what
        keeps that recipe from closing whole layers at strong targets.

    Example:
        >>> import torch, difflayers as dl
        >>> from torch import nn
        >>> x = torch.randn(64, 4)
        >>> net = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 1))
        >>> gated = dl.gates.attach(net, x[:1])
        >>> loss = lambda model, batch: (model(batch) - batch[:, :1]).square().mean()
        >>> result = dl.gates.fit(gated, loss, [x], target=0.5, epochs=20, progress=False)
        >>> result.status, result.projection.share, len(result.history)
        ('done', 0.5, 20)
        >>> dl.gates.prune(gated)[0].out_features
        8
    """
    name = "difflayers.gates.fit"
    gated = checked(name, gated)
    total = _total(name, data, epochs, steps)
    freeze_at = _checks.number(name, "freeze_at", freeze_at, minimum=0, maximum=1)
    _checks.boolean(name, "recalibrate", recalibrate)
    _checks.boolean(name, "ordered", ordered)
    rate = _checks.number(name, "learning_rate", learning_rate, above=0)
    gate_rate = _checks.number(name, "gate_learning_rate", gate_learning_rate, above=0)
    frozen_from = round(freeze_at * total)
    if kind == "latency" and table is None:
        table = measure_latency(gated)
    settings: Any = {"kind": kind, "table": table, "floors": floors, "round_to": round_to}
    project(gated, target, apply=False, **settings)  # refuses before anything is changed
    falling = max(1, round(0.8 * frozen_from))
    budget = BudgetLoss(
        gated, target, kind=kind, table=table, weight=budget_weight, schedule=schedule, steps=falling,
        growth=min(2.0, 1e6 ** (1 / falling)),  # a weight that rises gets anywhere in time
    )  # fmt: skip
    optimizers = _optimizers(gated, optimizer, rate, gate_rate)
    keep = floor_counts(name, gated, floors, round_to)
    bar = _bar(name, total) if _checks.boolean(name, "progress", progress) else None
    history: list[FitRecord] = []
    started, found, status = time.monotonic(), None, "done"
    modes, frozen = {module: module.training for module in gated.modules()}, gated.frozen
    weights = {group: gate.weight.detach().clone() for group, gate in gated.gates.items()}  # pyright: ignore
    gated.unfreeze()
    gated.train()
    if ordered:
        _spread(gated)
    try:
        for step, batch in enumerate(_batches(name, data, total)):
            if step == frozen_from and found is None:
                found = _frozen(gated, target, settings)
            loss = loss_fn(gated, batch)
            if not isinstance(loss, Tensor) or loss.numel() != 1 or not math.isfinite(float(loss.detach())):
                came = f"{float(loss.detach())}" if isinstance(loss, Tensor) and loss.numel() == 1 else repr(loss)[:60]
                raise ValueError(
                    f"{name}: argument 'loss_fn' must return a finite scalar tensor, got {came} at step {step}; "
                    f"lower the learning rates if it grew"
                )
            whole = loss if found is not None else loss + budget().to(loss.dtype)
            if found is None or whole.requires_grad:  # of a frozen model with frozen gates, nothing is left to train
                for each in optimizers:
                    each.zero_grad()
                whole.backward()
                for each in optimizers:
                    each.step()
            if found is None:
                budget.step()
                _hold(gated, keep)
            record = FitRecord(
                step, float(loss.detach()), budget.share if found is None else found.share, found is not None
            )
            history.append(record)
            if callback is not None:
                callback(record)
            if bar is not None:
                bar.set_postfix(loss=f"{record.loss:.4g}", share=f"{record.share:.3f}", refresh=False)
                bar.update()
    except KeyboardInterrupt:
        status = "interrupted"
    except Exception:
        if not history:  # nothing is learnt: the gates are again as they were
            gated.frozen = frozen
            for module, training in modes.items():
                module.training = training
            for group, weight in weights.items():
                gated.gates[group].weight.data.copy_(weight)  # pyright: ignore[reportCallIssue, reportAttributeAccessIssue]
        raise
    finally:
        if bar is not None:
            bar.close()
    if found is None:
        found = _frozen(gated, target, settings)
    if recalibrate:
        recalibrate_batch_norm(gated, data, loss_fn)
    return FitResult(gated, found, history, status, time.monotonic() - started)


def recalibrate_batch_norm(
    gated: nn.Module, data: Iterable[Any], run: Callable[[Any, Any], Any], *, batches: int = 100
) -> None:
    """Estimates the statistics of all batch norms anew, as plain means over batches.

    Args:
        gated: a model, gated or not; everything but its batch norms runs in evaluation mode meanwhile.
        data: batches.
        run: runs the model on a batch, as `loss_fn` of `fit`.
        batches: how many at most, at least 1.

    Returns:
        Nothing; the model's modes are restored.

    Raises:
        TypeError, ValueError: `batches` is no positive integer.

    Cost, transforms:
        A forward a batch.

    Example:
        >>> import torch, difflayers as dl
        >>> norm = torch.nn.BatchNorm1d(1)
        >>> dl.gates.recalibrate_batch_norm(norm, [torch.tensor([[1.0], [3.0]])], lambda model, batch: model(batch))
        >>> norm.running_mean, norm.running_var
        (tensor([2.]), tensor([2.]))
    """
    batches = _checks.integer("difflayers.gates.recalibrate_batch_norm", "batches", batches, minimum=1)
    norms = [
        module
        for module in gated.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None
    ]
    if not norms:
        return
    modes = {module: module.training for module in gated.modules()}
    momenta = [norm.momentum for norm in norms]
    try:
        gated.eval()
        for norm in norms:
            norm.train()
            norm.reset_running_stats()
            norm.momentum = None  # the mean over all batches
        with torch.no_grad():
            for _, batch in zip(range(batches), data, strict=False):
                run(gated, batch)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        for module, training in modes.items():
            module.training = training


def _total(name: str, data: Iterable[Any], epochs: int | None, steps: int | None) -> int:
    if (epochs is None) == (steps is None):
        raise ValueError(
            f"{name}: exactly one of the arguments 'epochs' and 'steps' must be given, got {epochs}, {steps}"
        )
    if iter(data) is data:
        raise TypeError(
            f"{name}: argument 'data' must be gone through several times, got an iterator; give a list or a DataLoader"
        )
    if steps is not None:
        return _checks.integer(name, "steps", steps, minimum=1)
    epochs = _checks.integer(name, "epochs", epochs, minimum=1)
    try:
        length = len(data)  # pyright: ignore[reportArgumentType]
    except TypeError:
        raise TypeError(f"{name}: argument 'data' must have a length for 'epochs'; give 'steps' instead") from None
    return epochs * max(1, length)


def _batches(name: str, data: Iterable[Any], total: int) -> Iterator[Any]:
    done = 0
    while done < total:
        before = done
        for batch in data:
            yield batch
            done += 1
            if done == total:
                return
        if done == before:
            raise ValueError(f"{name}: argument 'data' must have batches, got none")


def _optimizers(
    gated: Gated, optimizer: torch.optim.Optimizer | None, rate: float, gate_rate: float
) -> list[torch.optim.Optimizer]:
    trained = [parameter for parameter in gated.model.parameters() if parameter.requires_grad]
    if optimizer is None:
        result: list[torch.optim.Optimizer] = [torch.optim.Adam(trained, lr=rate)] if trained else []
    else:
        result = [optimizer]
    known = {id(p) for each in result for group in each.param_groups for p in group["params"]}
    rest = [gate.weight for gate in gated.gates.values() if id(gate.weight) not in known]
    if rest:
        result.append(torch.optim.Adam(rest, lr=gate_rate))  # pyright: ignore[reportArgumentType]
    return result


@torch.no_grad()
def _spread(gated: Gated) -> dict[str, Tensor]:
    """Spreads gates of one and the same weight w over w (1 -+ 0.8), the larger the magnitude of what they gate; returns
    what they were."""
    fresh = {}
    for name, score in importance_by_magnitude(gated).items():
        weight: Tensor = gated.gates[name].weight  # pyright: ignore[reportAssignmentType]
        if bool((weight == weight[0]).all()):
            fresh[name] = weight.clone()
            rank = score.argsort(stable=True).argsort().to(weight)
            weight.add_(0.8 * weight.abs() * ((2 * rank + 1) / len(weight) - 1))
    return fresh


@torch.no_grad()
def _hold(gated: Gated, keep: dict[str, int]) -> None:
    """Opens the best gates of a group that fell below its floor."""
    for name, gate in gated.gates.items():
        weight: Tensor = gate.weight  # pyright: ignore[reportAssignmentType]
        opened: Tensor = gate.opened()  # pyright: ignore[reportCallIssue]
        if int(opened.sum()) < keep[name]:
            opened[weight.topk(keep[name]).indices] = True
            gate.set_open(opened)  # pyright: ignore[reportCallIssue]


def _frozen(gated: Gated, target: float, settings: dict[str, Any]) -> Projection:
    found = project(gated, target, **settings)
    gated.freeze(found.opened)
    return found


def _bar(name: str, total: int) -> Any:
    try:
        from tqdm import tqdm
    except ImportError as error:
        raise ImportError(f"{name}: progress=True needs tqdm; run: pip install 'difflayers[examples]'") from error
    return tqdm(total=total, unit="step", desc="gates", dynamic_ncols=True, leave=False)
