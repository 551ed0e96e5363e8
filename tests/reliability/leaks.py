"""Whether memory grows with the number of calls: every compiled operator, valid calls and calls that raise.

    python -m tests.reliability.leaks --calls 100000

Each operator is called `calls` times in all, a third with arguments that it refuses. Resident memory is read after a
tenth of the calls, when caches and the allocator's arenas are filled, and at the end; the same is done for torch.sort,
which shows what the measurement itself amounts to. A leak of 16 bytes a call would be 1.4 MiB over 90,000 calls.
"""

from __future__ import annotations

import argparse
import gc
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tests.reliability.operators import CALLS, Maker, operator

LIMIT = 1.0  # MiB


def resident() -> float:
    """Resident memory of this process in MiB."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20


def growth(good: Callable[[], Any], bad: Callable[[], Any] | None, calls: int) -> tuple[float, int]:
    """MiB of growth after the first tenth of the calls, and how many of them raised."""
    raised, before = 0, 0.0
    for i in range(calls):
        if i == calls // 10:
            before = resident()
        if bad is None or i % 3:
            good()
            continue
        try:
            bad()
        except RuntimeError:
            raised += 1
    return resident() - before, raised


def refused(name: str, arguments: list[Any]) -> list[Any]:
    """The arguments of a call that fails as late as can be: where the operator's own code has begun to allocate."""
    result = list(arguments)
    if name.startswith(("transport", "emulated")):  # a table that is read to its last comparator
        scores = {"transport_backward": 1, "transport_double_backward": 4}.get(name.removeprefix("emulated_"), 0)
        n = arguments[scores].shape[-1]
        at = next(i for i, a in enumerate(arguments) if isinstance(a, str)) + 1
        result[at] = f"{n}:" + "0-1," * 50 + "1-0"
        return result
    last = max(i for i, a in enumerate(arguments) if isinstance(a, torch.Tensor))
    result[last] = result[last].to(torch.complex64)
    return result


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=100_000, help="of each operator")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    print(f"{'operator':<40}{'calls':>9}{'raised':>9}{'growth, MiB':>13}{'s':>7}")
    worst = -1e9
    for name in ("torch.sort", *CALLS):
        begin = time.perf_counter()
        if name in CALLS:
            call = CALLS[name](Maker(5, 8))
            wrong = refused(name, call)
            run = operator(name)
            grown, raised = growth(lambda run=run, call=call: run(*call), lambda run=run, wrong=wrong: run(*wrong),
                                   options.calls)  # fmt: skip
            worst = max(worst, grown)
        else:
            x = torch.randn(4, 16)
            grown, raised = growth(lambda x=x: x.sort(-1), None, options.calls)
        seconds = time.perf_counter() - begin
        print(f"{name:<40}{options.calls:>9}{raised:>9}{grown:>13.2f}{seconds:>7.0f}", flush=True)
    print(f"most: {worst:.2f} MiB; allowed: {LIMIT} MiB")
    return 1 if worst > LIMIT else 0


if __name__ == "__main__":
    sys.exit(main())
