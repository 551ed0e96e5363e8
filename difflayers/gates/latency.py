"""How long each layer takes, on this machine."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .. import _checks
from ._analysis import Term
from .attach import Gated

__all__ = ["Table", "latency_terms", "measure_latency"]

Table = Mapping[str, "float | tuple[float, float]"]


def measure_latency(gated: Gated, *, repeats: int = 20) -> dict[str, tuple[float, float]]:
    """Seconds that each layer takes on the example: those that stay, and those that shrink with its channels.

    Every linear layer and convolution is run alone on the input that it gets, whole and with half of its channels; the
    line through both is the table. Work outside of such layers (functional calls, the products of attention) gets the
    median time per FLOP of those.

    Args:
        gated: of `difflayers.gates.attach`, on the device that counts.
        repeats: runs per layer, at least 1; the median counts.

    Returns:
        By module path: (fixed, variable) seconds. Edit it as you like, and give it as `table` to `BudgetLoss`,
        `project` and `fit` with kind="latency".

    Raises:
        TypeError, ValueError: an argument of the wrong type or out of range.

    Cost, transforms:
        One run of the model, and 2 * repeats of each layer.

    References:
        Cai, Zhu, Han, "ProxylessNAS: Direct Neural Architecture Search on Target Task and Hardware", ICLR 2019,
        arXiv 1812.00332 (latency as a sum over layers).

    Example:
        >>> import torch, difflayers as dl
        >>> from torch import nn
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4))
        >>> table = dl.gates.measure_latency(dl.gates.attach(net, torch.randn(1, 4)))
        >>> sorted(table), all(fixed >= 0 and variable >= 0 for fixed, variable in table.values())
        (['0', '2'], True)
    """
    name = "difflayers.gates.measure_latency"
    if not isinstance(gated, Gated):
        raise TypeError(
            f"{name}: argument 'gated' must be what difflayers.gates.attach returns, got {type(gated).__name__}"
        )
    repeats = _checks.integer(name, "repeats", repeats, minimum=1)
    flops: dict[str, float] = {}
    for term in gated.analysis.flops:
        flops[term.module] = flops.get(term.module, 0.0) + term.amount
    calls = _inputs_of(gated, set(flops))
    table: dict[str, tuple[float, float]] = {}
    for path, inputs in calls.items():
        layer = gated.model.get_submodule(path)
        fixed = variable = 0.0
        for x in inputs:
            small, share = _half(layer, x)
            whole = _seconds(layer, x, repeats)
            slope = 0.0 if small is None else max(0.0, (whole - _seconds(*small, repeats)) / (1 - share))
            variable += min(slope, whole) if small is not None else whole
            fixed += max(0.0, whole - slope) if small is not None else 0.0
        table[path] = (fixed, variable)
    rates = [sum(table[path]) / flops[path] for path in table if flops[path]]
    rate = statistics.median(rates) if rates else 1e-9
    return {path: table.get(path, (0.0, rate * amount)) for path, amount in flops.items()}


def latency_terms(gated: Gated, table: Table | None) -> list[Term]:
    """The terms of the cost in seconds: those of FLOPs, with the table's amounts."""
    name = "difflayers.gates"
    entries: Mapping[str, Any] = measure_latency(gated) if table is None else table
    flops: dict[str, float] = {}
    for term in gated.analysis.flops:
        flops[term.module] = flops.get(term.module, 0.0) + term.amount
    missing = [path for path in flops if path not in entries]
    if missing:
        raise ValueError(
            f"{name}: argument 'table' must have the seconds of every layer that works, got none for "
            f"{', '.join(map(repr, missing[:5]))}; take those of difflayers.gates.measure_latency"
        )
    terms = []
    for path in flops:
        entry = entries[path]
        fixed, variable = entry if isinstance(entry, (tuple, list)) else (0.0, entry)
        fixed = _checks.number(name, f"table[{path!r}]", fixed, minimum=0)
        variable = _checks.number(name, f"table[{path!r}]", variable, minimum=0)
        if fixed:  # without its branch, a module takes no time at all
            branches = {name for name, group in gated.groups.items() if group.branch is not None}
            shared = [
                [factor for factor in term.factors if branches & set(factor.counts)]
                for term in gated.analysis.flops
                if term.module == path
            ]
            terms.append(Term(fixed, tuple(min(shared, key=len, default=[])), path))
        # several products of one module share its time by their FLOPs
        terms += [
            Term(variable * term.amount / flops[path], term.factors, path)
            for term in gated.analysis.flops
            if term.module == path and flops[path]
        ]
    return terms


def _inputs_of(gated: Gated, paths: set[str]) -> dict[str, list[Tensor]]:
    """The inputs that layers of a known kind get in a run of the example."""
    seen: dict[str, list[Tensor]] = {}
    modes = {module: module.training for module in gated.model.modules()}
    hooks = []
    for path, module in gated.model.named_modules():
        if path in paths and isinstance(module, (nn.Linear, nn.modules.conv._ConvNd)):

            def note(_: nn.Module, x: tuple[Tensor, ...], path: str = path) -> None:
                seen.setdefault(path, []).extend(each.detach() for each in x[:1])

            hooks.append(module.register_forward_pre_hook(note))
    try:
        gated.model.eval()
        args, kwargs = gated.example
        with torch.no_grad():
            gated.model(*args, **kwargs)
    finally:
        for hook in hooks:
            hook.remove()
        for module, training in modes.items():
            module.training = training
    return seen


def _half(layer: nn.Module, x: Tensor) -> tuple[tuple[nn.Module, Tensor] | None, float]:
    """The layer with half of its channels, its input, and the share of the work that it does."""
    options: Any = {"device": x.device, "dtype": x.dtype}
    if isinstance(layer, nn.Linear):
        inputs, outputs = max(1, layer.in_features // 2), max(1, layer.out_features // 2)
        small: nn.Module = nn.Linear(inputs, outputs, layer.bias is not None, **options)
        share, dim = inputs * outputs / (layer.in_features * layer.out_features), -1
    else:
        conv: Any = layer
        depthwise = conv.groups == conv.in_channels and conv.groups > 1
        groups = max(1, conv.groups // 2) if depthwise else conv.groups
        inputs = groups * (1 if depthwise else max(1, conv.in_channels // conv.groups // 2))
        outputs = groups * max(1, conv.out_channels // conv.groups // (1 if depthwise else 2))
        small = type(conv)(
            inputs, outputs, conv.kernel_size, conv.stride, conv.padding, dilation=conv.dilation, groups=groups,
            bias=conv.bias is not None, **options,
        )  # fmt: skip
        share = inputs * outputs / groups / (conv.in_channels * conv.out_channels / conv.groups)
        dim = -len(conv.kernel_size) - 1
    if share >= 1:
        return None, 1.0
    return (small.eval(), x.narrow(dim, 0, inputs).contiguous()), share


def _seconds(layer: nn.Module, x: Tensor, repeats: int) -> float:
    """The median of one call."""
    times = []
    with torch.no_grad():
        for i in range(repeats + 2):
            _wait(x)
            start = time.perf_counter()
            layer(x)
            _wait(x)
            if i >= 2:  # the first ones warm up
                times.append(time.perf_counter() - start)
    return statistics.median(times)


def _wait(x: Tensor) -> None:
    if x.is_cuda:
        torch.cuda.synchronize(x.device)
