"""Times soft_sort and soft_rank by projection against torchsort; prints Markdown tables of ratios and of errors.

    python tests/benchmarks/bench_projections.py --quick

Forward + backward through autograd, float32, one thread, batch x n = 8192. torchsort is left out where it is not
installed. Errors are against the same function in float64, relative to the largest value.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from measure import machine, side_by_side, trained
from torch import Tensor

from difflayers import subsets

SIZES = ((1024, 8), (256, 32), (64, 128), (16, 512), (8, 1024))
TEMPERATURES = (0.1, 1.0)
Function = Callable[[Tensor], Tensor]
FUNCTIONS = {"soft_sort": subsets.soft_sort, "soft_rank": subsets.soft_rank}


def peer(name: str, regularization: str, temperature: float) -> Function | None:
    """The function of this name in torchsort."""
    try:
        import torchsort
    except ImportError:
        return None
    function = getattr(torchsort, name)
    return lambda x: function(x, regularization=regularization, regularization_strength=temperature)


def ours(name: str, regularization: str, temperature: float) -> Function:
    """Our function of this name."""
    return lambda x: FUNCTIONS[name](x, temperature, regularization=regularization)


def table(rows: list[list[str]], header: list[str]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def speed(seconds: float) -> str:
    """Our milliseconds, and torchsort's in brackets with the ratio of the times."""
    torch.set_num_threads(1)
    rows: dict[str, list[str]] = {}
    worst = 0.0
    for batch, n in SIZES:
        x = torch.randn(batch, n, generator=torch.Generator().manual_seed(0))
        for name in FUNCTIONS:
            for regularization in ("l2", "kl"):
                for temperature in TEMPERATURES:
                    contenders = {"ours": trained(ours(name, regularization, temperature), x)}
                    other = peer(name, regularization, temperature)
                    if other is not None:
                        contenders["torchsort"] = trained(other, x)
                    times = side_by_side(contenders, seconds)
                    cell = f"{1e3 * times['ours']:.3f}"
                    if "torchsort" in times:
                        ratio = times["ours"] / times["torchsort"]
                        worst = max(worst, ratio)
                        cell += f" ({1e3 * times['torchsort']:.3f}, {ratio:.2f}x)"
                    rows.setdefault(f"{name}, {regularization}, temperature {temperature:g}", []).append(cell)
        functions: dict[str, Function] = {
            "projection_topk, l2, k = n / 4": lambda x, k=n // 4: subsets.projection_topk(x, k, 0.1),
            "torch.sort": lambda x: torch.sort(x).values,
        }
        for name, time in side_by_side({key: trained(f, x) for key, f in functions.items()}, seconds).items():
            rows.setdefault(name, []).append(f"{1e3 * time:.3f}")
    text = table([[name, *cells] for name, cells in rows.items()], ["batch x n", *(f"{b} x {n}" for b, n in SIZES)])
    return text + (f"\n\nLargest ratio: {worst:.2f}x (aim: at most 1.00x)." if worst else "")


def errors(n: int = 10_000) -> str:
    """Errors of float32 at this n: value (gradient)."""
    generator = torch.Generator().manual_seed(0)
    x, g = torch.randn(1, n, generator=generator), torch.randn(1, n, generator=generator)

    def both(function: Function, dtype: torch.dtype) -> list[Tensor]:
        leaf = x.to(dtype).requires_grad_()
        y = function(leaf)
        return [y.detach().double(), torch.autograd.grad(y, leaf, g.to(dtype))[0].double()]

    rows = []
    for name in FUNCTIONS:
        for regularization in ("l2", "kl"):
            for temperature in (1.0, 1e-2, 1e-4):
                mine = ours(name, regularization, temperature)
                exact = both(mine, torch.float64)
                cells = [f"{name}, {regularization}, temperature {temperature:g}"]
                for function in (mine, peer(name, regularization, temperature)):
                    if function is None:
                        continue
                    found = both(function, torch.float32)
                    relative = [((a - b).abs().max() / b.abs().max()).item() for a, b in zip(found, exact, strict=True)]
                    cells.append(f"{relative[0]:.1e} ({relative[1]:.1e})")
                rows.append(cells)
    return table(rows, [f"float32, n = {n}: value (gradient)", "ours", "torchsort"][: len(rows[0])])


def main(arguments: list[str] | None = None) -> int:
    """Runs the benchmarks; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of the time")
    parser.add_argument("--out", type=Path, help="also write the tables to this Markdown file")
    parser.add_argument("--untested", action="store_true", help="do not run the tests first")
    options = parser.parse_args(arguments)
    if not options.untested:
        tests = [sys.executable, "-m", "pytest", "-q", "-x", "tests/subsets/test_projections.py"]
        if subprocess.run(tests, cwd=Path(__file__).resolve().parents[2], check=False).returncode != 0:
            print("bench_projections: the tests fail; numbers of a wrong kernel are not reported", file=sys.stderr)
            return 1
    parts = ["# Projections", __doc__.split("\n\n")[-1].strip(), "\n".join(f"- {line}" for line in machine())]
    parts += ["## Speed", "Milliseconds (torchsort's, ours / torchsort).", speed(0.05 if options.quick else 0.5)]
    parts += ["## Errors", errors()]
    text = "\n\n".join(parts) + "\n"
    print(text)
    if options.out:
        options.out.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
