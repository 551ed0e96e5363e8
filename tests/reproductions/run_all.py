"""Runs all reproductions, one after another, and writes the page; what is there already is not run again.

Results go to out/reproductions and out/reproductions.md; --out docs/reproductions adds to the published ones. Ctrl-C
stops it; run again, it goes on. Without --data the digits are scikit-learn's and the image pairs made up.
"""

from __future__ import annotations

import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Sequence
from pathlib import Path

import write_page
from base import default_folder, main

FOLDERS = {
    "sort_numbers": "mnist", "error_free_swaps": "mnist", "reinmax_autoencoders": "mnist", "learned_sampling": "robust",
}  # fmt: skip


def run(argv: Sequence[str] | None = None) -> int:
    """The exit status of the first that fails, or 0."""
    parser = ArgumentParser("run_all.py", description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    text = "folder with mnist/ (idx files) and robust/ (two_view_castle.npz, two_view_herzjesu.npz)"
    parser.add_argument("--data", type=Path, metavar="DIR", help=text)
    parser.add_argument("--out", type=Path, metavar="DIR", help="of the JSON files; the page is DIR.md")
    parser.add_argument("--seeds", type=int, help="runs of each row (default: as for each script)")
    parser.add_argument("--quick", action="store_true", help="minutes in place of hours")
    options = parser.parse_args(argv)
    common = ["--quick"] * options.quick
    common += ["--seeds", str(options.seeds)] if options.seeds is not None else []
    common += ["--out", str(options.out)] if options.out else []
    folder = options.out or default_folder(options.quick)
    status = 0
    for section in write_page.SECTIONS:
        name = section.module.EXPERIMENT
        where = ["--data", str(options.data / FOLDERS[name])] if options.data and name in FOLDERS else []
        print(f"\n{section.title}\n", flush=True)
        found = main(f"{name}.py", section.module.options([*common, *where]), section.module.run)
        status = status or found
        if found == 130:  # Ctrl-C is meant for all of them
            return status
    return write_page.main(["--results", str(folder)]) or status


if __name__ == "__main__":
    sys.exit(run())
