"""Accuracy of a small ResNet on scikit-learn's digits at exact shares of its FLOPs: trainable gates, L1 magnitude by
the same surgery, and Torch-Pruning (where it is installed) with five criteria. The same dense network, FLOPs counted
by torch, and epochs of training after it for all. Run: python tests/benchmarks/bench_pruning.py [--out FILE]"""

from __future__ import annotations

import re
import statistics
import sys
import textwrap
from argparse import ArgumentDefaultsHelpFormatter, ArgumentParser
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

sys.path.append(str(Path(__file__).parents[2] / "examples"))

from cifar_images import Batches, Images, load_images, parts  # pyright: ignore[reportMissingImports]
from pruning_methods import (  # pyright: ignore[reportMissingImports]
    Task,
    accuracy,
    by_gates,
    by_l1,
    by_torch_pruning,
    flops,
    resnet,
    torch_pruning_criteria,
    train,
    widths,
)

OURS, L1, PEER = "trainable gates", "L1 magnitude", "Torch-Pruning"
TARGETS = (0.25, 0.1, 0.5, 0.75)  # what was asked for first comes first
SEEDS = (0, 1, 2, 3, 4)
EPOCHS = 18
MARKER = "<!-- bench_pruning.py -->"
LINE = re.compile(r"(\d+) +([\d.]+) (.+?) +([\d.]+) % ([\d.]+) ([\d.]+) \[([\d, ]+)\]")

PROTOCOL = """
Printed by `python tests/benchmarks/bench_pruning.py`. scikit-learn's digits (half of the 1797 images to train on, half
to test on, another split for each seed), a ResNet of 8 layers (77,754 parameters), batches of 64, {epochs} epochs of
Adam along a cosine for the dense network and again for every method; seeds {seeds}, mean ± standard deviation. FLOPs
are counted by `torch.utils.flop_counter` in the network that came out. Trainable gates are `gates.fit` with its
defaults, which were chosen on this task with the seeds 100 to 106. Ours and L1 leave every layer an eighth of its
channels, and Torch-Pruning is asked to (`max_pruning_ratio`). It takes ratios of channels, no budgets: it is asked for
a little more until the FLOPs are not above the target, and ends further below it where its steps are coarse. Its
criteria have its own defaults, and its best is the one that is best on the test images.
"""


class Row(NamedTuple):
    """One pruned network, or (method "dense") the one that it comes from.

    Attributes:
        loss: cross-entropy on the test images; on saturated accuracies it tells more.
        narrowest: channels of the convolution that kept the smallest share of them, and that share.
    """

    seed: int
    target: float
    method: str
    accuracy: float
    loss: float
    share: float
    narrowest: tuple[int, float]


def methods() -> dict[str, Callable[[nn.Module, float, Task], nn.Module]]:
    """By the name that is shown."""
    found: dict[str, Callable[[nn.Module, float, Task], nn.Module]] = {OURS: by_gates, L1: by_l1}
    for criterion in torch_pruning_criteria():
        found[f"{PEER}: {criterion}"] = lambda dense, target, task, criterion=criterion: by_torch_pruning(
            dense, target, task, criterion
        )
    return found


class Start(NamedTuple):
    """A dense network and its images; the seed is that of the split, the weights and the batches."""

    seed: int
    dense: nn.Module
    task: Task
    training: Images
    test: Images

    def row(self, target: float, method: str, model: nn.Module) -> Row:
        """A network's figures, on standard error too."""
        pairs = zip(widths(model), widths(self.dense), strict=True)
        kept, of = min(pairs, key=lambda pair: pair[0] / pair[1])
        share = flops(model, self.task.example) / flops(self.dense, self.task.example)
        figures = accuracy(model, self.test), loss(model, self.test), share
        shown = f"{figures[0]:6.2f} % {figures[1]:.4f} {share:.4f} {widths(model)}"
        print(f"{self.seed} {target:4g} {method:32} {shown}", file=sys.stderr, flush=True)
        return Row(self.seed, target, method, *figures, (kept, kept / of))

    def measure(self, target: float) -> list[Row]:
        """All methods at one target."""
        rows = []
        for name, method in methods().items():
            torch.manual_seed(self.seed)
            # every method gets the batches in the same order
            task = self.task._replace(batches=Batches(self.training, 64, self.seed))
            rows.append(self.row(target, name, method(self.dense, target, task)))
        return rows


def start(seed: int, epochs: int) -> Start:
    """Trains the dense network."""
    training, test = parts(load_images(None), seed, 0.5)
    torch.manual_seed(seed)
    dense = resnet(1, 1, 16)
    task = Task(Batches(training, 64, seed), training.pixels[:1], epochs, 1e-3, lambda numbers: numbers)
    train(dense, task.batches, epochs, 3e-3, task.bar)
    return Start(seed, dense, task, training, test)


@torch.no_grad()
def loss(model: nn.Module, images: Images) -> float:
    """Cross-entropy, in evaluation mode."""
    model.eval()
    return float(F.cross_entropy(model(images.pixels), images.numbers))


def spread(values: Sequence[float], digits: int) -> str:
    """Mean and standard deviation."""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.{digits}f} ± {deviation:.{digits}f}"


def verdict(rows: Sequence[Row], target: float) -> str:
    """What the bars ask for, at one target."""
    of = {name: [row for row in rows if row.method == name and row.target in (target, 1.0)] for name in {
        row.method for row in rows}}  # fmt: skip
    ours, dense = (statistics.mean(row.accuracy for row in of[name]) for name in (OURS, "dense"))
    line = f"At {target:g}: ours {ours - dense:+.2f} points against the dense network"
    peers = {name: statistics.mean(row.accuracy for row in of[name]) for name in of if name.startswith(PEER)}
    if peers:
        best = max(peers, key=lambda name: peers[name])
        line += f", {ours - peers[best]:+.2f} against Torch-Pruning's best ({best.removeprefix(f'{PEER}: ')})"
    below = sorted(100 * (1 - row.share / target) for row in of[OURS])
    few = 100 * min(row.narrowest[1] for row in of[OURS])
    return (
        f"{line}; FLOPs {below[0]:.2f} to {below[-1]:.2f} % below the target; every layer keeps at least "
        f"{few:.0f} % of its channels."
    )


def wrapped(text: str, indent: str = "") -> list[str]:
    """Lines of the page's width."""
    return textwrap.wrap(text, 120, subsequent_indent=indent, break_on_hyphens=False)


def section(rows: Sequence[Row], epochs: int) -> str:
    """The page's part, as markdown."""
    seeds = sorted({row.seed for row in rows})
    dense = [row for row in rows if row.method == "dense"]
    lines = [
        "## Accuracy at a share of the FLOPs",
        "",
        *wrapped(PROTOCOL.strip().format(epochs=epochs, seeds=", ".join(map(str, seeds)))),
        "",
        f"The dense network: {spread([row.accuracy for row in dense], 2)} %, loss "
        f"{spread([row.loss for row in dense], 4)}.",
        "",
        "| target | method | accuracy, % | loss | share of FLOPs | narrowest layer |",
        "|---|---|---|---|---|---|",
    ]
    targets = sorted({row.target for row in rows} - {1.0}, reverse=True)
    for target in targets:
        here = [row for row in rows if row.target == target]
        for name in dict.fromkeys(row.method for row in here):
            mine = [row for row in here if row.method == name]
            shares = [row.share for row in mine]
            few = min((row.narrowest for row in mine), key=lambda pair: pair[1])
            lines.append(
                f"| {target:g} | {name} | {spread([row.accuracy for row in mine], 2)} | "
                f"{spread([row.loss for row in mine], 4)} | {min(shares):.4f} to {max(shares):.4f} | "
                f"{few[0]} channels, {100 * few[1]:.0f} % |"
            )
    lines.append("")
    for target in targets:
        lines += wrapped(f"- {verdict(rows, target)}", "  ")
    lines.append("")
    lines.append(f"torch {torch.__version__}, one thread.")
    return "\n".join(lines)


def compare(
    seeds: Sequence[int] = SEEDS, targets: Sequence[float] = TARGETS, epochs: int = EPOCHS, out: Path | None = None
) -> str:
    """Measures, and returns the section; where there is a page, it is put there after each target."""
    starts = [start(seed, epochs) for seed in seeds]
    rows = [each.row(1.0, "dense", each.dense) for each in starts]
    text = ""
    with suppress(KeyboardInterrupt):  # ends with the targets that are done
        for target in targets:
            rows += [row for each in starts for row in each.measure(target)]
            text = section(rows, epochs)
            if out is not None:
                write(text, out)
    return text


def main(argv: Sequence[str] | None = None) -> None:
    """Prints the section; with --out also puts it into a page, in place of the one that is there."""
    parser = ArgumentParser("bench_pruning.py", description=__doc__, formatter_class=ArgumentDefaultsHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS), help="one run each")
    parser.add_argument("--targets", type=float, nargs="+", default=list(TARGETS), help="shares of the FLOPs")
    parser.add_argument("--epochs", type=int, default=EPOCHS, help="of the dense training, and again after it")
    parser.add_argument("--out", type=Path, help="the page, as docs/benchmarks-gates.md")
    parser.add_argument("--log", type=Path, help="what a run has written to standard error: measures nothing anew")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    if options.log is None:
        print(compare(options.seeds, options.targets, options.epochs, options.out))
        return
    text = section(read(options.log), options.epochs)
    print(text)
    if options.out is not None:
        write(text, options.out)


def read(path: Path) -> list[Row]:
    """The rows of a run from its log; targets that not all seeds and methods have reached are left out."""
    rows: list[Row] = []
    before: dict[str, list[int]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        found = LINE.fullmatch(line)
        if found is None:
            continue
        seed, target, method, reached, lost, left, kept = found.groups()
        channels = [int(width) for width in kept.split(", ")]
        before.setdefault(seed, channels)  # the dense network comes first
        share, narrowest = min((a / b, a) for a, b in zip(channels, before[seed], strict=True))
        figures = float(reached), float(lost), float(left)
        rows.append(Row(int(seed), float(target), method, *figures, (narrowest, share)))
    counts = Counter(row.target for row in rows if row.target != 1)
    return [row for row in rows if row.target == 1 or counts[row.target] == max(counts.values())]


def write(text: str, path: Path) -> None:
    """Puts the section into a page, in place of the one that is there."""
    page = path.read_text(encoding="utf-8") if path.is_file() else ""
    before, *rest = page.split(MARKER)
    after = rest[1] if len(rest) > 1 else "\n"
    path.write_text(f"{before.rstrip()}\n\n{MARKER}\n\n{text}\n\n{MARKER}{after}".lstrip(), encoding="utf-8")


if __name__ == "__main__":
    main()
