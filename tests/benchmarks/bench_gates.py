"""Seconds to find and remove channels of a ResNet-50 and of a 12-block transformer, beside Torch-Pruning where it is
installed, and what gates cost in a step of training. Run: python tests/benchmarks/bench_gates.py"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import difflayers as dl


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 and a shortcut."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = 4 * width
        self.conv1, self.bn1 = nn.Conv2d(inputs, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = nn.Conv2d(width, outputs, 1, bias=False), nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """The block."""
        y = F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))
        return F.relu(self.bn3(self.conv3(y)) + self.shortcut(x))


def resnet50(classes: int = 1000) -> nn.Module:
    """25.6 million parameters, as published."""
    layers: list[nn.Module] = [
        nn.Conv2d(3, 64, 7, 2, 3, bias=False),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        nn.MaxPool2d(3, 2, 1),
    ]
    inputs = 64
    for width, blocks, stride in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
        for i in range(blocks):
            layers.append(Bottleneck(inputs, width, stride if i == 0 else 1))
            inputs = 4 * width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2048, classes))


class Attention(nn.Module):
    """Heads of a fused layer."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.num_heads, self.head_dim = heads, width // heads
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Outputs of every token."""
        b, n, _ = x.shape
        q, k, v = self.qkv(x).view(b, n, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, -1))


class Block(nn.Module):
    """Attention and two linear layers, norms in front."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """The block."""
        x = x + self.attention(self.norm1(x))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


def transformer(width: int = 384, heads: int = 6, blocks: int = 12) -> nn.Module:
    """A stack of blocks and a head."""
    return nn.Sequential(*[Block(width, heads) for _ in range(blocks)], nn.LayerNorm(width), nn.Linear(width, 100))


def seconds(run: Callable[[], object], times: int = 3) -> float:
    """The fastest of some runs."""
    best = float("inf")
    for _ in range(times):
        start = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - start)
    return best


def close_half(gated: dl.gates.Gated) -> None:
    """Closes every other unit."""
    for gate in gated.gates.values():
        gate.weight.data[1::2] = -1  # pyright: ignore[reportIndexIssue]


def surgery(model: nn.Module, x: Tensor) -> dict[str, float]:
    """Seconds of both parts, with and without the comparison in float64."""
    gated = dl.gates.attach(model, x)
    close_half(gated)
    return {
        "attach": seconds(lambda: dl.gates.attach(model, x)),
        "prune": seconds(lambda: dl.gates.prune(gated)),
        "prune, not verified": seconds(lambda: dl.gates.prune(gated, verify=False)),
    }


def torch_pruning(model: nn.Module, x: Tensor, heads: dict[nn.Module, int], ignored: list[nn.Module]) -> float | None:
    """Seconds of its constructor and one step, None where it is not installed."""
    try:
        import torch_pruning as tp  # pyright: ignore[reportMissingImports]
    except ImportError:
        return None

    def run() -> float:
        victim, places = copy.deepcopy((model, (heads, ignored)))
        start = time.perf_counter()
        tp.pruner.MetaPruner(
            victim, x, importance=tp.importance.MagnitudeImportance(p=2), pruning_ratio=0.5, num_heads=places[0],
            prune_num_heads=bool(places[0]), ignored_layers=places[1],
        ).step()  # fmt: skip
        return time.perf_counter() - start

    return min(run() for _ in range(3))


def step_overhead(model: nn.Module, x: Tensor, rounds: int = 5) -> tuple[float, float]:
    """Median seconds of forward and backward of the model and of the gated model, taking turns."""
    gated = dl.gates.attach(model, x[:1])
    model.train()
    gated.train()

    def step(module: nn.Module) -> float:
        start = time.perf_counter()
        module(x).square().mean().backward()
        return time.perf_counter() - start

    step(model)
    step(gated)
    plain, with_gates = zip(*[(step(model), step(gated)) for _ in range(rounds)], strict=True)
    return statistics.median(plain), statistics.median(with_gates)


def main() -> None:
    """Prints the table."""
    torch.manual_seed(0)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} thread(s)")
    resnet, vit = resnet50(), transformer()
    for name, model, x, batch in (
        ("ResNet-50, 64 x 64", resnet, torch.randn(1, 3, 64, 64), torch.randn(32, 3, 64, 64)),
        ("transformer, 12 blocks of 384", vit, torch.randn(1, 16, 384), torch.randn(8, 64, 384)),
    ):
        print(f"\n{name}: {sum(p.numel() for p in model.parameters()) / 1e6:.1f} million parameters")
        for part, value in surgery(model, x).items():
            print(f"  {part:34s} {value:7.2f} s")
        attention = {m.qkv: m.num_heads for m in model.modules() if isinstance(m, Attention)}
        last: list[nn.Module] = [model[-1]]  # pyright: ignore[reportIndexIssue]
        peer = torch_pruning(model, x, attention, last)  # pyright: ignore[reportArgumentType]
        print("  Torch-Pruning, constructor and step " + ("not installed" if peer is None else f"{peer:7.2f} s"))
        plain, gated = step_overhead(model, batch)
        print(f"  step of training {plain:.3f} s, with gates {gated:.3f} s: {100 * (gated / plain - 1):+.1f} %")


if __name__ == "__main__":
    main()
