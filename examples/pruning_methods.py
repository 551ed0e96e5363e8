"""Three ways to make a classifier smaller, to the same FLOPs and with the same training: trainable gates, L1 magnitude,
and Torch-Pruning where it is installed."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from cifar_images import Batches, Images
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from difflayers import gates

FLOOR = 1 / 8  # of a layer's channels stays, whatever the method


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        return F.relu(y + self.shortcut(x))


def resnet(channels: int, blocks: int, width: int) -> nn.Sequential:
    """A ResNet of 6 * blocks + 2 layers as for CIFAR-10: [batch, channels, height, width] -> [batch, 10]."""
    layers: list[nn.Module] = [nn.Conv2d(channels, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    inputs = width
    for outputs, stride in ((width, 1), (2 * width, 2), (4 * width, 2)):
        for i in range(blocks):
            layers.append(Block(inputs, outputs, stride if i == 0 else 1))
            inputs = outputs
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, 10))


class Schedule:
    """Adam whose rate falls to nothing along a cosine."""

    def __init__(self, model: nn.Module, rate: float, steps: int) -> None:
        self.optimiser = torch.optim.Adam(model.parameters(), rate, fused=True)
        self.scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimiser, max(1, steps))

    def step(self, *_: Any) -> None:
        """After each step of training."""
        self.scheduler.step()


def cross_entropy(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def train(model: nn.Module, batches: Batches, epochs: int, rate: float, bar: Callable[[Iterable[int]], Any]) -> None:
    """Plain training."""
    schedule = Schedule(model, rate, epochs * len(batches))
    model.train()
    for _ in bar(range(epochs)):
        for batch in batches:
            loss = cross_entropy(model, batch)
            schedule.optimiser.zero_grad()
            loss.backward()
            schedule.optimiser.step()
            schedule.step()
    gates.recalibrate_batch_norm(model, batches, cross_entropy)


@torch.no_grad()
def accuracy(model: nn.Module, images: Images) -> float:
    """Percent, in evaluation mode."""
    model.eval()
    right = [
        (model(pixels).argmax(1) == numbers).sum()
        for pixels, numbers in zip(images.pixels.split(500), images.numbers.split(500), strict=True)
    ]
    return 100 * float(sum(right)) / len(images.numbers)


def flops(model: nn.Module, example: Tensor) -> int:
    """Counted by torch while the model runs; the same for every method."""
    counter = FlopCounterMode(display=False)
    model.eval()
    with counter, torch.no_grad():
        model(example)
    return counter.get_total_flops()


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def widths(model: nn.Module) -> list[int]:
    """Outputs of every convolution, in order."""
    return [module.out_channels for module in model.modules() if isinstance(module, nn.Conv2d)]


class Task(NamedTuple):
    """What every method gets."""

    batches: Batches
    example: Tensor  # one image
    epochs: int  # of training after (or, with gates, during and after) the removal
    rate: float
    bar: Callable[[Iterable[int]], Any]


def by_gates(dense: nn.Module, target: float, task: Task) -> nn.Module:
    """Trainable gates: network and gates are trained together, then what the gates leave."""
    gated = gates.attach(copy.deepcopy(dense), task.example)
    steps = task.epochs * len(task.batches)
    schedule = Schedule(gated.model, task.rate, steps)
    epochs = iter(task.bar(range(task.epochs)))

    def after_step(record: gates.FitRecord) -> None:
        if record.step % len(task.batches) == 0:
            next(epochs)
        schedule.step()

    fitted = gates.fit(
        gated, cross_entropy, task.batches, target=target, epochs=task.epochs, floors=FLOOR,
        optimizer=schedule.optimiser, callback=after_step, progress=False,
    )  # fmt: skip
    next(epochs, None)  # closes the bar
    if fitted.status == "interrupted":
        raise KeyboardInterrupt  # the rest is not to run either
    return gates.prune(gated)


def by_l1(dense: nn.Module, target: float, task: Task) -> nn.Module:
    """The same surgery by the L1 norms of the weights that make a channel, then training."""
    gated = gates.attach(copy.deepcopy(dense), task.example)
    gates.project(gated, target, scores=gates.importance_by_magnitude(gated), floors=FLOOR)
    small = gates.prune(gated)
    train(small, task.batches, task.epochs, task.rate, task.bar)
    return small


def torch_pruning_criteria() -> dict[str, Callable[[], Any]]:
    """The criteria of Torch-Pruning by name, none where it is not installed.

    Uniform: every layer loses the same share; global: the channels of all layers compete."""
    try:
        from torch_pruning import importance  # pyright: ignore[reportMissingImports]
    except ImportError:
        return {}
    return {
        "L1, uniform": lambda: importance.MagnitudeImportance(p=1),
        "L1, global": lambda: importance.MagnitudeImportance(p=1),
        "L2, global": lambda: importance.MagnitudeImportance(p=2),
        "BN scale, global": lambda: importance.BNScaleImportance(),
        "Taylor, global": lambda: importance.TaylorImportance(),
    }


def by_torch_pruning(dense: nn.Module, target: float, task: Task, criterion: str) -> nn.Module:
    """Torch-Pruning with one of its criteria, then training.

    It takes channel ratios and no budgets, so it is asked for a little more again and again until the FLOPs are not
    above the target."""
    from torch_pruning.pruner import MetaPruner  # pyright: ignore[reportMissingImports]

    small = copy.deepcopy(dense).eval()
    wanted = target * flops(dense, task.example)
    if criterion.startswith("Taylor"):
        small.zero_grad()
        for batch in task.batches:
            cross_entropy(small, batch).backward()  # the gradients add up
    last = [module for module in small.modules() if isinstance(module, nn.Linear)][-1]
    pruner = MetaPruner(
        small, task.example, importance=torch_pruning_criteria()[criterion](), global_pruning="global" in criterion,
        pruning_ratio=1.0, max_pruning_ratio=1 - FLOOR, iterative_steps=400, ignored_layers=[last],
    )  # fmt: skip
    for _ in range(400):
        if flops(small, task.example) <= wanted:
            break
        pruner.step()
    else:
        raise ValueError(
            f"Torch-Pruning with the criterion '{criterion}' does not come down to {target:g} of the FLOPs"
        )
    small.zero_grad()
    train(small, task.batches, task.epochs, task.rate, task.bar)
    return small
