"""Pictures of docs/sorting.md."""

from __future__ import annotations

import matplotlib.pyplot as plt
import torch
from matplotlib.figure import Figure

import difflayers as dl


def swaps() -> Figure:
    """Swap functions, their derivatives, and the error of a comparator, all at steepness 1."""
    figure, (value, slope, error) = plt.subplots(1, 3, figsize=(9.5, 2.9), layout="constrained")
    d = torch.linspace(-4, 4, 1601, dtype=torch.float64)
    for name, swap in dl.swaps.SWAPS.items():
        style = {"label": name, "linestyle": "-" if swap.monotonic else "--", "linewidth": 1.3}
        f = swap.value(d, 1.0)
        value.plot(d, f, **style)
        slope.plot(d, swap.derivative(d, 1.0), **style)
        error.plot(d, (1 - f) * d - d.clamp(max=0), **style)  # relaxed min(0, d), less min(0, d)
    value.set(title="$f(d)$: how surely in order", xlabel="$d = b - a$")
    slope.set(title="$f'(d)$", xlabel="$d$", ylim=(0, 1.05))
    error.set(title="error of the smaller value", xlabel="$d$")
    value.legend(fontsize=8)
    slope.text(0.97, 0.95, "solid: monotonic", transform=slope.transAxes, ha="right", va="top", fontsize=8)
    return figure


def permutations() -> Figure:
    """The relaxed matrix of eight scores as the steepness grows."""
    scores = torch.tensor([0.9, 2.4, 0.2, 1.6, 3.0, 1.3, 2.1, 0.5])
    steepnesses = (1.0, 5.0, 25.0, 125.0)
    figure, axes = plt.subplots(1, 5, figsize=(9.5, 2.3), layout="constrained")
    matrices = [dl.permutation(scores, steepness=s) for s in steepnesses] + [dl.permutation(scores, hard=True)]
    for axis, matrix, title in zip(axes, matrices, [*(f"steepness {s:g}" for s in steepnesses), "exact"], strict=True):
        drawn = axis.imshow(matrix, cmap="Blues", vmin=0, vmax=1)
        axis.set(title=title, xticks=[], yticks=[], xlabel="input $j$")
    axes[0].set_ylabel("output $i$")
    figure.colorbar(drawn, ax=axes, shrink=0.8, label="$P_{ij}$")
    return figure
