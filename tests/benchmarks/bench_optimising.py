"""The benchmarks of the optimising family in one page: each script of a section runs in a process of its own.

    make bench            all benchmarks, these into docs/benchmarks-optimising.md
    python tests/benchmarks/bench_optimising.py --quick
    python tests/benchmarks/bench_optimising.py --sections oracles solvers --out docs/benchmarks-optimising.md

Sections that are not asked for stay as they are in the page, each with the machine that it was measured on. PyEPO goes
beside the package (`pip install --no-deps --target DIR pyepo==2.2.7 pathos dill multiprocess pox ppft`, tqdm and
scikit-learn where they are missing; then PYTHONPATH=DIR): without it the figures are ours alone, and the page says so.
"""

from __future__ import annotations

import argparse
import ast
import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from pages import publish

HERE, ROOT = Path(__file__).resolve().parent, Path(__file__).resolve().parents[2]
TESTS = ("tests/oracles/test_graph_oracles.py", "tests/oracles/test_knapsack.py", "tests/rules/test_against_pyepo.py",
         "tests/surrogates/test_against_pyepo.py", "tests/surrogates/test_surco.py")  # fmt: skip
ALONE = "**PyEPO is not installed here, so that nothing is compared with it in this section.**"
INTRODUCTION = """# Benchmarks: optimising

Printed by `make bench`, whose bars are those that were set before the work began: an epoch of SPO+ or Blackbox 5, 10
and 50 times faster than PyEPO's on paths in 5x5, 12x12 and 30x30 grids, and 5 times faster on a knapsack of 50 items;
each loss's regret equal to that of PyEPO's within its confidence interval; an iteration of SurCo 20 times faster than
that of its paper's script, which only many starts at once reach."""


class Section(NamedTuple):
    """A heading, the script below it, its arguments with --quick, whether it compares with PyEPO."""

    title: str
    script: str
    quick: tuple[str, ...]
    arguments: tuple[str, ...] = ()
    peer: bool = True


SECTIONS = {
    "training": Section("Training: an epoch beside PyEPO's", "bench_training.py", ("--rows", "64", "--seconds", "0.3")),
    "oracles": Section("Graph oracles", "bench_oracles.py", ("--quick",), ("--untested",)),
    "solvers": Section("Oracles on OR-Tools", "bench_solvers.py", ("--seconds", "0.3")),
    "surco": Section("SurCo", "bench_surco.py", ("--rounds", "2"), peer=False),
    "regret": Section("Predict, then optimise: regrets beside PyEPO's", "bench_regret.py", ("--quick",)),
}


def about(script: str) -> str:
    """What the script says of itself, but how to call it."""
    text = ast.get_docstring(ast.parse((HERE / script).read_text())) or ""
    return "\n\n".join(part for part in text.split("\n\n") if not part.startswith("    "))


def measured(section: Section, quick: bool) -> str:
    """The text of a section, from a run of its script."""
    arguments = [*section.arguments, *(section.quick if quick else ())]
    run = subprocess.run([sys.executable, str(HERE / section.script), *arguments], stdout=subprocess.PIPE, text=True)
    if run.returncode != 0:
        raise SystemExit(f"bench_optimising: {section.script} failed with status {run.returncode}")
    return filled(section, run.stdout, alone=section.peer and importlib.util.find_spec("pyepo") is None)


def filled(section: Section, printed: str, alone: bool = False) -> str:
    """A section whose script printed this."""
    parts = [f"## {section.title}", ALONE if alone else "", about(section.script), printed.strip()]
    return "\n\n".join(part for part in parts if part)


def kept(page: str) -> dict[str, str]:
    """The sections of a page by their headings."""
    found = {}
    for part in page.split("\n## ")[1:]:
        title, _, text = part.partition("\n")
        found[title] = f"## {title}\n{text}".strip()
    return found


def main(arguments: list[str] | None = None) -> int:
    """Runs the benchmarks; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    there = [name for name, section in SECTIONS.items() if (HERE / section.script).exists()]
    parser.add_argument("--sections", nargs="*", choices=there, default=there, metavar="NAME", help=", ".join(there))
    parser.add_argument("--quick", action="store_true", help="a minute or two, figures that mean little")
    parser.add_argument("--out", type=Path, help="also write the page to this Markdown file")
    parser.add_argument("--untested", action="store_true", help="do not run the tests of what is timed first")
    options = parser.parse_args(arguments)
    if not options.untested:
        tests = [sys.executable, "-m", "pytest", "-q", "-x", *TESTS]
        if subprocess.run(tests, cwd=ROOT, check=False).returncode != 0:
            print("bench_optimising: the tests fail; numbers of what is wrong are not reported", file=sys.stderr)
            return 1
    text, page = "", kept(options.out.read_text()) if options.out and options.out.exists() else {}
    for name in options.sections:
        print(f"bench_optimising: {name}", file=sys.stderr, flush=True)
        page[SECTIONS[name].title] = measured(SECTIONS[name], options.quick)
        text = "\n\n".join([INTRODUCTION, *(page[s.title] for s in SECTIONS.values() if s.title in page)]) + "\n"
        if options.out:
            publish(options.out, text)  # after each section: some take long
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
