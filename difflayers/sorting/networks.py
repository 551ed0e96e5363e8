"""Sorting networks: which wires are compared, in which order.

A network on n wires is a sequence of comparators (a, b) with a < b; each puts the smaller value on
wire a and the larger on wire b. Because every comparator points the same way, a network for the next
power of two becomes one for n by leaving out the comparators that touch a wire >= n: padding with
+inf would never move. (Published code that prunes *descending* blocks does not sort at n = 22, 38,
42-46 and many more.)
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache

import numpy as np

from .. import _checks

__all__ = ["NETWORKS", "Network"]

Layer = tuple[np.ndarray, np.ndarray]  # lower wires, upper wires; disjoint within a layer

EXHAUSTIVE_LIMIT = 16  # 2^16 zero-one inputs still take milliseconds
SAMPLES = 1 << 16


def _odd_even(n: int) -> Iterable[Layer]:
    """n layers of neighbours, starting alternately at wire 0 and wire 1: n (n - 1) / 2 comparators."""
    for layer in range(n):
        lower = np.arange(layer % 2, n - 1, 2)
        yield lower, lower + 1


def _bitonic(n: int) -> Iterable[Layer]:
    """Batcher's bitonic sorter with the first layer of each merge mirrored, so that all comparators ascend."""
    wire = np.arange(n)
    block = 2
    while block < 2 * n:
        lower = wire[wire % block < block // 2]
        upper = lower - lower % block + block - 1 - lower % block
        yield lower[upper < n], upper[upper < n]
        stride = block // 4
        while stride >= 1:
            lower = wire[(wire // stride) % 2 == 0]
            lower = lower[lower + stride < n]
            yield lower, lower + stride
            stride //= 2
        block *= 2


def _odd_even_merge(n: int) -> Iterable[Layer]:
    """Batcher's odd-even merge sort (Knuth, The Art of Computer Programming 3, 5.2.2, algorithm M family)."""
    size = 1
    while size < n:
        stride = size
        while stride >= 1:
            lower = np.arange(max(n - stride, 0))
            offset = lower - stride % size
            keep = (offset >= 0) & (offset % (2 * stride) < stride)
            keep &= lower // (2 * size) == (lower + stride) // (2 * size)
            yield lower[keep], lower[keep] + stride
            stride //= 2
        size *= 2


NETWORKS = {"odd_even": _odd_even, "bitonic": _bitonic, "odd_even_merge": _odd_even_merge}


class Network:
    """A sorting network given by its comparators, checked to sort by the 0-1 principle.

    The 0-1 principle (Knuth, TAOCP 3, 5.3.4, theorem Z): a network sorts every input if and only if it
    sorts every input of zeros and ones. All 2^n of them are tried for n <= 16; above, 65,536 random ones
    of every density, which finds a network that fails on a fraction p of inputs with probability
    1 - (1 - p)^65536.

    Args:
        comparators: pairs (a, b), 0 <= a < b < n, in the order in which they act: the smaller value goes
            to wire a, the larger to wire b.
        n: number of wires; default: one more than the largest wire named.

    Attributes:
        n: number of wires.
        comparators: the pairs, as an int64 array of shape (C, 2).
        layers: the same grouped into layers of comparators that share no wire, each as early as possible.

    Raises:
        TypeError: comparators are not pairs of integers.
        ValueError: a wire is out of range, a >= b, or the network does not sort (the message shows a
            zero-one input that it leaves unsorted).

    Example:
        >>> import difflayers as dl
        >>> network = dl.sorting.Network([(0, 1), (1, 2), (0, 1)])
        >>> network.n, len(network.layers)
        (3, 3)
    """

    def __init__(self, comparators: Sequence[Sequence[int]] | np.ndarray, n: int | None = None) -> None:
        where = "difflayers.sorting.Network"
        table = np.asarray(comparators)
        if table.size == 0:
            table = np.zeros((0, 2), dtype=np.int64)
        if table.ndim != 2 or table.shape[1] != 2 or not np.issubdtype(table.dtype, np.integer):
            raise TypeError(
                f"{where}: argument 'comparators' must be pairs of integers (a, b), "
                f"got an array of shape {table.shape} and dtype {table.dtype}"
            )
        table = table.astype(np.int64)
        wires = _checks.integer(where, "n", n, minimum=0) if n is not None else int(table.max(initial=-1)) + 1
        bad = (table[:, 0] < 0) | (table[:, 0] >= table[:, 1]) | (table[:, 1] >= wires)
        if bad.any():
            a, b = table[bad.argmax()]
            raise ValueError(
                f"{where}: argument 'comparators' must hold pairs with 0 <= a < b < n = {wires}, "
                f"got ({a}, {b}); write every comparator with the smaller wire first"
            )
        self.n = wires
        self.comparators = table
        self.layers = _layered(table, wires)
        self.spec = f"{wires}:" + ",".join(f"{a}-{b}" for a, b in table.tolist())
        failure = unsorted_input(self.layers, wires)
        if failure is not None:
            raise ValueError(
                f"{where}: argument 'comparators' must be a sorting network, but it leaves the input "
                f"{failure.tolist()} unsorted; add the missing comparators"
            )

    def __repr__(self) -> str:
        return f"Network(n={self.n}, comparators={len(self.comparators)}, depth={len(self.layers)})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Network) and self.spec == other.spec

    def __hash__(self) -> int:
        return hash(self.spec)


def _layered(table: np.ndarray, n: int) -> tuple[Layer, ...]:
    """Puts each comparator into the first layer in which both of its wires are free."""
    free = [0] * n
    layers: list[list[list[int]]] = []
    for a, b in table.tolist():
        level = max(free[a], free[b])
        if level == len(layers):
            layers.append([])
        layers[level].append([a, b])
        free[a] = free[b] = level + 1
    arrays = [np.array(layer, dtype=np.int64) for layer in layers]
    return tuple((layer[:, 0], layer[:, 1]) for layer in arrays)


def unsorted_input(layers: Iterable[Layer], n: int, samples: int = SAMPLES) -> np.ndarray | None:
    """A zero-one input, shape (n,), that the layers leave unsorted; None when all that were tried sort."""
    if n <= EXHAUSTIVE_LIMIT:
        inputs = (np.arange(1 << n)[:, None] >> np.arange(n)) & 1 == 1
    else:
        random = np.random.default_rng(0)
        inputs = random.random((samples, n)) < random.random((samples, 1))
    wires = np.ascontiguousarray(inputs.T)
    for lower, upper in layers:
        low, high = wires[lower], wires[upper]
        wires[lower], wires[upper] = low & high, low | high
    failed = (wires[:-1] & ~wires[1:]).any(axis=0)
    return inputs[failed.argmax()].astype(np.int64) if failed.any() else None


def resolve(function: str, network: str | Network, n: int) -> str:
    """The specification string that the kernels take: a name, or "n:a-b,a-b,..." for a user's own table."""
    if isinstance(network, str):
        if network not in NETWORKS:
            raise ValueError(
                f"{function}: argument 'network' must be one of {', '.join(map(repr, NETWORKS))} "
                f"or a difflayers.sorting.Network, got {network!r}"
            )
        return network
    if not isinstance(network, Network):
        raise TypeError(
            f"{function}: argument 'network' must be a name ({', '.join(map(repr, NETWORKS))}) "
            f"or a difflayers.sorting.Network, got {type(network).__name__}"
        )
    if network.n != n:
        raise ValueError(
            f"{function}: argument 'network' must have as many wires as the input has elements "
            f"({n}), got a network of {network.n}"
        )
    return network.spec


@lru_cache(maxsize=64)
def layers(spec: str, n: int, first: int = 0, last: int | None = None) -> tuple[Layer, ...]:
    """The layers of a specification, without the comparators that no output wire in [first, last) depends on."""
    if spec in NETWORKS:
        full = list(NETWORKS[spec](n))
    else:
        pairs = spec.partition(":")[2]
        table = [list(map(int, pair.split("-"))) for pair in pairs.split(",")] if pairs else []
        full = list(_layered(np.array(table, dtype=np.int64).reshape(-1, 2), n))
    needed = np.zeros(n, dtype=bool)
    needed[first:last] = True
    kept: list[Layer] = []
    for lower, upper in reversed(full):
        live = needed[lower] | needed[upper]
        needed[lower[live]] = needed[upper[live]] = True
        if live.any():
            kept.append((lower[live], upper[live]))
    return tuple(reversed(kept))
