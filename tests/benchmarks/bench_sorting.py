"""Times the sorting family against torch.sort, diffsort, difftopk and torchsort; prints Markdown tables.

    make bench            all of it, into docs/benchmarks.md (after the kernels' tests have passed)
    python tests/benchmarks/bench_sorting.py --threads 1 --quick

Every entry is forward + backward through autograd, float32, Cauchy swaps at steepness 10, bitonic network unless
said. Peers that are not installed are left out.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from measure import machine, saved_floats, side_by_side, trained
from pages import publish
from torch import Tensor

import difflayers as dl
from difflayers._ops import transport_scratch_bytes
from difflayers.sorting import networks

SIZES = ((1024, 8), (256, 32), (64, 128), (16, 512), (4, 1024))
Function = Callable[[Tensor], Tensor]


def torch_sort(x: Tensor) -> Tensor:
    """The hard sort that everything is compared with."""
    return torch.sort(x).values


def peers(n: int, largest: int) -> dict[str, Function]:
    """The peers' functions for rows of n; the dense ones only up to n = largest (they take seconds beyond)."""
    found: dict[str, Function] = {}
    if n <= largest:
        try:
            from diffsort import DiffSortNet

            network = DiffSortNet("bitonic", n, steepness=10.0, distribution="cauchy")
            found["diffsort, matrix"] = lambda x: network(x)[1]
            found["diffsort, values"] = lambda x: network(x)[0]
        except ImportError:
            pass
        try:
            from difftopk import DiffTopkNet

            best = DiffTopkNet("bitonic", n, 5, steepness=10.0, distribution="cauchy")
            found["difftopk, k = 5"] = lambda x: best(x)[1]
        except ImportError:
            pass
    try:
        import torchsort

        found["torchsort, ranks"] = lambda x: torchsort.soft_rank(x, regularization_strength=0.1)
    except ImportError:
        pass
    return found


def ours(n: int) -> dict[str, Function]:
    """Our functions for rows of n."""
    functions: dict[str, Function] = {
        "values, bitonic": lambda x: dl.sort(x, network="bitonic"),
        "values, odd_even_merge": lambda x: dl.sort(x),
        "matrix": lambda x: dl.permutation(x, network="bitonic"),
        "ranks": lambda x: dl.rank(x, network="bitonic"),
        "top-k, k = 5": lambda x: dl.topk(x, 5, network="bitonic").membership,
    }
    if n <= 32:
        functions["values, odd_even"] = lambda x: dl.sort(x, network="odd_even")
    return functions


def table(rows: list[list[str]], header: list[str]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


BARS = (  # ours, peer, sizes, the ratio to reach (ours / peer at most)
    ("values, bitonic", "torch.sort", (8, 32, 128, 512, 1024), dict.fromkeys((8, 32, 128, 512, 1024), 1.0)),
    ("values, odd_even", "torch.sort", (8, 32), {8: 1.0, 32: 1.0}),
    ("matrix", "diffsort, matrix", (8, 32, 128, 512), {8: 1 / 20, 32: 1 / 30, 128: 1 / 50, 512: 1 / 100}),
    ("ranks", "torchsort, ranks", (128, 512, 1024), {128: 1.0, 512: 1.0, 1024: 1.0}),
    ("top-k, k = 5", "difftopk, k = 5", (128, 512, 1024), dict.fromkeys((128, 512, 1024), 1 / 300)),
)


def speed(threads: int, seconds: float, largest: int) -> str:
    """Milliseconds of everything at every size, then the ratios that the project set itself."""
    torch.set_num_threads(threads)
    times: dict[int, dict[str, float]] = {}
    for batch, n in SIZES:
        x = torch.randn(batch, n, generator=torch.Generator().manual_seed(0))
        functions = {"torch.sort": torch_sort, **ours(n), **peers(n, largest)}
        times[n] = side_by_side({name: trained(f, x) for name, f in functions.items()}, seconds)
    names = list(dict.fromkeys(name for column in times.values() for name in column))
    cells = [
        [name, *(f"{1e3 * times[n][name]:.3g} ({times[n][name] / times[n]['torch.sort']:.2f}x)" if name in times[n]
                 else "" for _, n in SIZES)]
        for name in names
    ]  # fmt: skip
    text = f"### {threads} thread{'s' * (threads > 1)}\n\nMilliseconds (times torch.sort).\n\n"
    text += table(cells, ["batch x n", *(f"{batch} x {n}" for batch, n in SIZES)]) + "\n\n"
    ratios = []
    for mine, peer, sizes, bars in BARS:
        for n in sizes:
            if peer in times[n] and mine in times[n]:
                ratio = times[n][mine] / times[n][peer]
                shown = f"{ratio:.2f}x the time" if ratio > 0.1 else f"{1 / ratio:.0f}x faster"
                bar = f"at most {bars[n]:.1f}x" if bars[n] == 1 else f"at least {1 / bars[n]:.0f}x faster"
                verdict = "reached" if ratio <= bars[n] else "missed"
                ratios.append([f"{mine}, n = {n}", peer, shown, bar, verdict])
    return text + table(ratios, ["ours", "against", "measured", "aim", ""])


def growth(seconds: float) -> str:
    """Time per comparator of the values as n grows, batch x n = 2^18."""
    torch.set_num_threads(1)
    rows, base = [], 0.0
    for n in (1024, 4096, 16384, 65536):
        batch = (1 << 18) // n
        x = torch.randn(batch, n)
        run = trained(lambda x: dl.sort(x, network="bitonic"), x)
        comparators = sum(len(lower) for lower, _ in networks.layers("bitonic", n))
        each = side_by_side({"values": run}, 2 * seconds, rounds=5)["values"] / (comparators * batch) * 1e9
        base = base or each
        rows.append([str(n), str(batch), f"{comparators:,}", f"{each:.2f}", f"{each / base:.2f}x"])
    return table(rows, ["n", "batch", "comparators", "ns per comparator and row", "against n = 1024"])


def memory() -> str:
    """Floats that autograd keeps, and the scratch of one thread."""
    rows = []
    for batch, n in SIZES:
        x = torch.randn(batch, n)
        depth = len(networks.layers("bitonic", n))
        kept = saved_floats(lambda x: dl.sort(x, network="bitonic"), x) / (batch * n)
        ranks = torch.ones(1, n, 1)
        scratch = [
            transport_scratch_bytes(x, "values", "bitonic") // 4,
            transport_scratch_bytes(x, "matrix", "bitonic") // 4,
            transport_scratch_bytes(x, "carry_transposed", "bitonic", ranks) // 4,
        ]
        rows.append([f"{batch} x {n}", f"{kept:.2f} n", *(f"{s:,}" for s in scratch), f"{16 * depth * n:,}"])
    return table(rows, ["batch x n", "kept per row (floats)", "scratch, values", "scratch, matrix", "scratch, ranks",
                        "16 L n"])  # fmt: skip


def gpu() -> str:
    """Values on a GPU against the bandwidth of a device copy: reciprocal swap, n = 32, batch 2^20."""
    x = torch.randn(1 << 20, 32, device="cuda", requires_grad=True)
    w = torch.randn_like(x)

    def milliseconds(run: Callable[[], object]) -> float:
        for _ in range(3):
            run()
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        for _ in range(20):
            run()
        end.record()
        torch.cuda.synchronize()
        return start.elapsed_time(end) / 20

    target = torch.empty_like(x)
    copy = milliseconds(lambda: target.copy_(x.detach()))
    forward = milliseconds(lambda: dl.sort(x.detach(), swap="reciprocal"))
    both = milliseconds(lambda: torch.autograd.grad(dl.sort(x, swap="reciprocal"), x, w))
    # forward reads and writes n floats a row as the copy does; backward reads two and writes one
    rows = [
        ["copy", f"{copy:.3f}", "100 %"],
        ["forward", f"{forward:.3f}", f"{100 * copy / forward:.0f} %"],
        ["forward + backward", f"{both:.3f}", f"{100 * 2.5 * copy / both:.0f} %"],
    ]
    return f"{torch.cuda.get_device_name()}\n\n" + table(rows, ["2^20 x 32", "ms", "of a copy's bandwidth"])


def main(arguments: list[str] | None = None) -> int:
    """Runs the benchmarks; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, nargs="*", default=[1, 2], help="thread counts, default 1 2")
    parser.add_argument("--quick", action="store_true", help="a tenth of the time; skip peers' slow sizes")
    parser.add_argument("--out", type=Path, help="also write the tables to this Markdown file")
    parser.add_argument("--untested", action="store_true", help="do not run the kernels' tests first")
    options = parser.parse_args(arguments)
    root = Path(__file__).resolve().parents[2]
    if not options.untested:
        tests = [sys.executable, "-m", "pytest", "-q", "-x", "tests/sorting/test_kernels.py"]
        if subprocess.run(tests, cwd=root, check=False).returncode != 0:
            print("bench_sorting: the kernels' tests fail; numbers of a wrong kernel are not reported", file=sys.stderr)
            return 1
    seconds = 0.1 if options.quick else 1.0
    largest = 128 if options.quick else 1024
    parts = ["# Benchmarks", "Printed by `make bench`. " + __doc__.split("\n\n")[-1].strip()]
    parts.append("\n".join(f"- {line}" for line in machine()))
    parts.append("## Speed")
    for threads in options.threads:
        parts.append(speed(threads, seconds, largest))
        print(parts[-1], flush=True)
    parts += ["## Cost as n grows", "Sorted values, 1 thread, batch x n = 2^18.", growth(seconds)]
    parts += ["## Memory", "L is the number of layers; the aim for the scratch of one thread is 16 L n floats, or "
              "sqrt(L) checkpoints where that exceeds 8 MiB.", memory()]  # fmt: skip
    if torch.cuda.is_available():
        parts += ["## GPU", gpu()]
    text = "\n\n".join(parts) + "\n"
    print("\n\n".join(parts[-6:]))
    if options.out:
        publish(options.out, text)
        print(f"written to {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
