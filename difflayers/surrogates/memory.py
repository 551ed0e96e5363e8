"""Every feasible solution that a search has seen, with its value."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

__all__ = ["Entry", "Memory", "keys"]

ELITE = 16


def keys(solutions: Tensor) -> list[bytes]:
    """One key for every row; solutions that differ by rounding (a solver's 0.9999999) share theirs."""
    rows = solutions.detach().flatten(1).to(device="cpu", dtype=torch.float64).numpy()
    return [row.tobytes() for row in np.rint(1e6 * rows) + 0.0]  # + 0.0 makes -0 a 0


@dataclass
class Entry:
    """A solution and what is known about it.

    Attributes:
        solution: `[*cost_shape]`.
        value: the objective's.
        costs: that it minimises, or None.
        slope: the objective's gradient there, of unit scale, or None.
        binary: whether the solution is of zeros and ones.
    """

    solution: Tensor
    value: float
    costs: Tensor | None
    slope: Tensor | None
    binary: bool


class Memory:
    """The solutions evaluated last, up to `size` of them, and the best of all.

    Attributes:
        entries: by key, oldest first.
        elite: the keys of the best few, best first.
        best: the best entry, or None.
        distinct: how many were ever added.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.entries: OrderedDict[bytes, Entry] = OrderedDict()
        self.elite: list[bytes] = []
        self.best: Entry | None = None
        self.distinct = 0

    def add(self, key: bytes, entry: Entry) -> bool:
        """Remembers an entry; whether it is the best so far. One whose value is NaN can never be."""
        self.entries[key] = entry
        self.distinct += 1
        if entry.value == entry.value:
            at = len(self.elite)
            while at > 0 and self.entries[self.elite[at - 1]].value > entry.value:
                at -= 1
            self.elite.insert(at, key)
            del self.elite[ELITE:]
        if len(self.entries) > self.size:
            oldest = next(k for k in self.entries if k not in self.elite)
            del self.entries[oldest]
        better = entry.value == entry.value and (self.best is None or entry.value < self.best.value)
        if better:
            self.best = entry
        return better

    def fitted_gradient(self, at: Tensor, neighbours: int = 256) -> Tensor:
        r"""The slope, at one solution, of a linear model of the objective fitted to the solutions nearest to it.

        Ridge regression on differences to `at`, weighted by $1 / \|x - x_0\|^2$; solved in the dual, so its cost is
        that of a system as large as the number of neighbours, whatever the number of variables.
        """
        known = [entry for entry in self.entries.values() if abs(entry.value) < float("inf")]
        if len(known) < 2:
            return torch.zeros_like(at)
        points = torch.stack([entry.solution for entry in known]).flatten(1).double()
        values = torch.tensor([entry.value for entry in known], dtype=torch.float64, device=at.device)
        differences = points - at.flatten().double()
        distances = differences.square().sum(1)
        near = distances.argsort(stable=True)[: neighbours + 1]
        here, near = near[0], near[distances[near] > 0]
        if len(near) == 0:
            return torch.zeros_like(at)
        weights = distances[near].rsqrt()
        rows = differences[near] * weights[:, None]
        targets = (values[near] - values[here]) * weights
        gram = rows @ rows.T
        gram.diagonal().add_(1e-2 * gram.diagonal().mean())  # more neighbours than directions is the usual case
        return (rows.T @ torch.linalg.solve(gram, targets)).reshape(at.shape).to(at.dtype)
