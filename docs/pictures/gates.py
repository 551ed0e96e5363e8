"""Pictures of docs/gates.md."""

from __future__ import annotations

import matplotlib.pyplot as plt
import torch
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from torch import Tensor, nn

from difflayers import gates

SHARES = (0.5, 0.25, 0.12, 0.06, 0.03)


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
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
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
    shuffled = torch.randperm(len(labels))
    images, labels = images[shuffled], labels[shuffled]
    batches = list(zip(images[:1200].split(60), labels[:1200].split(60), strict=True))
    dense = _train(_net(), batches, 15)
    state, whole = dense.state_dict(), _accuracy(dense, images[1200:], labels[1200:])
    pruned, again = [], []
    for share in SHARES:
        model = _net()
        model.load_state_dict(state)
        gated = gates.attach(model.train(), images[:1])
        gates.fit(gated, _loss, batches, target=share, steps=300, progress=False)
        small = gates.prune(gated)
        pruned.append(_accuracy(small, images[1200:], labels[1200:]))
        for part in small.modules():
            if hasattr(part, "reset_parameters"):
                part.reset_parameters()
        again.append(_accuracy(_train(small, batches, 15), images[1200:], labels[1200:]))
    print("share of FLOPs", SHARES, "pruned", [round(a, 1) for a in pruned], "anew", [round(a, 1) for a in again])
    figure, axis = plt.subplots(figsize=(6.5, 3.2), layout="constrained")
    axis.axhline(whole, color="black", linewidth=0.8, linestyle=":", label="the whole network")
    axis.plot(SHARES, pruned, "o-", label="pruned by trainable gates")
    axis.plot(SHARES, again, "s--", color="C1", label="the same small network, trained anew")
    axis.set(xscale="log", xticks=SHARES, xticklabels=[f"{s:.0%}" for s in SHARES], xlabel="FLOPs kept")
    axis.minorticks_off()
    axis.set(ylabel="accuracy on unseen digits, %")
    axis.legend(fontsize=8, loc="lower right")
    return figure
