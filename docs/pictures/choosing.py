"""Pictures of docs/choosing.md and docs/subsets.md."""

from __future__ import annotations

import matplotlib.pyplot as plt
import torch
from matplotlib.figure import Figure

import difflayers as dl
from difflayers import subsets

ESTIMATORS = {
    "straight_through": dl.straight_through,
    "gumbel_softmax(1)": dl.GumbelSoftmax(1.0, hard=True),
    "gumbel_softmax(0.5)": dl.GumbelSoftmax(0.5, hard=True),
    "gumbel_softmax(0.25)": dl.GumbelSoftmax(0.25, hard=True),
    "gumbel_rao(0.5)": dl.GumbelRao(0.5),
    "reinmax": dl.reinmax,
    "RLOO(4)": dl.estimators.RLOO(4),
}


def bias_variance() -> Figure:
    """Bias and scatter of the estimators on a quadratic and a cubic loss, against enumeration."""
    figure, axes = plt.subplots(1, 2, figsize=(9.5, 3.4), layout="constrained", sharey=True)
    for axis, power in zip(axes, (2, 3), strict=True):
        torch.manual_seed(1)
        logits, weights = torch.randn(2, 4, 4, dtype=torch.float64)

        def loss(sample: torch.Tensor, weights: torch.Tensor = weights, power: int = power) -> torch.Tensor:
            return ((sample * weights).sum(-1) - 0.3).pow(power).sum()

        report = dl.diagnostics.compare(loss, logits, estimators=ESTIMATORS, samples=4000)
        for place, name in enumerate(ESTIMATORS):
            row = report[name]
            axis.plot(
                row.std, row.bias, "o", color=f"C{place}", label=name, fillstyle="full" if row.significant else "none"
            )
        axis.set(title=f"loss of degree {power}", xlabel="std of one gradient", xlim=(0, None))
    axes[0].set(ylabel="bias of the mean gradient", ylim=(0, None))
    axes[1].legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1), title="hollow: bias within\nits error of 0")
    return figure


def top_k() -> Figure:
    """What the k-of-n layers make of the same ten scores."""
    scores = torch.tensor([2.1, 1.9, 1.4, 1.2, 1.1, 0.6, 0.3, 0.0, -0.4, -1.0], dtype=torch.float64)
    methods = {
        "simple, marginals": lambda t: subsets.marginals(scores, 3, t),
        "network_topk": lambda t: subsets.network_topk(scores, 3, t),
        "optimal_transport_topk": lambda t: subsets.optimal_transport_topk(scores, 3, t),
        "lapsum_topk": lambda t: subsets.lapsum_topk(scores, 3, t),
        "projection_topk": lambda t: subsets.projection_topk(scores, 3, t),
    }
    figure, axes = plt.subplots(1, 3, figsize=(9.5, 2.9), layout="constrained", sharey=True)
    for axis, temperature in zip(axes, (1.0, 0.5, 0.1), strict=True):
        for name, method in methods.items():
            axis.plot(range(1, 11), method(temperature), "o-", markersize=3, linewidth=1, label=name)
        axis.set(title=f"temperature {temperature:g}", xlabel="element, best first", xticks=range(1, 11))
    axes[0].set_ylabel("membership, the best 3 of 10")
    axes[2].legend(fontsize=8)
    return figure
