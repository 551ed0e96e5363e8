"""Error-free swaps: does the exact forward pass help, and how much of the gain is the network that gives the scores?

The comparison of Kim et al. (arXiv 2310.07174) on sets of 15 four-digit numbers: their swap, their optimal sigmoid and
their two kinds of network, one that looks at each image alone (CNN), and one in which a Transformer compares the
images of a set. Three losses for each:

- relaxed: cross-entropy of the relaxed permutation matrix;
- relaxed + error-free: besides that, the squared error between the images put into order by the exact sort, with the
  gradient of the relaxed one, and those in the true order: the loss of the paper's code;
- error-free ranks: Spearman's correlation of the exact ranks with the true ones, which needs no relaxed forward pass.

Data, budget and rule for the softness as in sort_numbers.py, at n = 15 and for each of the two networks.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Callable, Sequence

import sort_numbers
import torch
from base import Claim, Row, Store, load, main, markdown, pairs, parse, parser, shown, values, verdict
from digit_images import Images, load_digits, split
from rank_digits import Scorer, compose, evaluate
from sort_numbers import DIGITS, IMAGES
from torch import Tensor, nn
from tqdm import tqdm

import difflayers as dl

EXPERIMENT = "error_free_swaps"
STEEPNESS = (3.0, 10.0, 30.0)
LOSSES = ("relaxed", "relaxed + error-free", "error-free ranks")
RATES = {"CNN": 6e-3, "Transformer": 3e-3}


class SetScorer(nn.Module):
    """The images' features from the same CNN, compared by a Transformer without positions."""

    def __init__(self, height: int, width: int, seed: int) -> None:
        super().__init__()
        images = Scorer(height, width, seed)
        size = images.features(torch.zeros(1, 1, height, width)).shape[1]
        self.features = images.features
        self.compare = dl.sorting.EquivariantScorer(size, width=32, heads=4, layers=3)

    def forward(self, pixels: Tensor) -> Tensor:
        features = self.features(pixels.flatten(0, 1).unsqueeze(1))
        return self.compare(features.view(*pixels.shape[:2], -1))


NETWORKS: dict[str, Callable[[int, int, int], nn.Module]] = {"CNN": Scorer, "Transformer": SetScorer}


def objective(name: str, steepness: float, scores: Tensor, batch: Images) -> Tensor:
    """The loss of this name."""
    same = {"network": "odd_even", "swap": "optimal", "steepness": steepness}
    order = batch.numbers.argsort(-1)
    if name == "error-free ranks":
        return dl.losses.SpearmanLoss(**same, hard=True)(scores, order.argsort(-1))
    loss = dl.losses.PermutationCrossEntropy(**same)(scores, order)
    if name == "relaxed":
        return loss
    images = batch.pixels.flatten(2)
    true = images.take_along_dim(order.unsqueeze(-1), 1)
    return loss + (dl.sort_by(scores, images, **same, hard=True) - true).square().mean()


class Experiment:
    """The digits and the rows."""

    def __init__(self, options: Namespace) -> None:
        self.options = options
        self.parts = split(load_digits(options.data), 0)
        settings = {"data": str(options.data and options.data.name), "digits": [len(p.numbers) for p in self.parts],
                    "steps": options.steps, "images a step": IMAGES, "test sets": options.test_sets, "n": options.n,
                    "steepness": STEEPNESS, "rates": RATES}  # fmt: skip
        self.store = Store(options, EXPERIMENT, settings)

    def trained(self, network: str, loss: str, steepness: float, steps: int, seed: int) -> nn.Module:
        """A network after training."""
        height, width = self.parts[0].pixels.shape[1:]
        scorer = NETWORKS[network](height, DIGITS * width, seed)
        rate = RATES[network]
        optimiser = torch.optim.AdamW(scorer.parameters(), rate, betas=(0.9, 0.99))
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=steps + 10, pct_start=0.1)
        n = self.options.n
        sets = compose(self.parts[0], max(1, IMAGES // n), n, DIGITS, seed)
        scorer.train()
        label = f"{network}, {loss}, {steepness:g}"
        for _ in tqdm(range(steps), desc=label, dynamic_ncols=True, disable=None, leave=False):
            batch = next(sets)
            optimiser.zero_grad()
            objective(loss, steepness, scorer(batch.pixels), batch).backward()
            optimiser.step()
            schedule.step()
        return scorer

    def held_out(self, part: int) -> Images:
        """Sets of the validation (1) or the test (2) digits."""
        return next(compose(self.parts[part], self.options.test_sets, self.options.n, DIGITS, 1000))

    def choose(self, network: str) -> float:
        """The steepness for all losses of a network: the best for the relaxed one, on validation digits."""
        found = {}
        for steepness in STEEPNESS:

            def run(steepness: float = steepness) -> Row:
                scorer = self.trained(network, "relaxed", steepness, max(1, self.options.steps // 2), 0)
                return {"EW": evaluate(scorer, self.held_out(1))[1]}

            found[steepness] = self.store.row({"kind": "validation", "network": network, "steepness": steepness}, run)
        return max(found, key=lambda steepness: found[steepness]["EW"])

    def result(self, network: str, loss: str, seed: int) -> Row:
        """A row of the test digits."""

        def run() -> Row:
            steepness = self.choose(network)
            exact, single = evaluate(self.trained(network, loss, steepness, self.options.steps, seed), self.held_out(2))
            return {"EM": exact, "EW": single, "steepness": steepness}

        return self.store.row({"kind": "test", "network": network, "loss": loss, "seed": seed}, run)


def table(content: Row) -> str:
    """EM and EW of each network and loss."""
    rows = [row for row in content["rows"] if row["kind"] == "test"]
    lines = []
    for network in dict.fromkeys(row["network"] for row in rows):
        for loss in dict.fromkeys(row["loss"] for row in rows):
            cells = [shown(values(rows, column, network=network, loss=loss)) for column in ("EM", "EW")]
            if cells[0]:
                lines.append([network, loss, *cells])
    return markdown(["scores from", "loss", "EM, %", "EW, %"], lines)


def claims(content: Row) -> list[Claim]:
    """What the paper says, tested on pairs of the same seed."""
    rows = [row for row in content["rows"] if row["kind"] == "test"]

    def against(better: Row, worse: Row, by: tuple[str, ...]) -> str:
        return verdict(pairs(rows, "EW", better, worse, by), " points of EW")

    swaps = ({"loss": "relaxed + error-free"}, {"loss": "relaxed"}, ("network", "seed"))
    networks = ({"network": "Transformer"}, {"network": "CNN"}, ("loss", "seed"))
    return [
        Claim("the error-free term improves on the relaxed loss alone", against(*swaps)),
        Claim("the Transformer over the set is better than the CNN", against(*networks)),
    ]


def run(options: Namespace) -> str:
    """Everything that is not there yet."""
    experiment = Experiment(options)
    jobs = [(network, loss, seed) for seed in range(options.seeds) for network in NETWORKS for loss in LOSSES]
    for network, loss, seed in tqdm(jobs, desc="rows", dynamic_ncols=True, disable=None):
        experiment.result(network, loss, seed)
    content = load(options.out, EXPERIMENT)
    assert content is not None
    return table(content)


def options(argv: Sequence[str] | None) -> Namespace:
    arguments = parser("error_free_swaps.py", __doc__, seeds=3, data=sort_numbers.DATA)
    arguments.add_argument("--steps", type=int, default=400, help="of each training")
    arguments.add_argument("--n", type=int, default=15, help="numbers in a set")
    arguments.add_argument("--test-sets", type=int, default=1000, help="held-out sets to judge by")
    return parse(arguments, argv, steps=20, seeds=1, test_sets=100)


if __name__ == "__main__":
    sys.exit(main("error_free_swaps.py", options(None), run))
