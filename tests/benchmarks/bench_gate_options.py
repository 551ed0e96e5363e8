"""Options of gates side by side on scikit-learn's digits, at 0.25 of the FLOPs: schedules at two weights of the
budget's loss, and gates on whole branches. Nothing is tuned: all other settings are the defaults.
Run: python tests/benchmarks/bench_gate_options.py [--seeds 2] [--epochs 12]"""

from __future__ import annotations

import argparse
import copy
import statistics

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

from difflayers import gates

TARGET = 0.25
Batch = tuple[Tensor, Tensor]


class Block(nn.Module):
    """Two convolutions and a shortcut."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)
        self.shortcut = nn.Conv2d(inputs, width, 1, stride, bias=False) if stride > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """The block."""
        return F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))) + self.shortcut(x))


def network() -> nn.Module:
    """Three stages of two blocks."""
    layers: list[nn.Module] = [nn.Conv2d(1, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    inputs = 16
    for width, stride in ((16, 1), (16, 1), (32, 2), (32, 1), (64, 2), (64, 1)):
        layers.append(Block(inputs, width, stride))
        inputs = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, 10))


def digits(seed: int) -> tuple[Batch, Batch]:
    """Two thirds to train on, the rest to test."""
    data = load_digits()
    images = torch.as_tensor(data.images, dtype=torch.float32)[:, None] / 8 - 1
    labels = torch.as_tensor(data.target)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    train, test = order[:1200], order[1200:]
    return (images[train], labels[train]), (images[test], labels[test])


def accuracy(model: nn.Module, data: Batch) -> float:
    """In percent."""
    model.eval()
    with torch.no_grad():
        return 100 * float((model(data[0]).argmax(1) == data[1]).float().mean())


def loss(model: nn.Module, batch: Batch) -> Tensor:
    """The task's."""
    return F.cross_entropy(model(batch[0]), batch[1])


def main() -> None:
    """The tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=12)
    options = parser.parse_args()
    rows: dict[tuple[str, float, str], list[tuple[float, float, float, int]]] = {}
    dense = []
    for seed in range(options.seeds):
        train, test = digits(seed)
        torch.manual_seed(seed)
        net = network()
        batches = [(train[0][i : i + 64], train[1][i : i + 64]) for i in range(0, 1200, 64)]
        optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
        for _ in range(options.epochs // 2):
            for batch in batches:
                optimizer.zero_grad()
                loss(net, batch).backward()
                optimizer.step()
        dense.append(accuracy(net, test))
        cases = [(s, w, "keep") for s in ("constant", "gradual", "growing", "progressive") for w in (0.04, 4.0)]
        for schedule, weight, branches in [*cases, ("gradual", 4.0, "gate"), ("progressive", 4.0, "gate")]:
            torch.manual_seed(seed)
            gated = gates.attach(copy.deepcopy(net), train[0][:1], branches=branches)
            result = gates.fit(
                gated, loss, batches, target=TARGET, epochs=options.epochs, schedule=schedule, budget_weight=weight,
                progress=False,
            )  # fmt: skip
            before = next((r.share for r in reversed(result.history) if not r.frozen), 1.0)
            opened = result.projection.opened
            removed = sum(not bool(opened[n].any()) for n, group in gated.groups.items() if group.branch is not None)
            small = gates.prune(gated)
            rows.setdefault((schedule, weight, branches), []).append(
                (before, result.projection.share, accuracy(small, test), removed)
            )
    print(f"target {TARGET}, {options.seeds} seeds, {options.epochs} epochs; dense {statistics.mean(dense):.1f} %\n")
    print("| schedule | weight | branches | share before projection | after | accuracy % (worst) | branches removed |")
    print("|---|---|---|---|---|---|---|")
    for (schedule, weight, branches), found in rows.items():
        before, after, right, removed = zip(*found, strict=True)
        print(
            f"| {schedule} | {weight:g} | {branches} | {statistics.mean(before):.3f} | {statistics.mean(after):.4f} "
            f"| {statistics.mean(right):.1f} ({min(right):.1f}) | {statistics.mean(removed):.1f} |"
        )


if __name__ == "__main__":
    main()
