"""Trainable gates: accuracy against FLOPs, beside magnitude pruning and Torch-Pruning.

Kim et al. (arXiv 1904.10921) halve the FLOPs of ResNet-56 on CIFAR-10 without loss of accuracy. CIFAR-10 is not at
hand here, so that the question is asked of a smaller ResNet on scikit-learn's digits, by
tests/benchmarks/bench_pruning.py: the same dense network, surgery, FLOPs counter and epochs for all methods. Its lines
may also be taken over from a file that has what it printed to stderr (--log FILE), so that they are not computed twice.
"""

from __future__ import annotations

import re
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from statistics import mean

from base import Claim, Row, Store, load, main, markdown, parse, parser, shown, values, verdict
from tqdm import tqdm

EXPERIMENT = "gated_pruning"
OURS, L1, PEER, DENSE = "trainable gates", "L1 magnitude", "Torch-Pruning", "dense"
LINE = re.compile(r"(\d+) +([\d.]+) +(\S.*?) +([\d.]+) % ([\d.]+) ([\d.]+) \[")


def from_log(text: str) -> dict[int, list[Row]]:
    """The lines of a finished run, by seed."""
    result: dict[int, list[Row]] = {}
    for seed, target, method, accuracy, loss, share in LINE.findall(text):
        row = {"method": method, "target": float(target), "accuracy": float(accuracy), "loss": float(loss)}
        result.setdefault(int(seed), []).append(row | {"share": float(share)})
    return result


def of_seed(seed: int, options: Namespace) -> list[Row]:
    """All methods and targets of a seed, computed."""
    from bench_pruning import measure  # the peers' packages take a while

    return [
        {"method": row.method, "target": row.target, "accuracy": row.accuracy, "loss": row.loss, "share": row.share}
        for row in measure(seed, options.targets, options.epochs)
    ]


def flat(content: Row) -> list[Row]:
    """One row for each network."""
    return [{"seed": row["seed"], **network} for row in content["rows"] for network in row["networks"]]


def table(content: Row) -> str:
    """Accuracies by target; of Torch-Pruning's criteria the one that is best at each, and the mean of all."""
    rows = flat(content)
    targets = sorted({row["target"] for row in rows if row["method"] != DENSE}, reverse=True)
    dense = shown(values(rows, "accuracy", method=DENSE), 2)
    names = list(dict.fromkeys(row["method"] for row in rows if row["method"] != DENSE))
    lines = [[DENSE, *([dense] * len(targets))]]
    lines += [[name, *(shown(values(rows, "accuracy", method=name, target=at), 2) for at in targets)] for name in names]
    return markdown(["accuracy on unseen images, %", *(f"{at:g} of the FLOPs" for at in targets)], lines)


def claims(content: Row) -> list[Claim]:
    """What the paper says, and more of it."""
    rows = flat(content)
    accuracy = {(row["seed"], row["method"], row["target"]): row["accuracy"] for row in rows}
    seeds = sorted({row["seed"] for row in rows})

    def dropped(target: float) -> list[float]:
        cells = [(accuracy.get((s, OURS, target)), accuracy.get((s, DENSE, 1.0))) for s in seeds]
        return [ours - dense for ours, dense in cells if ours is not None and dense is not None]

    def loss_of(target: float) -> str:
        found = dropped(target)
        text = verdict(found, " points", 2)
        # the claim is that there is no loss, which a difference of either sign within its interval does not contradict
        return text.replace("**not decided**", "**holds within the spread**")

    result = [Claim(f"the FLOPs are {100 * at:g} % without loss of accuracy", loss_of(at)) for at in (0.5, 0.25, 0.1)
              if len(dropped(at)) > 1]  # fmt: skip
    for other in dict.fromkeys(row["method"] for row in rows if row["method"] not in (OURS, DENSE)):
        shared = [key for key in accuracy if key[1] == OURS and (key[0], other, key[2]) in accuracy]
        differences = [accuracy[key] - accuracy[key[0], other, key[2]] for key in shared]
        if differences and (other == L1 or mean(differences) < 0.3):
            result.append(Claim(f"gates are better than {other}, over all targets", verdict(differences, " points", 2)))
    return result


def run(options: Namespace) -> str:
    """Everything that is not there yet."""
    store = Store(options, EXPERIMENT, {"targets": options.targets, "epochs": options.epochs}, ("torch-pruning",))
    if options.log:
        for seed, networks in from_log(options.log.read_text()).items():
            store.row({"seed": seed}, lambda networks=networks: {"networks": networks})
    for seed in tqdm(range(0 if options.log else options.seeds), desc="seeds", dynamic_ncols=True, disable=None):
        store.row({"seed": seed}, lambda seed=seed: {"networks": of_seed(seed, options)})
    content = load(options.out, EXPERIMENT)
    if content is None:
        raise OSError(f"{options.log} has no lines of bench_pruning.py")
    return table(content)


def options(argv: Sequence[str] | None) -> Namespace:
    arguments = parser("gated_pruning.py", __doc__, seeds=5)
    arguments.add_argument(
        "--targets", type=float, nargs="+", default=[0.75, 0.5, 0.25, 0.1], help="shares of the FLOPs"
    )
    arguments.add_argument("--epochs", type=int, default=12, help="of the dense network, and again of each method")
    arguments.add_argument("--log", type=Path, metavar="FILE", help="lines that bench_pruning.py has printed")
    return parse(arguments, argv, seeds=1, epochs=1, targets=[0.5])


if __name__ == "__main__":
    sys.exit(main("gated_pruning.py", options(None), run))
