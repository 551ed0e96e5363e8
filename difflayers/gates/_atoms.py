"""Atoms: which indices of which tensors exist or vanish together.

An atom is a number. Every element of an activation carries one (`labels`), every index of every dimension of a
parameter has one. 0 is what always exists; NONE marks zeros, which may be anything. Ties between atoms are collected
and
resolved all at once: the connected components are the units that can be removed.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

__all__ = ["ALWAYS", "NONE", "Atoms", "compact", "varying"]

ALWAYS, NONE = 0, -1


class Atoms:
    """The atoms of a model's parameters and the ties between them."""

    def __init__(self, shapes: dict[str, tuple[int, ...]]) -> None:
        self.shapes = shapes
        self.count = 1
        self.of_dimension: dict[tuple[str, int], Tensor] = {}
        self.ties: list[tuple[Tensor, Tensor]] = []
        for name, shape in shapes.items():
            for dim, size in enumerate(shape):
                self.of_dimension[name, dim] = torch.arange(self.count, self.count + size)
                self.count += size

    def tie(self, first: Tensor, second: Tensor) -> None:
        """Elements of the same position exist together; NONE is not tied."""
        if first.shape != second.shape:
            first, second = torch.broadcast_tensors(first, second)
        first, second = compact(first, second)
        if first.numel() > 1 << 16:  # many of them say the same, or nothing
            pairs = torch.stack([first.reshape(-1), second.reshape(-1)])
            first, second = pairs[:, (pairs != NONE).all(0) & (pairs[0] != pairs[1])]
        self.ties.append((first.reshape(-1), second.reshape(-1)))

    def keep(self, labels: Tensor) -> None:
        """These exist always."""
        self.tie(labels, torch.tensor(ALWAYS))

    def roots(self) -> Tensor:
        """`[count]`: the smallest atom of each atom's component; 0 for what is tied to what always exists."""
        from scipy.sparse import coo_array
        from scipy.sparse.csgraph import connected_components

        pairs = np.zeros((2, 0), dtype=np.int64)
        if self.ties:
            pairs = np.stack([torch.cat(side).numpy() for side in zip(*self.ties, strict=True)])
            pairs = pairs[:, (pairs != NONE).all(0) & (pairs[0] != pairs[1])]
            self.ties = [(torch.from_numpy(pairs[0]), torch.from_numpy(pairs[1]))]
        graph = coo_array(
            (np.ones(pairs.shape[1], dtype=np.int8), (pairs[0], pairs[1])), shape=(self.count, self.count)
        )
        _, component = connected_components(graph, directed=False)
        first = np.full(component.max() + 1, self.count)
        np.minimum.at(first, component, np.arange(self.count))
        return torch.from_numpy(first[component])


def compact(*labels: Tensor) -> tuple[Tensor, ...]:
    """Tensors of one shape without the dimensions along which none of them varies by construction (stride 0): their
    size becomes 1."""
    shape, steps = labels[0].shape, [each.stride() for each in labels]
    small = [1 if n > 1 and not any(step[d] for step in steps) else n for d, n in enumerate(shape)]
    if small == list(shape):
        return labels
    return tuple(each.as_strided(small, step) for each, step in zip(labels, steps, strict=True))


def varying(labels: Tensor) -> list[int]:
    """The dimensions along which labels differ, NONE aside."""
    (small,) = compact(labels)
    result = []
    for dim, size in enumerate(small.shape):
        if size > 1:
            first, rest = small.narrow(dim, 0, size - 1), small.narrow(dim, 1, size - 1)
            if bool(((first != rest) & (first != NONE) & (rest != NONE)).any()):
                result.append(dim)
    return result
