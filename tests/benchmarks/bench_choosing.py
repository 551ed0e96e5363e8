"""The benchmarks of the choosing family in one file: estimators, projections, polynomial programming.

    make bench            all benchmarks, these into docs/benchmarks-choosing.md
    python tests/benchmarks/bench_choosing.py --quick

Runs bench_estimators.py, bench_projections.py and polynomial_programming.py, after their kernels' tests have passed.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import bench_estimators
import bench_projections
import polynomial_programming
import torch
from measure import machine
from pages import publish

ROOT = Path(__file__).resolve().parents[2]
TESTS = ("tests/estimators/test_kernels.py", "tests/subsets/test_projections.py")


def polynomials(steps: int) -> str:
    """The polynomial programming table."""
    torch.set_num_threads(1)
    results = {
        (name, power): polynomial_programming.train(estimator, power, steps, seed=0)[0][-1][1]
        for name, estimator in polynomial_programming.available().items()
        for power in (1.5, 2.0, 3.0)
    }
    return polynomial_programming.table(results, [1.5, 2.0, 3.0], steps)


def main(arguments: list[str] | None = None) -> int:
    """Runs the benchmarks; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of the time, a sixteenth of the training steps")
    parser.add_argument("--threads", type=int, nargs="*", default=[1, 2], help="thread counts, default 1 2")
    parser.add_argument("--out", type=Path, help="also write the tables to this Markdown file")
    parser.add_argument("--untested", action="store_true", help="do not run the kernels' tests first")
    options = parser.parse_args(arguments)
    if not options.untested:
        tests = [sys.executable, "-m", "pytest", "-q", "-x", *TESTS]
        if subprocess.run(tests, cwd=ROOT, check=False).returncode != 0:
            print("bench_choosing: the tests fail; numbers of a wrong kernel are not reported", file=sys.stderr)
            return 1
    seconds = 0.1 if options.quick else 1.0
    parts = ["# Benchmarks: choosing", "Printed by `make bench`.", "\n".join(f"- {line}" for line in machine())]
    parts += ["## Estimators: speed", "Forward + backward through autograd, float32, temperature 1."]
    parts += [bench_estimators.speed(threads, seconds) for threads in options.threads]
    if torch.cuda.is_available():
        parts.append(bench_estimators.speed(1, seconds, "cuda"))
    parts += ["## Estimators: memory", bench_estimators.MEMORY, bench_estimators.memory()]
    parts += ["## Soft sort and soft rank by projection", "Forward + backward, float32, one thread, batch x n = 8192: "
              "milliseconds (torchsort's, ours / torchsort).", bench_projections.speed(seconds / 2)]  # fmt: skip
    parts += ["Errors in float32 against the same function in float64, relative to the largest value.",
              bench_projections.errors()]  # fmt: skip
    parts += ["## Polynomial programming", polynomial_programming.__doc__.split("\n\n    python")[0],
              polynomials(500 if options.quick else 8000)]  # fmt: skip
    text = "\n\n".join(parts) + "\n"
    print(text)
    if options.out:
        publish(options.out, text)
        print(f"written to {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
