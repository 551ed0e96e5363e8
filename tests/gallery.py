"""Runs every example, or interrupts every example, and prints what came of it.

    make examples                     each with --quick; ARGS= for the full length
    make interrupt                    each several times, with Ctrl-C at several moments
    python tests/gallery.py rank_digits many_machines --interrupt

The exit status is 1 if an example failed: it must end with status 0 and leave a picture. After Ctrl-C, that is SIGINT
to it and to all processes that it has started, it must end with status 0 or 130 and show no traceback; Ctrl-C is
pressed again every ten seconds, as some end one training each time and then show what they have. Options after -- go
to the examples.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[1] / "examples"
MOMENTS = (0.15, 0.5, 1.0, 1.5, 2.5, 4.0, 6.0, 9.0)  # seconds after the start
PATIENCE, PRESSES = 10.0, 3  # seconds until Ctrl-C is pressed again, at most so many times: some end one training each


def examples() -> list[str]:
    """The names of all scripts that are examples; the others are parts of them."""
    return [
        path.stem for path in sorted(FOLDER.glob("*.py")) if "__main__" in path.read_text() and path.stem != "command"
    ]


def start(name: str, options: list[str], **pipes: int) -> subprocess.Popen[str]:
    """An example in a session of its own, with a terminal's width."""
    command = [sys.executable, "-W", "ignore", str(FOLDER / f"{name}.py"), *options]
    return subprocess.Popen(command, text=True, start_new_session=True, **pipes)


def run(name: str, options: list[str]) -> str | None:
    """Runs an example to its end, its output shown; what was wrong, if anything."""
    out = Path(options[options.index("--out") + 1])
    before = time.time()
    process = start(name, options)
    try:
        status = process.wait()
    except KeyboardInterrupt:
        os.killpg(process.pid, signal.SIGINT)
        process.wait(PATIENCE)
        raise
    if status != 0:
        return f"ended with status {status}"
    pictures = [path for path in out.glob("*.png") if path.stat().st_mtime >= before - 1]
    return None if pictures else f"left no picture in {out}"


def interrupt(name: str, moment: float, options: list[str]) -> tuple[str, str | None]:
    """Starts an example, interrupts it; what it did, and what was wrong with that."""
    process = start(name, options, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    begun, output, errors, presses = time.perf_counter(), None, "", 0
    while output is None and presses <= PRESSES:
        try:
            output, errors = process.communicate(timeout=PATIENCE if presses else moment)
        except subprocess.TimeoutExpired:
            begun = begun if presses else time.perf_counter()
            os.killpg(process.pid, signal.SIGINT if presses < PRESSES else signal.SIGKILL)
            presses += 1
    if output is None:
        process.communicate()
        return "did not stop", f"still ran {PATIENCE:g} s after Ctrl-C was pressed {PRESSES} times"
    if presses == 0:
        return "had ended", None
    did = f"{process.returncode} after {time.perf_counter() - begun:.1f} s" + f", pressed {presses} times" * (
        presses > 1
    )
    if "Traceback" in errors + output or "Exception ignored" in errors:
        return did, "a traceback:\n" + errors
    return did, None if process.returncode in (0, 130) else f"status {process.returncode}: {errors}"


def main(arguments: list[str] | None = None) -> int:
    """Runs or interrupts; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="examples, default: all")
    parser.add_argument("--interrupt", action="store_true", help="send SIGINT at several moments")
    parser.add_argument("--moments", type=float, nargs="+", default=MOMENTS, help="of it, in seconds")
    parser.add_argument("--out", default="out", help="folder for the pictures, default out")
    given = sys.argv[1:] if arguments is None else arguments
    at = given.index("--") if "--" in given else len(given)
    options, extra = parser.parse_args(given[:at]), given[at + 1 :]
    unknown = set(options.names) - set(examples())
    if unknown:
        parser.error(f"there is no example {', '.join(sorted(unknown))}; there are {', '.join(examples())}")
    lines, failed = [], 0
    for name in options.names or examples():
        if options.interrupt:
            with tempfile.TemporaryDirectory() as folder:
                results = [interrupt(name, moment, [*extra, "--out", folder]) for moment in options.moments]
            told = [f"at {m:g} s: {did}" for m, (did, _) in zip(options.moments, results, strict=True)]
            wrong = [f"at {m:g} s {w}" for m, (_, w) in zip(options.moments, results, strict=True) if w]
            line = f"{name:24}{'; '.join(told)}" + "".join(f"\n  WRONG {text}" for text in wrong)
            failed += bool(wrong)
            print(line, flush=True)
            continue
        print(f"\n=== {name}.py {' '.join(extra)}\n", flush=True)
        begun = time.perf_counter()
        wrong = run(name, [*extra, "--out", options.out])
        failed += wrong is not None
        lines.append(f"{name:24}{time.perf_counter() - begun:7.0f} s  {wrong or 'done'}")
    print("\n".join(["", *lines, f"{failed} failed" if failed else "all examples did what they should"]))
    return 1 if failed else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
