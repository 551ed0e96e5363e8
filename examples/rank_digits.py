"""Learns to read handwritten numbers from nothing but their order.

A sample is a set of n images of multi-digit numbers, composed from real handwritten digits. One small CNN gives every
image a score. Its only labels are orders: which image of a set is the smallest, the second smallest, and so on. The
scores of a set go through a relaxed sorting network, and the cross-entropy of its permutation matrix with the true
order trains the CNN. The same CNN trained by regression, on the numbers themselves, is the comparison.

The task is that of Grover et al., arXiv 1903.08850; the loss that of Petersen et al., arXiv 2105.04019.
"""

from __future__ import annotations

import argparse
import gzip
import importlib.util
import math
import sys
import time
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

import difflayers as dl


class DataError(Exception):
    """A file of --data is missing or is not what it should be."""


class Digits(NamedTuple):
    """Images of single digits, [N, height, width] in [0, 1], and their labels, [N] in 0..9."""

    images: Tensor
    labels: Tensor


class Sets(NamedTuple):
    """Images of numbers, [sets, n, height, places * width], and the numbers, int64 [sets, n]."""

    images: Tensor
    values: Tensor


def read_idx(path: Path, dimensions: int) -> np.ndarray:
    """The array of bytes in an idx file, plain or gzipped: magic number, sizes (big-endian), bytes."""
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
            content = file.read()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read: {error}") from None
    header, magic = 4 + 4 * dimensions, bytes([0, 0, 8, dimensions])  # 8 = unsigned bytes
    if content[:4] != magic:
        raise DataError(f"{path} has the magic number {content[:4].hex() or 'of an empty file'}, not {magic.hex()}")
    shape = [int.from_bytes(content[at : at + 4], "big") for at in range(4, header, 4)]
    if len(content) != header + math.prod(shape):
        raise DataError(f"{path} has {len(content)} bytes, not the {header + math.prod(shape)} of its sizes {shape}")
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


def load_images(folder: Path | None) -> Digits:
    """MNIST from a folder (the train files where there are any, else t10k), or scikit-learn's 8x8 digits."""
    if folder is None:
        from sklearn.datasets import load_digits

        digits = load_digits()
        return Digits(torch.from_numpy(digits.images).float() / 16, torch.from_numpy(digits.target).long())

    def find(name: str) -> Path:
        for path in (folder / name, folder / f"{name}.gz"):
            if path.is_file():
                return path
        raise DataError(f"{folder / name} is missing, and so is {name}.gz")

    part = "train" if any(folder.glob("train-images-idx3-ubyte*")) else "t10k"
    images = read_idx(find(f"{part}-images-idx3-ubyte"), 3)
    labels = read_idx(find(f"{part}-labels-idx1-ubyte"), 1)
    if len(images) != len(labels) or len(images) < 100 or min(images.shape[1:]) < 8 or labels.max() > 9:
        raise DataError(f"{folder} holds {len(images)} images of {images.shape[1:]} and {len(labels)} labels; "
                        f"wanted are at least 100 of at least 8 x 8 with as many labels from 0 to 9")  # fmt: skip
    return Digits(torch.from_numpy(images.astype(np.float32)) / 255, torch.from_numpy(labels.astype(np.int64)))


def split(digits: Digits, seed: int) -> list[Digits]:
    """Train, validation and test digits, 8 : 1 : 1, disjoint: held-out numbers consist of unseen images only."""
    order = torch.randperm(len(digits.labels), generator=torch.Generator().manual_seed(seed))
    parts = order.tensor_split((len(order) * 8 // 10, len(order) * 9 // 10))
    return [Digits(digits.images[part], digits.labels[part]) for part in parts]


def compose(digits: Digits, sets: int, n: int, places: int, generator: torch.Generator) -> Sets:
    """Random sets of n numbers, each of `places` random digits side by side."""
    chosen = torch.randint(len(digits.labels), (sets, n, places), generator=generator)
    images = digits.images[chosen].movedim(2, 3).flatten(3)  # [sets, n, height, places * width]
    return Sets(images, (digits.labels[chosen] * 10 ** torch.arange(places - 1, -1, -1)).sum(-1))


class Scorer(nn.Module):
    """The same small CNN for every image, one score for each: [sets, n, height, width] -> [sets, n]."""

    def __init__(self, height: int, width: int, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        stride = max(1, height // 8)  # 1 for 8x8 digits, 3 for MNIST: from there on both are of one size
        self.features = nn.Sequential(
            nn.Conv2d(1, 16, 2 * stride + 1, stride, padding=stride), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(),
        )  # fmt: skip
        size = self.features(torch.zeros(1, 1, height, width)).shape[1]
        self.score = nn.Sequential(nn.Dropout(0.2), nn.Linear(size, 128), nn.ReLU(), nn.Linear(128, 1))

    def forward(self, images: Tensor) -> Tensor:
        return self.score(self.features(images.flatten(0, 1).unsqueeze(1))).view(images.shape[:2])


def train(
    scorer: Scorer,
    loss: Callable[[Tensor, Tensor], Tensor],
    labels: Callable[[Tensor], Tensor],
    draw: Callable[[], Sets],
    steps: int,
    learning_rate: float,
    held_out: Sets,
    title: str,
) -> int:
    """Minimises loss(scores, labels(values)) over freshly drawn sets; returns the steps done before any Ctrl-C."""
    from tqdm import tqdm

    optimiser = torch.optim.AdamW(scorer.parameters(), learning_rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, learning_rate, total_steps=steps, pct_start=0.1)
    done = 0
    with tqdm(total=steps, desc=title, unit="step", dynamic_ncols=True, disable=None) as progress:
        try:
            while done < steps:
                sets = draw()
                value = loss(scorer(sets.images), labels(sets.values))
                optimiser.zero_grad()
                value.backward()
                optimiser.step()
                schedule.step()
                done += 1
                progress.update()
                if done % 100 == 0:
                    exact, _ = evaluate(scorer, held_out)
                    progress.set_postfix_str(f"loss {value.item():.3f}, validation EM {exact:.0f} %")
        except KeyboardInterrupt:
            progress.set_postfix_str("stopped")
    return done


def predict(scorer: Scorer, images: Tensor) -> Tensor:
    """The scores of held-out images, a hundred sets at a time."""
    training = scorer.training
    scorer.eval()
    with torch.no_grad():
        scores = torch.cat([scorer(chunk) for chunk in images.split(100)])
    scorer.train(training)
    return scores


def evaluate(scorer: Scorer, sets: Sets) -> tuple[float, float]:
    """EM, the percentage of sets with every rank right, and EW, that of ranks that are right.

    A position is right when its image shows the number that belongs there, so that equal numbers may change places.
    """
    order = predict(scorer, sets.images).argsort(-1)
    right = sets.values.gather(-1, order) == sets.values.sort(-1).values
    return 100 * right.all(-1).float().mean().item(), 100 * right.float().mean().item()


def draw_picture(scorer: Scorer, sets: Sets, path: Path, title: str) -> None:
    """The first test sets in their predicted order, and the score of every test image over its number."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    scores, n = predict(scorer, sets.images), sets.values.shape[1]
    rows = min(6, len(scores))
    aspect = sets.images.shape[3] / sets.images.shape[2]
    width, height = 0.55 * aspect * n, 1.02 * rows
    figure = plt.figure(figsize=(width + 5, height + 1), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=[width, 5])
    figure.suptitle(title, fontsize=13)
    cells = left.subplots(rows, n, squeeze=False)
    left.supxlabel("predicted order: smallest  →  largest", fontsize=10)
    for row in range(rows):
        correct = sets.values[row].sort().values
        for place, image in enumerate(scores[row].argsort().tolist()):
            value = sets.values[row, image]
            colour = "#1a7f37" if value == correct[place] else "#cf222e"
            cell = cells[row, place]
            cell.imshow(sets.images[row, image], cmap="gray_r", vmin=0, vmax=1)
            cell.set(xticks=[], yticks=[])
            cell.set_xlabel(str(value.item()), color=colour, fontsize=11, fontweight="bold", labelpad=3)
            for spine in cell.spines.values():
                spine.set(color=colour, linewidth=1.8)
    axes = right.subplots()
    axes.scatter(sets.values.flatten(), scores.flatten(), s=4, alpha=0.35, color="#0969da", linewidths=0)
    axes.set(xlabel="the number in the image (never told)", ylabel="learned score")
    axes.set_title(f"{scores.numel()} unseen images", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def at_least(minimum: int) -> Callable[[str], int]:
    """An argparse type: an integer that is not below minimum."""

    def integer(text: str) -> int:
        if int(text) < minimum:
            raise argparse.ArgumentTypeError(f"must be at least {minimum}, got {text}")
        return int(text)

    return integer


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    shown = argparse.ArgumentDefaultsHelpFormatter
    parser = argparse.ArgumentParser("rank_digits.py", description=__doc__.split("\n")[0], formatter_class=shown)
    add = parser.add_argument
    add("--data", type=Path, metavar="DIR", help="folder of MNIST idx files to use in place of 8x8 digits")
    add("--out", type=Path, default=Path("out"), metavar="DIR", help="folder for the picture")
    add("--n", type=at_least(2), default=5, help="numbers in a set")
    add("--digits", type=at_least(1), default=4, help="digits in a number")
    add("--network", choices=list(dl.sorting.NETWORKS), default="odd_even_merge", help="sorting network")
    add("--swap", choices=list(dl.swaps.SWAPS), default="cauchy", help="sigmoid of the conditional swap")
    add("--steepness", type=float, default=10.0, help="of the swap; larger is harder")
    add("--hard", action="store_true", help="error-free swaps, on exact ranks; trained with Spearman's correlation, "
        "because the cross-entropy of an exact permutation matrix is flat at its wrong entries")  # fmt: skip
    add("--steps", type=at_least(1), default=1200, help="training steps of each network")
    add("--batch", type=at_least(1), default=32, help="sets in a step")
    add("--lr", type=float, default=6e-3, help="peak learning rate, of both networks")
    add("--sets", type=at_least(1), default=1000, help="test sets")
    add("--seed", type=int, default=0, help="of the split, the sets and the initial weights")
    add("--quick", action="store_true", help="a few seconds: --steps 40 --batch 16 --sets 100 where not given")
    if parser.parse_args(argv).quick:
        parser.set_defaults(steps=40, batch=16, sets=100)
    return parser.parse_args(argv)


def run(options: argparse.Namespace) -> None:
    started = time.perf_counter()
    n, places, seed = options.n, options.digits, options.seed
    settings = {"network": options.network, "swap": options.swap, "steepness": options.steepness}
    if options.hard:
        order_loss = dl.losses.SpearmanLoss(hard=True, **settings)
    else:
        order_loss = dl.losses.PermutationCrossEntropy(**settings)

    def order_labels(values: Tensor) -> Tensor:
        order = values.argsort(dim=-1, stable=True)
        return order.argsort(-1) if options.hard else order  # ranks, or who belongs at each position

    def standardised(values: Tensor) -> Tensor:
        return (values - (10**places - 1) / 2) / (10**places / math.sqrt(12))

    digits = load_images(options.data)
    parts = split(digits, seed)
    height, width = digits.images.shape[1], digits.images.shape[2] * places
    validation, test = (
        compose(part, sets, n, places, torch.Generator().manual_seed(seed))
        for part, sets in zip(parts[1:], (200, options.sets), strict=True)
    )
    print(f"Sets of {n} numbers of {places} digits, {height}x{width} pixels, from {len(parts[0].labels)} digit images. "
          f"Two trainings of\n{options.steps} steps of {options.batch} sets each. Ctrl-C ends the training and goes "
          f"on to the table.\n", flush=True)  # fmt: skip

    def trained(title: str, loss: nn.Module, labels: Callable[[Tensor], Tensor]) -> tuple[Scorer, int]:
        scorer = Scorer(height, width, seed)  # the same initial weights and the same sets for both
        generator = torch.Generator().manual_seed(seed + 1)
        done = train(scorer, loss, labels, lambda: compose(parts[0], options.batch, n, places, generator),
                     options.steps, options.lr, validation, title)  # fmt: skip
        return scorer, done

    ours, done = trained("order", order_loss, order_labels)
    rows = [("untrained", "nothing", 0, *evaluate(Scorer(height, width, seed), test))]
    rows.append(("difflayers", "the order of each set", done, *evaluate(ours, test)))
    if done == options.steps:
        regression, done = trained("regression", nn.MSELoss(), standardised)
        rows.insert(1, ("regression", "the number in each image", done, *evaluate(regression, test)))
    print(f"\n{'':12}{'learned from':26}{'steps':>6}{'EM %':>8}{'EW %':>8}")
    for name, source, steps, exact, single in rows:
        print(f"{name:12}{source:26}{steps:6}{exact:8.1f}{single:8.1f}")
    print(f"\nEM: sets with all {n} ranks right; EW: ranks that are right (chance: {100 / math.factorial(n):.1f} and "
          f"{100 / n:.1f}). {len(test.values)} sets of numbers\nfrom {len(parts[2].labels)} digit images unseen in "
          f"training. Regression has the stronger labels: the numbers themselves.")  # fmt: skip
    path = options.out / "rank_digits.png"
    draw_picture(ours, test, path, f"Numbers sorted by a network that was only ever told the order: "
                 f"EM {rows[-1][3]:.0f} %, EW {rows[-1][4]:.0f} %")  # fmt: skip
    print(f"\nWrote {path} ({time.perf_counter() - started:.0f} s).")


def main(argv: Sequence[str] | None = None) -> int:
    options = parse(argv)
    missing = [name for name in ("sklearn", "matplotlib", "tqdm") if importlib.util.find_spec(name) is None]
    try:
        if missing:
            raise DataError(f"{', '.join(missing)} cannot be imported; run: pip install 'difflayers[examples]'")
        run(options)
    except (DataError, ValueError) as error:
        print(f"rank_digits.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
