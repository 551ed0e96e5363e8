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
        self.ties: list[Tensor] = []
        for name, shape in shapes.items():
            for dim, size in enumerate(shape):
                self.of_dimension[name, dim] = torch.arange(self.count, self.count + size)
                self.count += size

    def tie(self, first: Tensor, second: Tensor) -> None:
        """Elements of the same position exist together; NONE is not tied."""
        first, second = torch.broadcast_tensors(first, second)
        first, second = compact(first, second)
        pairs = torch.stack([first.reshape(-1), second.reshape(-1)])
        pairs = pairs[:, (pairs != NONE).all(0) & (pairs[0] != pairs[1])]
        if pairs.numel():
            self.ties.append(pairs)

    def keep(self, labels: Tensor) -> None:
        """These exist always."""
        self.tie(labels, torch.tensor(ALWAYS))

    def roots(self) -> Tensor:
        """`[count]`: the smallest atom of each atom's component; 0 for what is tied to what always exists."""
        from scipy.sparse import coo_array
        from scipy.sparse.csgraph import connected_components

        pairs = torch.cat(self.ties, 1).numpy() if self.ties else np.zeros((2, 0), dtype=np.int64)
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
    shape = labels[0].shape
    for dim, size in enumerate(shape):
        if size > 1 and all(each.stride(dim) == 0 for each in labels):
            labels = tuple(each.narrow(dim, 0, 1) for each in labels)
    return labels


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
