"""Sorting four-digit numbers made of handwritten digits: each relaxation at the same budget of training.

The task of Grover et al. (arXiv 1903.08850), on which Petersen et al. (arXiv 2105.04019, 2203.09630) compare
relaxations: a network scores n images of four-digit numbers, and all that it is told is their order. Here: the six
swaps of difflayers on the odd-even network, `diffsort` itself with its default swap, NeuralSort and SoftSort, each with
its published loss. Same network, same sets, same number of images a step and of steps, same optimiser.

The softness of each method is the one best on the validation digits (element-wise accuracy at n = 9, after half of the
steps, seed 0); `diffsort` gets that of ours, being the same function. The learning rate is the same for all, that of
examples/rank_digits.py.
"""

from __future__ import annotations

import importlib.util
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Sequence

import torch
from base import Claim, Row, Store, load, main, markdown, pairs, parse, parser, shown, values, verdict
from digit_images import Images, load_digits, split
from rank_digits import Scorer, compose, evaluate
from torch import Tensor
from tqdm import tqdm

import difflayers as dl

EXPERIMENT = "sort_numbers"
PEER_INSTALLED = importlib.util.find_spec("diffsort") is not None
DISTRIBUTIONS = {"logistic_art": "logistic_phi"}  # names of diffsort that are not ours
DATA = "folder of MNIST's idx files, of which t10k is enough; without it scikit-learn's 8x8 digits"
PEER = "diffsort, cauchy"
SWAPS = ("logistic", "logistic_art", "gaussian", "reciprocal", "cauchy", "optimal")
STEEPNESS, TEMPERATURES, RATE = (8.0, 24.0, 72.0), (0.03, 0.3, 3.0), 6e-3
CHOSEN_AT, DIGITS = 9, 4
SIZES = (3, 5, 9, 16, 32, 7)  # the most telling ones first
IMAGES = 192  # a step, whatever the size of the sets
TEST_SETS = 1000

Loss = Callable[[Tensor, Tensor], Tensor]  # of the scores and the true order


def network_loss(swap: str, n: int, softness: float) -> Loss:
    """Binary cross-entropy of the relaxed permutation matrix of the odd-even network."""
    return dl.losses.PermutationCrossEntropy(network="odd_even", swap=swap, steepness=softness)


def softmax_loss(matrix: Callable[[Tensor, float], Tensor], n: int, softness: float) -> Loss:
    """Cross-entropy of the rows, as these relaxations are trained."""
    return lambda scores, order: dl.losses.permutation_cross_entropy(
        matrix(scores, softness), order, kind="categorical"
    )


def diffsort_loss(distribution: str, n: int, softness: float, dtype: torch.dtype = torch.float32) -> Loss:
    """That of the `diffsort` package, with the loss of its own experiment."""
    from diffsort import DiffSortNet

    network = DiffSortNet("odd_even", n, steepness=softness, distribution=distribution)
    network.sorting_network = [[matrix.to(dtype) for matrix in layer] for layer in network.sorting_network]
    entropy = torch.nn.BCELoss()

    def loss(scores: Tensor, order: Tensor) -> Tensor:
        _, permutation = network(scores)  # x @ P = sorted: the transpose of ours
        return entropy(permutation, torch.nn.functional.one_hot(order).mT.to(scores.dtype))

    return loss


def loss_of(method: str, n: int, softness: float) -> Loss:
    """The loss of a method by its name in the table."""
    if method == PEER:
        return diffsort_loss("cauchy", n, softness)
    if method in SWAPS:
        return network_loss(method, n, softness)
    return softmax_loss({"NeuralSort": dl.subsets.neuralsort, "SoftSort": dl.subsets.softsort}[method], n, softness)


def train(scorer: torch.nn.Module, loss: Loss, digits: Images, n: int, steps: int, seed: int, label: str) -> float:
    """Trains in place; returns the milliseconds a step, of this process alone."""
    optimiser = torch.optim.AdamW(scorer.parameters(), RATE, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, total_steps=steps + 10, pct_start=0.1)
    sets = compose(digits, max(1, IMAGES // n), n, DIGITS, seed)
    scorer.train()
    begun = time.process_time()
    for _ in tqdm(range(steps), desc=label, dynamic_ncols=True, disable=None, leave=False):
        batch = next(sets)
        optimiser.zero_grad()
        loss(scorer(batch.pixels), batch.numbers.argsort(-1)).backward()
        optimiser.step()
        schedule.step()
    return 1e3 * (time.process_time() - begun) / steps


class Experiment:
    """The digits, the rows, and what was chosen on the validation digits."""

    def __init__(self, options: Namespace) -> None:
        self.options = options
        self.parts = split(load_digits(options.data), 0)
        settings = {"data": str(options.data and options.data.name), "digits": [len(p.numbers) for p in self.parts],
                    "steps": options.steps, "images a step": IMAGES, "test sets": options.test_sets,
                    "steepness": STEEPNESS, "temperatures": TEMPERATURES, "rate": RATE}  # fmt: skip
        self.store = Store(options, EXPERIMENT, settings, ("diffsort",))

    def held_out(self, part: int, n: int) -> Images:
        """Sets of the validation (1) or the test (2) digits, the same for all."""
        return next(compose(self.parts[part], self.options.test_sets, n, DIGITS, 1000 + n))

    def scorer(self, seed: int) -> Scorer:
        """A new network."""
        height, width = self.parts[0].pixels.shape[1:]
        return Scorer(height, DIGITS * width, seed)

    def choose(self, method: str) -> float:
        """Softness of a method."""
        n, method = CHOSEN_AT, "cauchy" if method == PEER else method
        found: dict[float, float] = {}
        for softness in STEEPNESS if method in SWAPS else TEMPERATURES:

            def run(softness: float = softness) -> Row:
                scorer, label = self.scorer(0), f"{method}, n = {n}, softness {softness:g}"
                steps = max(1, self.options.steps // 2)
                train(scorer, loss_of(method, n, softness), self.parts[0], n, steps, 0, label)
                return {"EW": evaluate(scorer, self.held_out(1, n))[1]}

            key = {"kind": "validation", "method": method, "n": n, "softness": softness}
            found[softness] = self.store.row(key, run)["EW"]
        return max(found, key=lambda softness: found[softness])

    def result(self, method: str, n: int, seed: int) -> Row:
        """A row of the test digits."""

        def run() -> Row:
            softness = self.choose(method)
            scorer, label = self.scorer(seed), f"{method}, n = {n}, seed {seed}"
            loss = loss_of(method, n, softness)
            spent = train(scorer, loss, self.parts[0], n, self.options.steps, seed, label)
            exact, single = evaluate(scorer, self.held_out(2, n))
            five = exact if n == 5 else evaluate(scorer, self.held_out(2, 5))[0]
            row = {"EM": exact, "EW": single, "EM5": five, "softness": softness}
            return row | {"milliseconds a step": round(spent, 2)}

        return self.store.row({"kind": "test", "method": method, "n": n, "seed": seed}, run)

    def agreement(self, swap: str, n: int) -> Row:
        """How far loss and gradient are from those of `diffsort`, on the same random scores in float64."""

        def run() -> Row:
            generator = torch.Generator().manual_seed(n)
            scores = torch.randn(50, n, dtype=torch.float64, generator=generator).requires_grad_()
            order = scores.argsort(-1)  # so that no logarithm is cut, by us at 1e-7 and by torch's loss at e^-100
            kinds = [network_loss(swap, n, 8.0), diffsort_loss(DISTRIBUTIONS.get(swap, swap), n, 8.0, scores.dtype)]
            found = [loss(scores, order) for loss in kinds]
            slopes = [torch.autograd.grad(loss, scores)[0] for loss in found]
            return {"loss": abs((found[0] - found[1]).item()), "gradient": float((slopes[0] - slopes[1]).abs().max())}

        return self.store.row({"kind": "agreement", "swap": swap, "n": n}, run)


def table(content: Row) -> str:
    """EM and EW of each method and size, and EM5 where it says more."""
    rows = [row for row in content["rows"] if row["kind"] == "test"]
    sizes, methods = sorted({row["n"] for row in rows}), list(dict.fromkeys(row["method"] for row in rows))

    def cell(column: str, method: str, n: int) -> str:
        return shown(values(rows, column, method=method, n=n))

    parts = []
    for column, text in (
        ("EM", "EM: sets in exactly the right order, %"),
        ("EW", "EW: images at the right place, %"),
        ("EM5", "EM5: sets of five in the right order, %, by the networks trained on sets of n"),
    ):
        lines = [[method, *(cell(column, method, n) for n in sizes)] for method in methods]
        parts.append(f"{text}\n\n" + markdown(["", *(f"n = {n}" for n in sizes)], lines))
    chosen = {row["method"]: row["softness"] for row in rows}
    edges = [m for m, at in chosen.items() if at in (*STEEPNESS[::2], *TEMPERATURES[::2]) and m != PEER]
    parts.append(
        "Chosen steepness or temperature: " + ", ".join(f"{method} {at:g}" for method, at in chosen.items())
        + (f". At the edge of the grid: {', '.join(edges)}." if edges else ".")
    )  # fmt: skip
    same = [row for row in content["rows"] if row["kind"] == "agreement"]
    if same:
        loss, slope = (max(row[column] for row in same) for column in ("loss", "gradient"))
        at = ", ".join(map(str, sorted({row["n"] for row in same})))
        parts.append(
            f"The six swaps against `diffsort` on the same scores in float64, n = {at}: losses differ by at most "
            f"{loss:.0e}, gradients by at most {slope:.0e} (`diffsort` has an epsilon in the optimal swap)."
        )
    return "\n\n".join(parts)


def claims(content: Row) -> list[Claim]:
    """What the papers say of these methods, tested on pairs of the same size and seed."""
    rows = [row for row in content["rows"] if row["kind"] == "test"]
    said = (
        ("networks with a monotonic swap (cauchy) are better than with the logistic one", "cauchy", "logistic"),
        ("networks with the reciprocal swap are better than with the logistic one", "reciprocal", "logistic"),
        ("networks with the optimal swap are better than with the logistic one", "optimal", "logistic"),
        ("the logistic swap gains from ART", "logistic_art", "logistic"),
        ("the optimal swap is better than cauchy", "optimal", "cauchy"),
        ("networks (cauchy) are better than NeuralSort", "cauchy", "NeuralSort"),
        ("networks (cauchy) are better than SoftSort", "cauchy", "SoftSort"),
    )
    return [
        Claim(text, verdict(pairs(rows, "EW", {"method": a}, {"method": b}, ("n",)), " points of EW"))
        for text, a, b in said
    ]


def run(options: Namespace) -> str:
    """Everything that is not there yet."""
    experiment = Experiment(options)
    jobs = [(method, n, seed) for seed in range(options.seeds) for n in options.sizes for method in options.methods]
    for method, n, seed in tqdm(jobs, desc="rows", dynamic_ncols=True, disable=None):
        if method != PEER or PEER_INSTALLED:
            experiment.result(method, n, seed)
    for swap in SWAPS if PEER_INSTALLED else ():
        for n in options.sizes:
            experiment.agreement(swap, n)
    if not PEER_INSTALLED:
        print(
            "diffsort is not installed, so that its rows are missing: pip install --no-deps diffsort", file=sys.stderr
        )
    content = load(options.out, EXPERIMENT)
    assert content is not None
    return table(content)


def options(argv: Sequence[str] | None) -> Namespace:
    arguments = parser("sort_numbers.py", __doc__, seeds=3, data=DATA)
    methods = [
        "cauchy",
        "logistic",
        "optimal",
        "NeuralSort",
        "SoftSort",
        "logistic_art",
        "reciprocal",
        "gaussian",
        PEER,
    ]
    arguments.add_argument("--steps", type=int, default=400, help="of each training")
    arguments.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="of the sets")
    arguments.add_argument("--methods", nargs="+", choices=methods, default=methods, metavar="NAME", help="which")
    arguments.add_argument("--test-sets", type=int, default=TEST_SETS, help="held-out sets to judge by")
    return parse(arguments, argv, steps=20, seeds=1, sizes=(3, 5), test_sets=100)


if __name__ == "__main__":
    sys.exit(main("sort_numbers.py", options(None), run))
