"""Random and malformed comparator tables, as strings given to the operators and as pairs given to `dl.Network`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

import difflayers as dl
from difflayers.sorting import networks, reference, swaps
from tests.reliability.operators import SWAPS, Finding, Maker, operator, same

PIECES = ("0", "1", "7", "-", ",", ":", " ", "99999999999999999999", "x", "\x00", "é", "-1", "0-1", "1-0", "2-2", "+1")


def _run(spec: str, n: int, m: Maker) -> torch.Tensor:
    first = m.integer(0, n)
    scores = m.normal(m.rows(), n)
    hard = bool(m.integer(0, 1))
    arguments = (scores, None, None, "values", spec, first, n)
    name = m.pick(SWAPS)
    swap = swaps.SWAPS[name]
    result = operator("transport")(*arguments, name, swap.parameter, 3.0, hard)
    expected = reference.transport(*arguments, swap, 3.0, hard)
    if not torch.allclose(result, expected, rtol=0, atol=1e-11):
        raise AssertionError(f"not the reference's result: {(result - expected).abs().max()}")
    return result


def valid(seed: int) -> str:
    """Any comparators within range, sorting or not, repeated or not: the result is the reference's."""
    m = Maker(seed)
    n = m.integer(2, 40)
    table = [sorted((m.integer(0, n - 1), m.integer(0, n - 1))) for _ in range(m.integer(0, 3 * n))]
    pairs = [(a, b) for a, b in table if a < b]
    try:
        _run(f"{n}:" + ",".join(f"{a}-{b}" for a, b in pairs), n, m)
    except (AssertionError, RuntimeError) as error:
        raise Finding(str(error)) from error
    return "computed"


def malformed(seed: int) -> str:
    """Pieces of specifications in any order: an error, or what the same table means when written properly."""
    m = Maker(seed)
    n = m.integer(0, 9)
    spec = "".join(m.pick(PIECES) for _ in range(m.integer(0, 12)))
    if m.integer(0, 2):
        spec = f"{n}:{spec}"
    try:
        result = operator("transport")(m.normal(2, n), None, None, "values", spec, 0, n, "cauchy", 0.0, 3.0, False)
    except RuntimeError as error:
        if "difflayers" not in str(error):
            raise Finding(f"{error}") from error
        return "raised"
    if n == 0:
        return "computed"  # nothing to read it for
    table = [pair.split("-") for pair in spec.partition(":")[2].split(",") if pair]
    if not all(len(pair) == 2 and pair[0].isdigit() and pair[1].isdigit() for pair in table):
        raise Finding(f"read {spec!r} as a table: {result.tolist()}")
    return "computed"


def arrays(seed: int) -> str:
    """Whatever a user may pass to `dl.Network`: its own error, or a network that sorts and runs."""
    m = Maker(seed)
    n = m.integer(0, 6)
    table: Any = [(m.integer(-2, n + 1), m.integer(-2, n + 1)) for _ in range(m.integer(0, 12))]
    sorting = [(i, i + 1) for end in range(n - 1, 0, -1) for i in range(end)]
    table = m.pick((table, sorting, sorting + sorting, sorting[:-1], np.array(sorting), np.array(table, dtype=float),
                    np.array(sorting, dtype=np.uint8), torch.tensor(table), [], [[]], [(0,)], [(0, 1, 2)], "0-1", None,
                    [("0", "1")], [(0.5, 1)], [(2**70, 2**71)], np.array(sorting)[::-1], {(0, 1)}, 5))  # fmt: skip
    wires = m.pick((None, None, n, n + 1, -1, 2.5, "4", True))
    try:
        network = dl.Network(table, wires)
    except (TypeError, ValueError) as error:
        if "difflayers" not in str(error):
            raise Finding(f"{type(error).__name__} not of difflayers for {table!r}: {error}") from error
        return "raised"
    except Exception as error:
        raise Finding(f"{type(error).__name__} for {table!r}: {error}") from error
    x = m.normal(3, network.n)
    if not same(dl.sort(x, network=network, hard=True), x.sort(-1).values):
        raise Finding(f"{table!r} does not sort")
    return "computed"


def too_large(seed: int) -> str:
    """Rows so long that no table of the network can be made: an error at once."""
    m = Maker(seed)
    network = m.pick(networks.NETWORKS)
    n = m.integer(40_000, 80_000) if network == "odd_even" else m.integer(2**23, 2**23 + 10)
    scores = torch.zeros(1, 1).expand(1, n)
    try:
        operator("transport")(scores, None, None, "values", network, 0, 1, "cauchy", 0.0, 3.0, False)
    except RuntimeError as error:
        if "too many comparators" in str(error):
            return "raised"
        raise Finding(str(error)) from error
    raise Finding("computed")


CASES: dict[str, Callable[[int], str]] = {
    "valid": valid,
    "malformed": malformed,
    "arrays": arrays,
    "too large": too_large,
}
