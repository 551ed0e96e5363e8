"""Times the estimators against torch.nn.functional.gumbel_softmax and the reinmax package; prints Markdown tables.

    make bench            all benchmarks, these into docs/benchmarks-choosing.md (by bench_choosing.py)
    python tests/benchmarks/bench_estimators.py --threads 1 --quick

Every entry is forward + backward through autograd, float32, temperature 1. Peers that are not installed are left out.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

import torch
from measure import machine, saved_floats, side_by_side, trained
from torch import Tensor

import difflayers as dl

SHAPES = ((1024, 10), (256, 1024), (64, 32768))
Function = Callable[[Tensor], Tensor]
BASE = "torch gumbel_softmax(hard=True)"


def contenders() -> dict[str, Function]:
    """Everything that is timed."""
    found: dict[str, Function] = {
        BASE: lambda x: torch.nn.functional.gumbel_softmax(x, hard=True),
        "torch gumbel_softmax": torch.nn.functional.gumbel_softmax,
        "torch softmax": lambda x: torch.softmax(x, -1),
        "gumbel_softmax(hard=True)": lambda x: dl.gumbel_softmax(x, hard=True),
        "gumbel_softmax": dl.gumbel_softmax,
        "reinmax": dl.reinmax,
        "reinmax, temperature 1.3": lambda x: dl.reinmax(x, 1.3),
        "straight_through": dl.straight_through,
        "gapped_straight_through": dl.gapped_straight_through,
        "gumbel_rao, 10 samples": dl.gumbel_rao,
    }
    try:
        from reinmax import reinmax

        found["official reinmax"] = lambda x: reinmax(x, 1.0)[0]
    except ImportError:
        pass
    return found


MEMORY = (
    "Kept for backward, in tensors of the logits' size, the input included where it is kept. The aim for ReinMax and "
    "Gumbel-Softmax is at most 1."
)
BARRED = ("reinmax", "gumbel_softmax(hard=True)", "gumbel_softmax")  # at most the time of BASE


def table(rows: list[list[str]], header: list[str]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def speed(threads: int, seconds: float, device: str = "cpu") -> str:
    """Milliseconds and ratios to BASE at every shape."""
    torch.set_num_threads(threads)
    functions = contenders()
    cells: dict[str, list[str]] = {name: [name] for name in functions}
    for shape in SHAPES:
        x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device)
        runs = {name: synchronised(trained(f, x), device) for name, f in functions.items()}
        times = side_by_side(runs, seconds)
        for name, taken in times.items():
            ratio = taken / times[BASE]
            verdict = (" reached" if ratio <= 1 else " MISSED") if name in BARRED else ""
            cells[name].append(f"{1e3 * taken:.3g} ({ratio:.2f}x{verdict})")
    where = f"{threads} thread{'s' * (threads > 1)}" if device == "cpu" else torch.cuda.get_device_name()
    title = f"### {where}\n\nMilliseconds (times {BASE}; the aim is at most 1.0x).\n\n"
    return title + table(list(cells.values()), ["", *(f"{b} x {n}" for b, n in SHAPES)])


def synchronised(run: Callable[[], object], device: str) -> Callable[[], object]:
    """run, and on a GPU what it started."""
    if device == "cpu":
        return run

    def both() -> None:
        run()
        torch.cuda.synchronize()

    return both


def memory() -> str:
    """What autograd keeps, in tensors of the logits' size."""
    rows = []
    for name, function in contenders().items():
        kept = []
        for shape in SHAPES:
            x = torch.randn(shape)
            kept.append(f"{saved_floats(function, x) / x.numel():.2f}")
        rows.append([name, *kept])
    return table(rows, ["", *(f"{b} x {n}" for b, n in SHAPES)])


def main(arguments: list[str] | None = None) -> int:
    """Runs the benchmarks; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, nargs="*", default=[1, 2], help="thread counts, default 1 2")
    parser.add_argument("--quick", action="store_true", help="a tenth of the time")
    options = parser.parse_args(arguments)
    print("\n".join(f"- {line}" for line in machine()))
    seconds = 0.1 if options.quick else 1.0
    print("\n## Estimators: speed\n")
    for threads in options.threads:
        print(speed(threads, seconds) + "\n", flush=True)
    if torch.cuda.is_available():
        print(speed(1, seconds, "cuda") + "\n", flush=True)
    print(f"## Estimators: memory\n\n{MEMORY}\n\n{memory()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
