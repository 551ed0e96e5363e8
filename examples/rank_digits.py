"""Learns to read handwritten numbers from nothing but their order.

A small CNN gives a score to each of n images of numbers, which are composed from real handwritten digits. The scores
go through a relaxed sorting network; the cross-entropy of its permutation matrix with the true order of the set, the
only label there is, trains the CNN. The same CNN trained by regression, on the numbers themselves, is the comparison.
The task is that of Grover et al., arXiv 1903.08850, the loss that of Petersen et al., arXiv 2105.04019.
"""

from __future__ import annotations

import math
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import command
import torch
from torch import Tensor, nn

import difflayers as dl

try:
    from digit_images import Images, load_digits, split
    from matplotlib.figure import Figure  # without pyplot: it draws with Agg and needs no display
    from tqdm import tqdm
except ImportError as error:
    sys.exit(f"rank_digits.py: {error}; run: pip install 'difflayers[examples]'")

Loss = Callable[[Tensor, Tensor], Tensor]  # of the scores and the numbers of some sets


def compose(digits: Images, sets: int, n: int, places: int, seed: int) -> Iterator[Images]:
    """Endless batches of random sets of n numbers, each of `places` random digits side by side."""
    generator, powers = torch.Generator().manual_seed(seed), 10 ** torch.arange(places - 1, -1, -1)
    while True:
        chosen = torch.randint(len(digits.numbers), (sets, n, places), generator=generator)
        yield Images(digits.pixels[chosen].movedim(2, 3).flatten(3), (digits.numbers[chosen] * powers).sum(-1))


class Scorer(nn.Module):
    """The same small CNN for every image, one score for each: [sets, n, height, width] -> [sets, n]."""

    def __init__(self, height: int, width: int, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        stride = max(1, height // 8)  # 1 for 8x8 digits, 3 for MNIST: after this layer they are of about one size
        self.features = nn.Sequential(
            nn.Conv2d(1, 16, 2 * stride + 1, stride, padding=stride), nn.MaxPool2d(2), nn.ReLU(),
            nn.Conv2d(16, 32, 3, padding=1), nn.MaxPool2d(2), nn.ReLU(),
            nn.Conv2d(32, 64, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(),
        ).to(memory_format=torch.channels_last)  # fmt: skip # twice as fast on a CPU
        size = self.features(torch.zeros(1, 1, height, width)).shape[1]
        self.score = nn.Sequential(nn.Dropout(0.2), nn.Linear(size, 128), nn.ReLU(), nn.Linear(128, 1))

    def forward(self, pixels: Tensor) -> Tensor:
        return self.score(self.features(pixels.flatten(0, 1).unsqueeze(1))).view(pixels.shape[:2])


def losses(options: Namespace) -> tuple[Loss, Loss]:
    """The loss under the sorting network, to which only the order of the numbers is given, and that of regression."""
    kind = dl.losses.SpearmanLoss if options.hard else dl.losses.PermutationCrossEntropy
    loss = kind(network=options.network, swap=options.swap, steepness=options.steepness, hard=options.hard)
    mean, deviation = (10**options.digits - 1) / 2, 10**options.digits / math.sqrt(12)

    def order_loss(scores: Tensor, numbers: Tensor) -> Tensor:
        order = numbers.argsort(-1)
        # Spearman's takes ranks; the cross-entropy would be flat wherever an exact permutation matrix is wrong
        return loss(scores, order.argsort(-1) if options.hard else order)

    return order_loss, lambda scores, numbers: nn.functional.mse_loss(scores, (numbers - mean) / deviation)


def train(scorer: Scorer, loss: Loss, sets: Iterator[Images], check: Images, steps: int, lr: float, name: str) -> int:
    """Minimises the loss; returns the number of steps done, fewer after Ctrl-C: a network half trained is still one."""
    optimiser = torch.optim.AdamW(scorer.parameters(), lr, betas=(0.9, 0.99))
    total = steps + 10  # the schedule divides by zero when the tenth of it that is its warm-up has one step
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, lr, total_steps=total, pct_start=0.1)
    done = 0
    with tqdm(total=steps, desc=name, dynamic_ncols=True, disable=None) as progress, suppress(KeyboardInterrupt):
        while done < steps:
            scorer.train()
            batch = next(sets)
            optimiser.zero_grad()
            loss(scorer(batch.pixels), batch.numbers).backward()
            optimiser.step()
            schedule.step()
            done += 1
            progress.update()
            if done % 100 == 0:
                progress.set_postfix_str(f"validation EM {evaluate(scorer, check)[0]:.0f} %")
    return done


@torch.no_grad()
def predict(scorer: Scorer, pixels: Tensor) -> Tensor:
    """The scores of held-out sets, a hundred at a time."""
    scorer.eval()
    return torch.cat([scorer(some) for some in pixels.split(100)])


def evaluate(scorer: Scorer, sets: Images) -> tuple[float, float]:
    """EM, the percentage of sets with all ranks right, and EW, that of single ranks; equal numbers may swap."""
    right = sets.numbers.gather(-1, predict(scorer, sets.pixels).argsort(-1)) == sets.numbers.sort(-1).values
    return 100 * right.all(-1).float().mean().item(), 100 * right.float().mean().item()


def draw_picture(scorer: Scorer, sets: Images, places: int, path: Path) -> None:
    """The first few sets in their predicted order, and the score of every image over its number."""
    scores, (rows, n) = predict(scorer, sets.pixels), sets.numbers[:6].shape
    figure = Figure(figsize=(0.5 * places * n + 5, 0.6 + 0.8 * max(rows, 4)), layout="constrained")
    figure.suptitle("Unseen numbers, smallest to largest for a network that was only ever told orders", fontsize=13)
    left, right = figure.subfigures(1, 2, width_ratios=[0.5 * places * n, 5])
    for row, cells in enumerate(left.subplots(rows, n, squeeze=False)):
        numbers = sets.numbers[row]
        for cell, image, expected in zip(cells, scores[row].argsort(), numbers.sort().values, strict=True):
            colour = "#1a7f37" if numbers[image] == expected else "#cf222e"
            cell.imshow(sets.pixels[row, image], cmap="gray_r", vmin=0, vmax=1)
            cell.set(xticks=[], yticks=[])
            cell.set_xlabel(f"{numbers[image]:0{places}d}", color=colour, fontsize=11, weight="bold", labelpad=3)
            cell.spines[:].set(color=colour, linewidth=1.8)
    axes = right.subplots()
    axes.scatter(sets.numbers.flatten(), scores.flatten(), s=4, alpha=0.35, color="#0969da", linewidths=0)
    axes.set(xlabel="number in the image (never told)", ylabel="learned score")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)


def parse(argv: Sequence[str] | None) -> Namespace:
    parser = command.Parser(
        __file__, __doc__, seed="of the split, the sets and the initial weights", quick={"steps": 40, "batch": 16}
    )
    add = parser.add_argument
    add("--data", type=Path, metavar="DIR", help="folder of MNIST idx files to use in place of scikit-learn's digits")
    add("--n", type=int, default=5, help="numbers in a set")
    add("--digits", type=int, choices=range(1, 10), metavar="1..9", default=4, help="digits in a number")
    add("--network", choices=list(dl.sorting.NETWORKS), default="odd_even_merge", help="sorting network")
    add("--swap", choices=list(dl.swaps.SWAPS), default="cauchy", help="sigmoid of the conditional swap")
    add("--steepness", type=float, default=30.0, help="of the swap; larger is harder")
    add("--hard", action="store_true", help="error-free swaps and Spearman's correlation in place of cross-entropy")
    add("--steps", type=int, default=2000, help="training steps of each network")
    add("--batch", type=int, default=32, help="sets in a step")
    add("--lr", type=float, default=6e-3, help="peak learning rate")
    add("--regression-lr", type=float, default=2e-2, help="that of the regression, which is best at a higher one")
    options = parser.options(argv)
    positive = (options.steps, options.batch, options.steepness, options.lr, options.regression_lr)
    if options.n < 2 or not all(0 < value < math.inf for value in positive):
        parser.error("--n must be at least 2, the other numbers positive and finite")
    return options


def run(options: Namespace) -> Path:
    """Trains, prints the table, draws the picture."""
    n, places, seed = options.n, options.digits, options.seed
    digits = split(load_digits(options.data), seed)
    check, test = (next(compose(digits[i], (0, 200, 1000)[i], n, places, seed)) for i in (1, 2))
    print(f"Two trainings of {options.steps} steps of {options.batch} sets of {n} numbers; Ctrl-C ends them early.\n")
    order_loss, regression_loss = losses(options)
    rows = [("untrained", "nothing", 0, Scorer(*test.pixels.shape[2:], seed))]
    for name, source, loss, rate in (
        ("difflayers", "the order of each set", order_loss, options.lr),
        ("regression", "the number in each image", regression_loss, options.regression_lr),
    ):
        scorer = Scorer(*test.pixels.shape[2:], seed)  # both start from the same weights and see the same sets
        sets = compose(digits[0], options.batch, n, places, seed)
        rows.append((name, source, train(scorer, loss, sets, check, options.steps, rate, name), scorer))
        if rows[-1][2] < options.steps:
            break
    print(f"\n{'':12}{'learned from':26}{'steps':>6}{'EM %':>8}{'EW %':>8}")
    for name, source, steps, scorer in rows:
        print("{:12}{:26}{:6}{:8.1f}{:8.1f}".format(name, source, steps, *evaluate(scorer, test)))
    print(f"\nEM: sets with all {n} ranks right, EW: right ranks. Chance {100 / math.factorial(n):.1f}, {100 / n:.1f}.")
    print("Test images are unseen in training. Regression has stronger labels: the numbers, not only their order.")
    draw_picture(rows[1][3], test, places, options.out / "rank_digits.png")
    return options.out / "rank_digits.png"


def main(argv: Sequence[str] | None = None) -> int:
    options = parse(argv)
    torch.set_num_threads(1)  # as fast as two for tensors this small, and it does not suffer on a busy machine
    return command.run(__file__, run, options)


if __name__ == "__main__":
    sys.exit(main())
