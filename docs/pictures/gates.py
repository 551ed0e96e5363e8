"""Pictures of docs/gates.md."""

from __future__ import annotations

import copy

import matplotlib.pyplot as plt
import torch
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from torch import Tensor, nn

from difflayers import gates

SHARES = (0.5, 0.25, 0.12, 0.06)
SEEDS = 3
RATE = 3e-3  # of every training


def _net() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10),
    )  # fmt: skip


def _loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def _accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    with torch.no_grad():
        return 100 * float((model.eval()(images).argmax(-1) == labels).double().mean())


def _train(model: nn.Module, batches: list[tuple[Tensor, Tensor]], epochs: int) -> nn.Module:
    optimizer = torch.optim.Adam(model.parameters(), RATE)
    for _ in range(epochs):
        for batch in batches:
            optimizer.zero_grad()
            _loss(model.train(), batch).backward()
            optimizer.step()
    return model


def pruning() -> Figure:
    """Accuracy against FLOPs: gates, and small networks of the same shape trained from nothing."""
    digits = load_digits()
    images, labels = torch.tensor(digits.images[:, None] / 16).float(), torch.tensor(digits.target)
    whole, pruned, again = [], torch.zeros(SEEDS, len(SHARES)), torch.zeros(SEEDS, len(SHARES))
    for seed in range(SEEDS):
        torch.manual_seed(seed)
        shuffled = torch.randperm(len(labels))
        seen, unseen = shuffled[:1200], shuffled[1200:]
        batches = list(zip(images[seen].split(60), labels[seen].split(60), strict=True))
        dense = _train(_net(), batches, 15)
        state = copy.deepcopy(dense.state_dict())
        whole.append(_accuracy(dense, images[unseen], labels[unseen]))
        for place, share in enumerate(SHARES):
            model = _net()
            model.load_state_dict(state)
            gated = gates.attach(model.train(), images[:1])
            gates.fit(gated, _loss, batches, target=share, steps=300, learning_rate=RATE, progress=False)
            small = gates.prune(gated)
            pruned[seed, place] = _accuracy(small, images[unseen], labels[unseen])
            for part in small.modules():
                if hasattr(part, "reset_parameters"):
                    part.reset_parameters()
            again[seed, place] = _accuracy(_train(small, batches, 15), images[unseen], labels[unseen])
    figure, axis = plt.subplots(figsize=(6.5, 3.2), layout="constrained")
    axis.axhline(sum(whole) / SEEDS, color="black", linewidth=0.8, linestyle=":", label="the whole network")
    for results, name, style in (
        (pruned, "pruned by trainable gates", "o-"),
        (again, "the same small network, trained anew", "s--"),
    ):
        print(name, [f"{mean:.1f} ± {std:.1f}" for mean, std in zip(results.mean(0), results.std(0), strict=True)])
        axis.errorbar(SHARES, results.mean(0), results.std(0), fmt=style, capsize=3, linewidth=1, label=name)
    axis.set(xscale="log", xticks=SHARES, xticklabels=[f"{s:.0%}" for s in SHARES], xlabel="FLOPs kept")
    axis.minorticks_off()
    axis.set(ylabel="accuracy on unseen digits, %")
    axis.legend(fontsize=8, loc="lower right")
    return figure
