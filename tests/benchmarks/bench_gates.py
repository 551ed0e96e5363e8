"""What gates cost, in one page: attach and prune beside Torch-Pruning, and a step of training with gates and without.

    make bench            all benchmarks, these into docs/benchmarks-gates.md
    python tests/benchmarks/bench_gates.py --quick
    python tests/benchmarks/bench_gates.py --out docs/benchmarks-gates.md

Torch-Pruning 1.6.1 is left out where it is not installed. What other scripts have written into the page between two
lines with their name (bench_pruning.py: accuracy) stays in it.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from gates_models import Attention, resnet50, transformer  # pyright: ignore[reportMissingImports]
from measure import machine  # pyright: ignore[reportMissingImports]
from torch import Tensor, nn

import difflayers as dl

ROOT = Path(__file__).resolve().parents[2]
TESTS = ("tests/gates/test_zoo.py", "tests/gates/test_refusals.py")
TITLE = "# Benchmarks: keeping or dropping"
OTHERS = ("<!-- bench_pruning.py -->",)  # the lines around what other scripts write

Task = tuple[str, Callable[[], nn.Module], tuple[int, ...]]
SURGERY: list[Task] = [
    ("ResNet-50, 64 x 64", resnet50, (1, 3, 64, 64)),
    ("ResNet-50, 224 x 224", resnet50, (1, 3, 224, 224)),
    ("transformer, 12 blocks of 384", transformer, (1, 16, 384)),
]
STEPS: list[Task] = [
    ("ResNet-50, 32 of 64 x 64", resnet50, (32, 3, 64, 64)),
    ("transformer, 8 of 64 tokens", transformer, (8, 64, 384)),
]


def close_half(gated: dl.gates.Gated) -> None:
    """Closes every other unit."""
    for gate in gated.gates.values():
        gate.weight.data[1::2] = -1  # pyright: ignore[reportIndexIssue]


def timed(run: Callable[[], object], clock: Callable[[], float] = time.process_time) -> float:
    """Seconds of one call."""
    start = clock()
    run()
    return clock() - start


def torch_pruning(model: nn.Module, x: Tensor) -> float:
    """Seconds of its constructor and one step, at half of all channels and heads; the copy before is not counted."""
    import torch_pruning as tp  # pyright: ignore[reportMissingImports]

    model = copy.deepcopy(model)
    heads: dict[nn.Module, int] = {m.qkv: m.num_heads for m in model.modules() if isinstance(m, Attention)}
    last: list[nn.Module] = [model[-1]]  # pyright: ignore[reportIndexIssue]
    return timed(
        lambda: tp.pruner.MetaPruner(
            model, x, importance=tp.importance.MagnitudeImportance(p=2), pruning_ratio=0.5, num_heads=heads,
            prune_num_heads=bool(heads), ignored_layers=last,
        ).step()
    )  # fmt: skip


def surgery(rounds: int) -> str:
    """A table of attach and prune."""
    peer = importlib.util.find_spec("torch_pruning") is not None
    torch.set_num_threads(1)
    rows = []
    for name, make, shape in SURGERY:
        torch.manual_seed(0)
        model, x = make(), torch.randn(shape)
        gated = dl.gates.attach(model, x)
        close_half(gated)
        dl.gates.prune(gated)
        if peer:
            torch_pruning(model, x)
        runs: list[Callable[[], object]] = [
            partial(dl.gates.attach, model, x),
            partial(dl.gates.prune, gated),
            partial(dl.gates.prune, gated, verify=False),
        ]
        times = [  # taking turns
            [*map(timed, runs), torch_pruning(model, x) if peer else float("nan")] for _ in range(rounds)
        ]
        attach, prune, unverified, other = (statistics.median(column) for column in zip(*times, strict=True))
        ratio = statistics.median((a + p) / o for a, p, _, o in times)
        reached = "" if not peer else " reached" if ratio <= 2 else " **missed**"
        rows.append(
            f"| {name} | {attach:.2f} | {prune:.2f} | {unverified:.2f} | "
            + (f"{other:.2f} | {ratio:.2f}x{reached} |" if peer else "absent | |")
        )
    return "\n".join(
        [
            "## Attach and prune",
            "",
            f"Processor time in seconds on one thread, medians of {rounds} rounds in which all take turns, after one "
            "that is not counted (the first `attach` of a process spends about two seconds more on importing parts of "
            "torch). Half of all units go. `prune` compares both models in float64; Torch-Pruning's constructor and "
            "step compare nothing. Bar: attach and prune together at most 2 times Torch-Pruning's time.",
            "",
            "| model | attach | prune | prune(verify=False) | Torch-Pruning | attach + prune to it |",
            "|---|---|---|---|---|---|",
            *rows,
        ]
    )


def overhead(rounds: int, numbers: Sequence[int]) -> str:
    """A table of steps of training."""
    rows = []
    for threads in numbers:
        torch.set_num_threads(threads)
        clock = time.process_time if threads == 1 else time.perf_counter
        for name, make, shape in STEPS:
            torch.manual_seed(0)
            model, x = make(), torch.randn(shape)
            gated = dl.gates.attach(model, x[:1])
            model.train()
            gated.train()

            def step(module: nn.Module, x: Tensor = x, gated: nn.Module = gated, clock: Callable = clock) -> float:
                gated.zero_grad(set_to_none=True)
                return timed(lambda: module(x).square().mean().backward(), clock)

            for state in ("all open", "half closed"):
                if state == "half closed":
                    close_half(gated)
                step(model)
                step(gated)
                times = [(step(model), step(gated)) for _ in range(rounds)]
                more = statistics.median(b / a for a, b in times) - 1
                plain, with_gates = (statistics.median(column) for column in zip(*times, strict=True))
                verdict = "reached" if more <= 0.05 else "**missed**"
                rows.append(
                    f"| {threads} | {name} | {state} | {plain:.3f} | {with_gates:.3f} | {100 * more:+.1f} % {verdict} |"
                )
    torch.set_num_threads(1)
    return "\n".join(
        [
            "## A step of training",
            "",
            f"Seconds of forward and backward, of the model and of the gated model, medians of {rounds} rounds in "
            "which both take turns; processor time with one thread, time that passes with two. Bar: at most 5 % more.",
            "",
            "| threads | model, batch | gates | model | gated | more, median of the rounds |",
            "|---|---|---|---|---|---|",
            *rows,
        ]
    )


def kept(page: str) -> list[str]:
    """What other scripts have written."""
    found = []
    for line in OTHERS:
        parts = page.split(line)
        if len(parts) > 2:
            found.append(f"{line}{parts[1]}{line}")
    return found


def main(arguments: list[str] | None = None) -> int:
    """Runs the benchmarks; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two rounds, figures that mean little")
    parser.add_argument("--rounds", type=int, default=7, help="of each comparison")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="of the steps of training")
    parser.add_argument("--out", type=Path, help="also write the page to this Markdown file")
    parser.add_argument("--untested", action="store_true", help="do not run the tests of what is timed first")
    options = parser.parse_args(arguments)
    if not options.untested:
        tests = [sys.executable, "-m", "pytest", "-q", "-x", *TESTS]
        if subprocess.run(tests, cwd=ROOT, check=False).returncode != 0:
            print("bench_gates: the tests fail; numbers of what is wrong are not reported", file=sys.stderr)
            return 1
    rounds = 2 if options.quick else options.rounds
    header = "\n".join(f"- {line}" for line in machine(["torch-pruning"]))
    parts = [TITLE, "Printed by `make bench`.", header, surgery(rounds), overhead(rounds, options.threads)]
    if options.out and options.out.exists():
        parts += kept(options.out.read_text())
    text = "\n\n".join(parts) + "\n"
    if options.out:
        options.out.write_text(text)
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
