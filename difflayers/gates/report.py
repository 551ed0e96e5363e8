"""What was removed, and what it brought."""

from __future__ import annotations

import statistics
import time
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils._pytree import tree_map

from .. import _checks
from ._branches import inside
from .attach import Gated
from .cost import checked
from .prune import prune

__all__ = ["Report", "report"]

NO_GAIN = 1.05  # a speed-up below which channels were removed for nothing


class Report(NamedTuple):
    """A table of what is kept; `str` shows it, `plot` draws it.

    Attributes:
        groups: by group, how many units are kept, and of how many.
        flops: of the example, of the dense and of the pruned model.
        parameters: of both.
        seconds: a forward of the example takes, on this machine, of both; None: not measured.
        device: where.
        threads: of torch, when measured on the CPU.
    """

    groups: dict[str, tuple[int, int]]
    flops: tuple[float, float]
    parameters: tuple[int, int]
    seconds: tuple[float, float] | None
    device: str
    threads: int

    @property
    def speedup(self) -> float | None:
        """How many times faster the pruned model is."""
        return None if self.seconds is None else self.seconds[0] / self.seconds[1]

    @property
    def advice(self) -> str:
        """What to do where the removal brings no speed; empty where it does."""
        if self.speedup is None or self.speedup >= NO_GAIN or self.flops[1] >= self.flops[0]:
            return ""
        odd = [name for name, (kept, of) in self.groups.items() if of >= 16 and kept < of and kept % 8]
        if odd:
            return (
                f"{len(odd)} of {len(self.groups)} groups keep a number of units that is no multiple of 8 "
                f"('{odd[0]}': {self.groups[odd[0]][0]}), which kernels are slow at: "
                f"try project(..., round_to=8), or 16, 32 on a GPU"
            )
        return (
            "fewer FLOPs bring no speed here: the time goes elsewhere (calls, memory, a batch that is too small); "
            "measure with the batch that is used, or select with kind='latency'"
        )

    def __str__(self) -> str:
        width = max([5, *map(len, self.groups)])
        lines = [f"{'group':<{width}}  {'kept':>6}  {'of':>6}  {'share':>6}"]
        lines += [f"{n:<{width}}  {kept:>6}  {of:>6}  {kept / of:>6.1%}" for n, (kept, of) in self.groups.items()]
        for what, (dense, pruned) in (("FLOPs", self.flops), ("parameters", self.parameters)):
            lines.append(f"{what}: {_short(dense)} -> {_short(pruned)} ({pruned / max(dense, 1):.1%})")
        if self.seconds is not None:
            where = f"{self.device}, {self.threads} threads" if self.device == "cpu" else self.device
            dense, pruned = (1e3 * seconds for seconds in self.seconds)
            lines.append(f"time of the example: {dense:.3g} ms -> {pruned:.3g} ms ({self.speedup:.2f}x, {where})")
        return "\n".join(lines + ([self.advice] if self.advice else []))

    def plot(self, *, axes: Any = None) -> Any:
        """Draws the share of each group that is kept.

        Args:
            axes: of matplotlib; default: of a new figure.

        Returns:
            The axes; `axes.figure.savefig(path)` writes the picture.

        Raises:
            ImportError: matplotlib is missing.
        """
        if axes is None:
            try:
                from matplotlib.figure import Figure  # without pyplot: needs no display, leaves no global state
            except ImportError as error:
                raise ImportError(
                    "difflayers.gates.Report.plot: drawing needs matplotlib; run: pip install 'difflayers[examples]'"
                ) from error
            axes = Figure(figsize=(6, 1 + 0.25 * len(self.groups)), layout="constrained").subplots()
        at = range(len(self.groups))
        axes.barh(at, [of for _, of in self.groups.values()], color="#d0d7de", label="removed")
        axes.barh(at, [kept for kept, _ in self.groups.values()], color="#0969da", label="kept")
        axes.set_yticks(list(at), list(self.groups))
        axes.invert_yaxis()
        axes.legend(loc="lower right")
        axes.set(xlabel="units", title=f"{self.flops[1] / self.flops[0]:.1%} of FLOPs")
        return axes


def report(gated: Gated, pruned: nn.Module | None = None, *, measure: bool = True, repeats: int = 20) -> Report:
    """What is kept of a model's groups, FLOPs and parameters, and how much faster it is on this machine.

    Args:
        gated: of `difflayers.gates.attach`.
        pruned: of `prune`; None: prunes now.
        measure: takes the times of both models on the example, alternately.
        repeats: forwards of each, at least 1; the median counts.

    Returns:
        A `Report`: `print(report)`, `report.plot()`, `report.speedup`.

    Raises:
        TypeError, ValueError, PruningError: an argument of the wrong type, or what `prune` raises.

    Cost, transforms:
        `prune` where it is to be done, and 2 * repeats forwards.

    References:
        None.

    Example:
        >>> import torch, difflayers as dl
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> gated = dl.gates.attach(net, torch.randn(1, 4))
        >>> _ = dl.gates.project(gated, 0.5)
        >>> print(dl.gates.report(gated, measure=False))
        group    kept      of   share
        0           4       8   50.0%
        FLOPs: 96 -> 48 (50.0%)
        parameters: 58 -> 30 (51.7%)
    """
    name = "difflayers.gates.report"
    gated = checked(name, gated)
    _checks.boolean(name, "measure", measure)
    repeats = _checks.integer(name, "repeats", repeats, minimum=1)
    if pruned is None:
        pruned = prune(gated)
    if not isinstance(pruned, nn.Module):
        raise TypeError(f"{name}: argument 'pruned' must be a torch.nn.Module, got {type(pruned).__name__}")
    opened = gated.opened()
    left = float(gated.cost("flops", {group: mask.double() for group, mask in opened.items()}))
    count = tuple(sum(p.numel() for p in model.parameters()) for model in (gated.model, pruned))
    device = next((p.device for p in gated.model.parameters()), torch.device("cpu"))
    shut = {group for group, mask in opened.items() if not bool(mask.any())}
    for group, value in gated.groups.items():
        if shut & set(inside(value, gated.groups.values())):  # gone with its branch
            opened[group] = torch.zeros_like(opened[group])
    return Report(
        {group: (int(mask.sum()), mask.numel()) for group, mask in opened.items()},
        (gated.full_cost("flops"), left),
        (count[0], count[1]),
        _seconds(gated.model, pruned, gated.example, device, repeats) if measure else None,
        str(device),
        torch.get_num_threads(),
    )


def _seconds(
    dense: nn.Module, pruned: nn.Module, example: Any, device: torch.device, repeats: int
) -> tuple[float, float]:
    args, kwargs = tree_map(lambda value: value.to(device) if isinstance(value, torch.Tensor) else value, example)
    modes = {module: module.training for model in (dense, pruned) for module in model.modules()}
    times: tuple[list[float], list[float]] = ([], [])
    try:
        with torch.no_grad():
            for i in range(repeats + 2):
                for model, found in zip(
                    (dense, pruned), times, strict=True
                ):  # in turns: the machine is not always idle
                    model.eval()
                    _wait(device)
                    start = time.perf_counter()
                    model(*args, **kwargs)
                    _wait(device)
                    if i >= 2:  # the first ones warm up
                        found.append(time.perf_counter() - start)
    finally:
        for module, training in modes.items():
            module.training = training
    return statistics.median(times[0]), statistics.median(times[1])


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _short(value: float) -> str:
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= 10 * size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.0f}"
