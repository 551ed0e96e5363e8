"""Trainable gates: accuracy against FLOPs, beside magnitude pruning and Torch-Pruning.

Kim et al. (arXiv 1904.10921) halve the FLOPs of ResNet-56 on CIFAR-10 without loss of accuracy. CIFAR-10 is not at
hand here, so that the question is asked of a smaller ResNet on scikit-learn's digits, by
tests/benchmarks/bench_pruning.py: the same dense network, surgery, FLOPs counter and epochs for all methods. What it
prints to stderr is read here, or a file that has it (--log FILE), so that it is not computed twice.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from argparse import Namespace
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from base import ROOT, Claim, Row, Store, load, main, markdown, parse, parser, shown, values, verdict
from tqdm import tqdm

EXPERIMENT = "gated_pruning"
OURS, L1, PEER, DENSE = "trainable gates", "L1 magnitude", "Torch-Pruning", "dense"
LINE = re.compile(r"(\d+) +([\d.]+) +(\S.*?) +([\d.]+) % ([\d.]+) ([\d.]+) \[")


def from_log(text: str) -> dict[int, list[Row]]:
    """The lines of a run, by seed; a target of a seed that not all methods have reached is left out."""
    result: dict[int, list[Row]] = {}
    for seed, target, method, accuracy, loss, share in LINE.findall(text):
        row = {"method": method, "target": float(target), "accuracy": float(accuracy), "loss": float(loss)}
        result.setdefault(int(seed), []).append(row | {"share": float(share)})
    counts = Counter((seed, row["target"]) for seed, rows in result.items() for row in rows)
    return {
        seed: [row for row in rows if row["method"] == DENSE or counts[seed, row["target"]] == max(counts.values())]
        for seed, rows in result.items()
    }


def of_seed(seed: int, options: Namespace) -> list[Row]:
    """All methods and targets of a seed, computed."""
    command = [sys.executable, "tests/benchmarks/bench_pruning.py", "--seeds", str(seed)]
    command += ["--targets", *map(str, options.targets), "--epochs", str(options.epochs)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    found = from_log(done.stderr).get(seed)
    if done.returncode or not found:
        raise OSError(f"{' '.join(command[1:])} failed: {(done.stderr.strip().splitlines() or ['no output'])[-1]}")
    return found


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
    heads = [f"{at:g} of the FLOPs, {len(values(rows, 'seed', method=OURS, target=at))} seeds" for at in targets]
    return markdown(["accuracy on unseen images, %", *heads], lines)


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
        return verdict(found, " points", 2)

    result = [
        Claim(
            f"nothing is lost at {100 * at:g} % of the FLOPs{'' if at == 0.5 else ' (not said by the paper)'}",
            loss_of(at),
        )
        for at in sorted({row["target"] for row in rows if row["method"] == OURS}, reverse=True)
    ]
    for other in dict.fromkeys(row["method"] for row in rows if row["method"] not in (OURS, DENSE)):
        shared = [key for key in accuracy if key[1] == OURS and (key[0], other, key[2]) in accuracy]
        by_seed: dict[int, list[float]] = {}
        for key in shared:  # the targets of a seed share a dense network, and are one observation
            by_seed.setdefault(key[0], []).append(accuracy[key] - accuracy[key[0], other, key[2]])
        differences = [sum(each) / len(each) for each in by_seed.values()]
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
    arguments.add_argument("--targets", type=float, nargs="+", default=[0.5, 0.25, 0.1], help="shares of the FLOPs")
    arguments.add_argument("--epochs", type=int, default=18, help="of the dense network, and again of each method")
    arguments.add_argument("--log", type=Path, metavar="FILE", help="lines that bench_pruning.py has printed")
    return parse(arguments, argv, seeds=1, epochs=1, targets=[0.5])


if __name__ == "__main__":
    sys.exit(main("gated_pruning.py", options(None), run))
