"""Accuracy against FLOPs: a small ResNet on real images, pruned to exact budgets in three ways.

A dense network is trained first. Then, for every target, a copy of it is made smaller by trainable gates (network and
gates are trained together, the budget is made exact, what is left is trained on), by the L1 norms of its channels'
weights (the same surgery to the same budget, then training), and by Torch-Pruning where it is installed (pip install
torch-pruning). All are trained for the same number of epochs, and their FLOPs are counted by torch's own counter.

Without --data the images are scikit-learn's digits; a folder of CIFAR-10's binary version (cifar-10-batches-bin; give
--blocks 3 --epochs 60 and some hours) or of MNIST's idx files does as well.
"""

from __future__ import annotations

import copy
import math
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import command
import torch
from torch import nn

from difflayers import gates

try:
    from cifar_images import Batches, Images, load_images, parts
    from matplotlib.figure import Figure  # without pyplot: it draws with Agg and needs no display
    from pruning_methods import (
        FLOOR,
        Task,
        accuracy,
        by_gates,
        by_l1,
        by_torch_pruning,
        flops,
        parameters,
        resnet,
        torch_pruning_criteria,
        train,
        widths,
    )
    from tqdm import tqdm
except ImportError as error:
    sys.exit(f"prune_resnet.py: {error}; run: pip install 'difflayers[examples]'")

GATES, L1, PEER = "trainable gates", "L1 magnitude", "Torch-Pruning"
CRITERIA = ("L1, uniform", "L2, global", "Taylor, global")  # of Torch-Pruning; bench_pruning.py has more
COLOURS = {GATES: "#0969da", L1: "#bc4c00", PEER: "#8250df"}


class Point(NamedTuple):
    """One pruned network."""

    method: str
    target: float
    accuracy: float
    share: float
    widths: list[int]


def methods() -> dict[str, Callable[[nn.Module, float, Task], nn.Module]]:
    """By the name that is shown."""
    found: dict[str, Callable[[nn.Module, float, Task], nn.Module]] = {GATES: by_gates, L1: by_l1}
    for criterion in CRITERIA if torch_pruning_criteria() else ():
        found[f"{PEER}: {criterion}"] = lambda dense, target, task, criterion=criterion: by_torch_pruning(
            dense, target, task, criterion
        )
    return found


def best(points: Sequence[Point], method: str) -> dict[float, Point]:
    """By target; of Torch-Pruning's criteria the one that is best there, on the images that are shown."""
    result: dict[float, Point] = {}
    for point in points:
        if point.method.startswith(method) and point.accuracy >= result.get(point.target, point).accuracy:
            result[point.target] = point
    return result


def draw(points: Sequence[Point], dense: float, layers: list[int], path: Path) -> None:
    """The curves, and how wide the gates leave each layer."""
    figure = Figure(figsize=(12, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.axhline(dense, color="#57606a", linestyle=":", label="dense")
    for method, colour in COLOURS.items():
        curve = sorted(best(points, method).values(), key=lambda point: point.share)
        if curve:
            left.plot([p.share for p in curve], [p.accuracy for p in curve], "o-", color=colour, label=method)
    left.set(xlabel="share of the dense network's FLOPs", ylabel="accuracy on unseen images, %", xlim=(0, 1))
    left.legend()
    right.step(range(len(layers)), layers, where="mid", color="#57606a", linestyle=":", label="dense")
    for target, point in best(points, GATES).items():
        right.step(range(len(layers)), point.widths, where="mid", label=f"{target:g} of FLOPs")
    right.set(xlabel="convolution", ylabel="channels that the gates keep", ylim=(0, None))
    right.legend()
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)


def parse(argv: Sequence[str] | None) -> Namespace:
    parser = command.Parser(
        __file__,
        __doc__,
        seed="of the split, the weights and the batches",
        quick={"epochs": 3, "width": 8, "targets": [0.5]},
    )
    add = parser.add_argument
    add("--data", type=Path, metavar="DIR", help="folder of CIFAR-10's binary or MNIST's idx files")
    add("--targets", type=float, nargs="+", metavar="SHARE", default=[0.75, 0.5, 0.25, 0.1], help="of the FLOPs")
    add("--epochs", type=int, default=18, help="of the dense training, and again after it")
    add("--blocks", type=int, default=1, help="in each of three stages: 6 * blocks + 2 layers")
    add("--width", type=int, default=16, help="channels of the first stage; the others have two and four times as many")
    add("--batch", type=int, default=64, help="images in a step")
    add("--lr", type=float, default=3e-3, help="learning rate of Adam; a third of it after the dense training")
    options = parser.options(argv)
    if min(options.epochs, options.blocks, options.width) < 1 or options.batch < 2 or not 0 < options.lr < math.inf:
        parser.error("--epochs, --blocks, --width and --lr must be positive, and --batch at least 2")
    if not all(0 < target <= 1 for target in options.targets):
        parser.error("--targets must be in (0, 1]")
    return options


def load(options: Namespace) -> tuple[Images, Images]:
    """To train on and to test on."""
    # of the few digits half, so that there are enough to tell the methods apart
    training, test = parts(load_images(options.data), options.seed, 0.5 if options.data is None else 0.8)
    if options.batch > len(training.numbers):
        raise OSError(f"--batch must be at most the {len(training.numbers)} images to train on, got {options.batch}")
    return training, test


def run(options: Namespace) -> Path:
    """Trains, prunes, prints the table, draws the picture."""
    training, test = load(options)
    torch.manual_seed(options.seed)
    dense = resnet(training.pixels.shape[1], options.blocks, options.width)
    gated = gates.attach(copy.deepcopy(dense), training.pixels[:1])
    for target in options.targets:  # refuses what cannot be had before anything is trained
        gates.project(gated, target, floors=FLOOR, apply=False)
    print(f"{len(training.numbers)} images to train on, {len(test.numbers)} to test on. Ctrl-C ends it early.\n")

    def task(name: str, rate: float) -> Task:
        def bar(epochs):
            return tqdm(epochs, desc=f"{name:32}", unit="epoch", dynamic_ncols=True, disable=None, leave=False)

        return Task(Batches(training, options.batch, options.seed), training.pixels[:1], options.epochs, rate, bar)

    first = task("dense", options.lr)
    train(dense, first.batches, options.epochs, options.lr, first.bar)
    full, reached = flops(dense, first.example), accuracy(dense, test)
    print(f"{'target':8}{'':32}{'accuracy %':>10}{'FLOPs':>9}{'share':>8}{'parameters':>12}{'seconds':>9}")
    print(f"{'':8}{'dense':32}{reached:>10.2f}{full:>9.3g}{1:>8.4f}{parameters(dense):>12}", flush=True)
    points: list[Point] = []
    with suppress(KeyboardInterrupt):
        for target in options.targets:
            for name, method in methods().items():
                begun = time.perf_counter()
                torch.manual_seed(options.seed)
                small = method(dense, target, task(f"{name} {target:g}", options.lr / 3))
                count = flops(small, first.example)
                points.append(Point(name, target, accuracy(small, test), count / full, widths(small)))
                print(f"{target:<8g}{name:32}{points[-1].accuracy:>10.2f}{count:>9.3g}{count / full:>8.4f}"
                      f"{parameters(small):>12}{time.perf_counter() - begun:>9.1f}", flush=True)  # fmt: skip
    if not points:
        raise KeyboardInterrupt
    if not torch_pruning_criteria():
        print("Torch-Pruning is not installed (pip install torch-pruning): left out.")
    print(f"\nChannels by convolution: {widths(dense)}")
    for target, point in best(points, GATES).items():
        print(f"{target:<8g}{GATES:16} {point.widths}")
    path = options.out / "prune_resnet.png"
    draw(points, reached, widths(dense), path)
    return path


def main(argv: Sequence[str] | None = None) -> int:
    options = parse(argv)
    torch.set_num_threads(1)  # as fast as two for tensors this small, and it does not suffer on a busy machine
    return command.run(__file__, run, options, ValueError)


if __name__ == "__main__":
    sys.exit(main())
