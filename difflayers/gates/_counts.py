"""The cost of a model as a function of how many units each group keeps, for many choices at once."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from ._branches import inside
from .cost import Cost

__all__ = ["Counts"]

ENUMERATED = 200_000  # combinations that are looked at one and all


class Counts:
    """Units are kept in the order of their scores, so that a choice is one number for each group.

    A residual branch is worth its score for each unit within it; units within branches that are closed, or whose score
    is below 0, are worth nothing.

    Attributes:
        allowed: for each group the counts that may be kept, ascending.
        gains: for each group the sum of the scores of what is kept, by count `[size + 1]`.
        within: for each group, the places of the branches that it is in.
        branch: for each group, whether it is a branch.
    """

    def __init__(self, cost: Cost, scores: dict[str, Tensor], floors: dict[str, int], round_to: dict[str, int]) -> None:
        self.names = list(cost.sizes)
        self.sizes = np.array([cost.sizes[name] for name in self.names])
        self.order = {name: torch.argsort(scores[name], descending=True, stable=True) for name in self.names}
        self.sorted_scores = [scores[name][self.order[name]].double().numpy() for name in self.names]
        self.gains = [np.concatenate([[0.0], np.cumsum(score)]) for score in self.sorted_scores]
        groups = cost.gated.groups
        place = {name: g for g, name in enumerate(self.names)}
        self.branch = np.array([groups[name].branch is not None for name in self.names])
        self.within = [
            [place[b] for b in inside(groups[name], groups.values())] if self.branch.any() else []
            for name in self.names
        ]
        self.counted = self.sizes.copy()  # units that a group's gain is of
        for b in np.flatnonzero(self.branch):
            held = sum(
                n for n, outer, of in zip(self.sizes, self.within, self.branch, strict=True) if b in outer and not of
            )
            self.counted[b] = max(1, held)
            self.gains[b] = self.gains[b] * self.counted[b]
        self.allowed = [
            np.array([k for k in range(floors[name], size + 1) if k % round_to[name] == 0 or k == size])
            for name, size in cost.sizes.items()
        ]
        buffers = dict(cost.named_buffers())
        self.amounts = buffers["amounts"].numpy(force=True)
        self.rows = buffers["rows"].numpy(force=True)
        self.tables: list[tuple[int, int, np.ndarray]] = []  # (factor, group, share by count)
        self.constants = np.array([factor.constant / factor.whole for factor in cost.factors] + [1.0])
        for i, factor in enumerate(cost.factors):
            for name, counts in factor.counts.items():
                kept = counts[self.order[name]].double().numpy() / factor.whole
                self.tables.append((i, self.names.index(name), np.concatenate([[0.0], np.cumsum(kept)])))

    def cost(self, counts: np.ndarray) -> np.ndarray:
        """The share of the cost `[choices]` at counts `[choices, groups]`."""
        left = np.repeat(self.constants[None], len(counts), 0)
        for factor, group, table in self.tables:
            left[:, factor] += table[counts[:, group]]
        return left[:, self.rows].prod(2) @ self.amounts

    def gain(self, counts: np.ndarray) -> np.ndarray:
        """The sum of scores kept `[choices]`."""
        total = np.zeros(len(counts))
        for g, gain in enumerate(self.gains):
            total += gain[counts[:, g]] * self.there(counts, g)
        return total

    def there(self, counts: np.ndarray, group: int) -> np.ndarray:
        """Whether what a group is in is there, and wanted `[choices]`."""
        result = np.ones(len(counts))
        for b in self.within[group]:
            result = result * (counts[:, b] if self.gains[b][1] >= 0 else 0)
        return result

    def at(self, indices: np.ndarray) -> np.ndarray:
        """Counts of indices into `allowed`."""
        return np.stack([allowed[indices[..., g]] for g, allowed in enumerate(self.allowed)], -1)

    @property
    def last(self) -> np.ndarray:
        """The indices of the whole model."""
        return np.array([len(allowed) - 1 for allowed in self.allowed])

    def combinations(self) -> float:
        """How many choices there are."""
        return float(np.prod([float(len(allowed)) for allowed in self.allowed]))

    def all(self) -> Iterator[np.ndarray]:
        """Every choice, in pieces."""
        total, shape = int(self.combinations()), tuple(len(allowed) for allowed in self.allowed)
        for start in range(0, total, 20_000):
            yield np.stack(np.unravel_index(np.arange(start, min(start + 20_000, total)), shape), -1)
