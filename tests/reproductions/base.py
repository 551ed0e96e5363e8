"""What the reproductions share: options, results that survive an interruption, tables, and verdicts on claims."""

from __future__ import annotations

import json
import math
import sys
from argparse import ArgumentDefaultsHelpFormatter, ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any, NamedTuple

import torch
from scipy import stats

ROOT = Path(__file__).resolve().parents[2]
for folder in ("examples", "tests/benchmarks"):
    if str(ROOT / folder) not in sys.path:
        sys.path.append(str(ROOT / folder))

from measure import machine  # noqa: E402

Row = dict[str, Any]
NOT_RUN = "not run"


class Help(ArgumentDefaultsHelpFormatter, RawDescriptionHelpFormatter):
    """Shows the defaults, and the description as it is written."""


def parser(name: str, description: str | None, *, seeds: int, data: str = "") -> ArgumentParser:
    """The options that all have; `data` says what the folder holds, where there is one."""
    result = ArgumentParser(name, description=description, formatter_class=Help)
    if data:
        result.add_argument("--data", type=Path, metavar="DIR", help=data)
    text = "folder of the JSON file (default: out/reproductions, with --quick out/reproductions-quick)"
    result.add_argument("--out", type=Path, metavar="DIR", help=text)
    result.add_argument("--seeds", type=int, default=seeds, help="runs of each row, of seeds 0, 1, ...")
    result.add_argument("--quick", action="store_true", help="a minute or so, to see that it works")
    return result


def default_folder(quick: bool) -> Path:
    """Not that of the published rows, which would count as done."""
    return ROOT / "out" / ("reproductions-quick" if quick else "reproductions")


def parse(arguments: ArgumentParser, argv: Sequence[str] | None, **quick: Any) -> Namespace:
    """The options, with what --quick sets where it is not given."""
    if arguments.parse_args(argv).quick:
        arguments.set_defaults(**quick)
    options = arguments.parse_args(argv)
    if options.out is None:
        options.out = default_folder(options.quick)
    bad = [k for k, v in vars(options).items() if isinstance(v, int | float) and not isinstance(v, bool) and not v > 0]
    if bad:
        arguments.error(f"--{bad[0].replace('_', '-')} must be positive, got {getattr(options, bad[0])}")
    return options


class Store:
    """The rows of an experiment, written after each one; those that are there already are not computed again.

    The settings are what a row depends on besides its key: a file with others is not gone on with, but refused.
    """

    def __init__(self, options: Namespace, experiment: str, settings: Row, peers: Sequence[str] = ()) -> None:
        self.path = options.out / f"{experiment}.json"
        # as they read back from the file
        self.content = json.loads(json.dumps({"experiment": experiment, "settings": settings}))
        self.content |= {"machine": machine(peers), "rows": []}
        if self.path.exists():
            found = json.loads(self.path.read_text())
            if found["settings"] != self.content["settings"]:
                raise OSError(f"{self.path} has rows of other settings; remove it, or name another folder with --out")
            self.content = found
        options.out.mkdir(parents=True, exist_ok=True)

    def find(self, key: Row) -> Row | None:
        """The row with this key, if it is there."""
        return next((row for row in self.content["rows"] if all(row.get(k) == v for k, v in key.items())), None)

    def row(self, key: Row, compute: Callable[[], Row]) -> Row:
        """The row with this key, computed if need be."""
        row = self.find(key)
        if row is None:
            row = {**key, **compute()}
            self.content["rows"].append(row)
            lines = ",\n".join("  " + json.dumps(row) for row in self.content["rows"])
            head = json.dumps({k: v for k, v in self.content.items() if k != "rows"}, indent=1)
            partial = self.path.with_suffix(".partial")  # an interruption while writing costs nothing
            partial.write_text(f'{head[:-2]},\n "rows": [\n{lines}\n ]\n}}\n')
            partial.replace(self.path)
        return row


def load(folder: Path, experiment: str) -> Row | None:
    """What an experiment has left in a folder."""
    path = folder / f"{experiment}.json"
    return json.loads(path.read_text()) if path.exists() else None


def values(rows: Iterable[Row], column: str, **key: Any) -> list[float]:
    """A column of the rows with this key, in the order of their seeds."""
    kept = [row for row in rows if all(row.get(k) == v for k, v in key.items())]
    return [row[column] for row in sorted(kept, key=lambda row: row.get("seed", 0))]


def shown(numbers: Sequence[float], digits: int = 1) -> str:
    """Mean and standard deviation over the seeds."""
    if not numbers:
        return ""
    if len(numbers) == 1:
        return f"{numbers[0]:.{digits}f}"
    return f"{mean(numbers):.{digits}f} ± {stdev(numbers):.{digits}f}"


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table."""
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


class Claim(NamedTuple):
    """What a paper says, and what became of it here."""

    text: str
    verdict: str


def verdict(differences: Sequence[float], unit: str = "", digits: int = 1) -> str:
    """Whether paired differences, positive for the claim, have a mean that is not 0: Student's test at 5 %."""
    if len(differences) < 2:
        return "not decided: one run" if differences else NOT_RUN
    centre, error = mean(differences), stdev(differences) / math.sqrt(len(differences))
    half = float(stats.t.ppf(0.975, len(differences) - 1)) * error
    if round(abs(centre) + half, digits) == 0:
        return f"**no difference** to within {0.5 * 10**-digits:g} ({len(differences)} pairs)"
    word = "holds" if centre - half > 0 else "does not hold" if centre + half < 0 else "not decided"
    return f"**{word}**: {centre:+.{digits}f} ± {half:.{digits}f}{unit} ({len(differences)} pairs, 95 % interval)"


def pairs(rows: Sequence[Row], column: str, better: Row, worse: Row, by: Sequence[str]) -> list[float]:
    """Differences of a column between two kinds of rows that agree in the columns `by`, means of the others."""

    def cells(kind: Row) -> dict[tuple[Any, ...], float]:
        found: dict[tuple[Any, ...], list[float]] = {}
        for row in rows:
            if all(row.get(k) == v for k, v in kind.items()):
                found.setdefault(tuple(row[k] for k in by), []).append(row[column])
        return {cell: mean(numbers) for cell, numbers in found.items()}

    first, second = cells(better), cells(worse)
    return [first[cell] - second[cell] for cell in first if cell in second]


def main(name: str, options: Namespace, run: Callable[[Namespace], str]) -> int:
    """Runs, prints the table; one line for missing data, nothing lost by Ctrl-C."""
    torch.set_num_threads(1)  # as fast as two for tensors this small, and it does not suffer on a busy machine
    try:
        print(run(options))
    except OSError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{name}: interrupted; the finished rows are kept, run it again to go on", file=sys.stderr)
        return 130
    return 0
