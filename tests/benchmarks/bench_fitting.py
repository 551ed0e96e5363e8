"""The benchmarks of the fitting family in one page: each script of a section runs in a process of its own.

    make bench            all benchmarks, these into docs/benchmarks-fitting.md
    python tests/benchmarks/bench_fitting.py --quick
    python tests/benchmarks/bench_fitting.py --sections solvers scoring --out docs/benchmarks-fitting.md

Sections that are not asked for stay as they are in the page, each with the machine that it was measured on. Real pairs
and problems need `--data`, the folder two_view_castle.npz and the others are in. Peers that are not installed (kornia
0.9.0, poselib 2.0.5, opencv-python-headless; `make bench` does it) are left out.
"""

from __future__ import annotations

import argparse
import ast
import importlib.util
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

from pages import publish

HERE, ROOT = Path(__file__).resolve().parent, Path(__file__).resolve().parents[2]
TESTS = ("tests/ransac/test_scoring.py", "tests/ransac/test_epipolar_solvers.py", "tests/ransac/test_ransac.py")
PEERS = {"kornia": "kornia", "poselib": "poselib", "cv2": "opencv-python-headless"}
INTRODUCTION = """# Benchmarks: fitting

Printed by `make bench`; the bars are those that were set before the work began, and each table says which of them are
reached. Times are CPU time on one thread, unless a section says otherwise. Settings were tuned on synthetic
scenes of other seeds and on the Herz-Jesus pairs, with one exception: that a search resamples the inliers of its best
model, and how often, was decided on F with 20 % inliers, seeds 0 to 15, which are among those reported."""


class Section(NamedTuple):
    """A heading, the bar, the script below it, its arguments, those with --quick, whether it needs the data."""

    title: str
    bar: str
    script: str
    arguments: tuple[str, ...] = ()
    quick: tuple[str, ...] = ()
    data: bool = False


SECTIONS = {
    "solvers": Section(
        "Minimal solvers", "Bar: the 5-point solver forward and backward not slower than kornia's (aim: 5 times "
        "faster) and forward at most 3 times PoseLib's C++.", "bench_ransac_solvers.py", quick=("--quick",),
    ),
    "scoring": Section(
        "Residual and score", "Bar: 1024 x 2000 with MSAC in at most 2 ms on one core, memory of models and points.",
        "bench_ransac_scoring.py", ("--untested",), ("--quick",),
    ),
    "grid": Section(
        "Whole estimates: synthetic scenes", "Bar, for E and F of 2,000 points: accuracy and success not below the "
        "best of OpenCV's USAC_MAGSAC and PoseLib; at most 3 times PoseLib's time; 5 times faster than kornia.",
        "bench_ransac.py", quick=("--trials", "4"),
    ),
    "real": Section(
        "Whole estimates: castle pairs", "Bar: not below the best of OpenCV's USAC_MAGSAC and PoseLib.",
        "bench_ransac.py", ("--no-grid", "--kinds", "E", "F"), ("--every", "30"), data=True,
    ),
    "problems": Section(
        "Homographies, rigid transforms, camera poses", "Bar: success on every problem that any of the peers solves.",
        "bench_ransac_data.py", data=True,
    ),
    "learning": Section(
        "Learning", "Bar: from 30 % inliers, 128 hypotheses and 150 steps to an inlier share of 0.98 (the published "
        "straight-through estimator: 0.65).", "bench_ransac_learning.py", quick=("--quick",),
    ),
    "batch": Section(
        "A batch of 64", "Bar: one call at least 4 times faster than 64 calls.", "bench_ransac_batch.py",
        quick=("--seconds", "0.3"),
    ),
    "gradient": Section(
        "The gradient of the refined model", "No bar.", "bench_ransac_gradient.py", quick=("--seconds", "0.3"),
    ),
}  # fmt: skip


def about(script: str) -> str:
    """What the script says of itself, but how to call it."""
    text = ast.get_docstring(ast.parse((HERE / script).read_text())) or ""
    return "\n\n".join(part for part in text.split("\n\n") if not part.startswith("    "))


def peers() -> str:
    """The versions of the peers, a line of a list."""
    found = []
    for module, package in PEERS.items():
        try:
            found.append(f"{package} {version(package)}" if importlib.util.find_spec(module) else f"{package} absent")
        except PackageNotFoundError:
            found.append(f"{package} of unknown version")
    return f"- peers: {', '.join(found)}"


def filled(section: Section, printed: str) -> str:
    """A section whose script printed this."""
    shown = "\n".join(f"#{line}" if line.startswith("## ") else line for line in printed.strip().splitlines())
    return "\n\n".join([f"## {section.title}", section.bar, about(section.script), peers(), shown])


def measured(section: Section, quick: bool, data: Path | None) -> str:
    """The text of a section, from a run of its script."""
    arguments = [
        *section.arguments,
        *(section.quick if quick else ()),
        *(["--data", str(data)] if section.data else []),
    ]
    run = subprocess.run([sys.executable, str(HERE / section.script), *arguments], stdout=subprocess.PIPE, text=True)
    if run.returncode != 0:
        raise SystemExit(f"bench_fitting: {section.script} failed with status {run.returncode}")
    return filled(section, run.stdout)


def kept(page: str) -> dict[str, str]:
    """The sections of a page by their headings."""
    found = {}
    for part in page.split("\n## ")[1:]:
        title, _, text = part.partition("\n")
        found[title] = f"## {title}\n{text}".strip()
    return found


def assembled(page: dict[str, str]) -> str:
    """The page of these sections."""
    return "\n\n".join([INTRODUCTION, *(page[s.title] for s in SECTIONS.values() if s.title in page)]) + "\n"


def main(arguments: list[str] | None = None) -> int:
    """Runs the benchmarks; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = list(SECTIONS)
    parser.add_argument("--sections", nargs="*", choices=names, default=names, metavar="NAME", help=", ".join(names))
    parser.add_argument("--quick", action="store_true", help="a few minutes, figures that mean little")
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared/data/robust", help="folder of the real data")
    parser.add_argument("--out", type=Path, help="also write the page to this Markdown file")
    parser.add_argument("--untested", action="store_true", help="do not run the tests of what is timed first")
    options = parser.parse_args(arguments)
    if not options.untested:
        tests = [sys.executable, "-m", "pytest", "-q", "-x", *TESTS]
        if subprocess.run(tests, cwd=ROOT, check=False).returncode != 0:
            print("bench_fitting: the tests fail; numbers of what is wrong are not reported", file=sys.stderr)
            return 1
    page = kept(options.out.read_text()) if options.out and options.out.exists() else {}
    text = assembled(page)
    for name in options.sections:
        section = SECTIONS[name]
        if section.data and not options.data.is_dir():
            print(f"bench_fitting: {name} is left out, as {options.data} is absent", file=sys.stderr)
            continue
        print(f"bench_fitting: {name}", file=sys.stderr, flush=True)
        page[section.title] = measured(section, options.quick, options.data)
        text = assembled(page)
        if options.out:
            publish(options.out, text)  # after each section: some take long
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
