"""What all examples share around their own work: options, errors in one line, Ctrl-C, the name of the picture.

An example imports this before what takes long to load: from here on Ctrl-C ends it without a traceback.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from argparse import ArgumentDefaultsHelpFormatter, ArgumentParser, HelpFormatter, Namespace
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

INTERRUPTED = 130  # what a shell reports of a program that SIGINT has ended


class Failed(Exception):
    """Ends an example with one line and an exit status."""

    def __init__(self, message: str, status: int = 2) -> None:
        super().__init__(message)
        self.status = status


class Parser(ArgumentParser):
    """The options of an example; --out, --seed and --quick are those of all.

    Args:
        script: the example's `__file__`.
        description: its `__doc__`.
        seed: what the seed is of.
        quick: the values that --quick gives to options.
        takes: how long that is.
        style: of --help.
    """

    def __init__(
        self,
        script: str,
        description: str | None,
        *,
        seed: str,
        quick: dict[str, Any],
        takes: str = "a few seconds",
        style: type[HelpFormatter] = ArgumentDefaultsHelpFormatter,
    ) -> None:
        super().__init__(Path(script).name, description=description, formatter_class=style)
        self.seed, self.quick, self.takes = seed, quick, takes
        self.add_argument("--out", type=Path, default=Path("out"), metavar="DIR", help="folder for the picture")

    def options(self, argv: Sequence[str] | None) -> Namespace:
        """What was given, with --quick where it was not, and the defaults elsewhere."""
        values = {name: value if isinstance(value, list) else [value] for name, value in self.quick.items()}
        settings = " ".join(f"--{name} {' '.join(map(str, several))}" for name, several in values.items())
        self.add_argument("--seed", type=int, default=0, help=self.seed)
        self.add_argument("--quick", action="store_true", help=f"{self.takes}: {settings} where not given")
        if self.parse_args(argv).quick:
            self.set_defaults(**self.quick)
        options = self.parse_args(argv)
        if not 0 <= options.seed < 2**32:
            self.error(f"--seed must be at least 0 and less than 2^32, got {options.seed}")
        return options


def run(script: str, work: Callable[[Namespace], Path], options: Namespace, *errors: type[Exception]) -> int:
    """Does the work of an example, which returns the path of its picture, and returns the exit status.

    That is 0, that of `Failed`, 2 after an error of the data, the files or the solvers or one of those kinds, and 130
    after Ctrl-C.
    """
    from difflayers import Error

    started, as_script = time.perf_counter(), signal.getsignal(signal.SIGINT) is _leave
    if as_script:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        options.out.mkdir(parents=True, exist_ok=True)
        path = work(options)
        print(f"Wrote {path} ({time.perf_counter() - started:.0f} s).", flush=True)
    except (Failed, OSError, Error, *errors) as error:
        print(f"{Path(script).name}: {error}", file=sys.stderr)
        return error.status if isinstance(error, Failed) else 2
    except KeyboardInterrupt:
        return INTERRUPTED
    finally:
        if as_script:  # threads and processes are still to be joined
            signal.signal(signal.SIGINT, _leave)
    return 0


def _leave(signum: int, frame: Any) -> None:
    """At once: an exception would be turned into others by what it interrupts, an import or the interpreter's end."""
    os._exit(INTERRUPTED)


def _is_script() -> bool:
    """Whether an example was started, and not a test or a worker of its own."""
    path = getattr(sys.modules.get("__main__"), "__file__", None)
    return path is not None and Path(path).resolve().parent == Path(__file__).resolve().parent


# where SIGINT is ignored, as it is for a job in the background, it stays so
if _is_script() and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, _leave)
