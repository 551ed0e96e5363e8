"""Every compiled operator from two threads at once, against what one thread gives; for ThreadSanitizer above all.

python -m tests.reliability.two_threads --calls 200
"""

from __future__ import annotations

import argparse
import sys
import threading
from typing import Any

import torch

from tests.reliability.operators import CALLS, Maker, operator, same


def disagreements(name: str, calls: int, threads: int = 2) -> int:
    """How many results of `threads` threads, which run the same calls at the same time, are not those of one."""
    arguments = [CALLS[name](Maker(seed)) for seed in range(calls)]
    run = operator(name)
    alone = [run(*each) for each in arguments]
    wrong = [0] * threads
    begin = threading.Barrier(threads)

    def work(thread: int) -> None:
        begin.wait()
        order = range(calls) if thread % 2 == 0 else range(calls - 1, -1, -1)
        for i in order:
            wrong[thread] += not same(run(*arguments[i]), alone[i])

    together = [threading.Thread(target=work, args=(thread,)) for thread in range(threads)]
    for thread in together:
        thread.start()
    for thread in together:
        thread.join()
    return sum(wrong)


def first_calls(threads: int = 2) -> None:
    """Tables that are made by several threads at the same time: none of them is in a cache yet."""
    begin = threading.Barrier(threads)

    def work(thread: int) -> None:
        begin.wait()
        for n in range(2, 60):
            for network in ("odd_even", "bitonic", "odd_even_merge"):
                scores = torch.full((3, n), float(thread))
                operator("transport")(scores, None, None, "matrix", network, 0, n, "cauchy", 0.0, 3.0, False)

    together = [threading.Thread(target=work, args=(thread,)) for thread in range(threads)]
    for thread in together:
        thread.start()
    for thread in together:
        thread.join()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=200, help="of each operator in each thread")
    options = parser.parse_args(arguments)
    torch.set_num_threads(2)
    first_calls()
    found: dict[str, Any] = {}
    print(f"{'operator':<40}{'calls':>8}{'differ':>8}")
    for name in CALLS:
        found[name] = disagreements(name, options.calls)
        print(f"{name:<40}{2 * options.calls:>8}{found[name]:>8}", flush=True)
    return 1 if any(found.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
