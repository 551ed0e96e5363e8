"""NeuralSort: a softmax of how well each score fits each position."""

from __future__ import annotations

import torch
from torch import Tensor

from .._choice import Temperature
from . import _matrix
from ._base import Subset, SubsetModule, precise

__all__ = ["NeuralSortTopK", "neuralsort", "neuralsort_topk"]


def neuralsort(x: Tensor, temperature: Temperature = 1.0, *, descending: bool = False, dim: int = -1) -> Tensor:
    r"""The relaxed permutation matrix of NeuralSort: `P[..., i, j]` is the weight of input j at output i.

    $P_{ij} = \mathrm{softmax}_j\big(((2 i - n - 1)\, x_j - \sum_l |x_j - x_l|) / \tau\big)$, i = 1 ... n.

    A reference relaxation, to compare `difflayers.permutation` with: rows sum to 1, columns do not, so an element can
    be used more than once or not at all, and the sum of the values is not conserved.

    Args:
        x: `[..., n]`, any floating dtype; -inf = masked.
        temperature: larger is softer; a positive number or a tensor broadcastable to x with size 1 at `dim` (it gets
            a gradient).
        descending: the ascending matrix with its rows flipped.
        dim: the dimension to sort along.

    Returns:
        `[..., n, n]` in the dtype of x, where ... are x's dimensions without `dim`; rows sum to 1. The columns of
        masked elements and the rows of the positions that they fill (the first ones) are 0.

    Raises:
        TypeError: x or a tensor temperature is not a floating-point tensor; an argument has the wrong type.
        ValueError: temperature or dim out of range; NaN or +inf; a row of -inf throughout.

    Cost:
        O(n^2) time and memory per row.

    Transforms:
        backward, double backward, torch.func.grad/vmap/jacrev, torch.compile(fullgraph=True).

    References:
        Grover, Wang, Zweig, Ermon, "Stochastic Optimization of Sorting Networks via Continuous Relaxations",
        ICLR 2019, arXiv 1903.08850 (whose rows are descending).

    Example:
        >>> import torch, difflayers as dl
        >>> from difflayers import subsets
        >>> subsets.neuralsort(torch.tensor([3.0, 1.0, 2.0]), 0.1).round(decimals=3)
        tensor([[0., 1., 0.],
                [0., 0., 1.],
                [1., 0., 0.]])
    """
    return _matrix.matrix("difflayers.subsets.neuralsort", x, temperature, descending, dim, _fit)


def _fit(theta: Tensor, present: Tensor | None, positions: int) -> Tensor:
    # sums of n distances, of which differences matter
    theta = theta.to(precise(theta.device))
    distances = (theta[:, :, None] - theta[:, None]).abs()
    count: int | Tensor = theta.shape[1]
    if present is not None:
        distances = torch.where(present[:, None], distances, 0.0)
        count = present.sum(1)[:, None, None]
    from_best = torch.arange(positions, 0, -1, device=theta.device)[:, None]  # 1 = the largest
    return (count + 1 - 2 * from_best) * theta[:, None] - distances.sum(2)[:, None]


def neuralsort_topk(
    logits: Tensor,
    k: int,
    temperature: Temperature = 1.0,
    *,
    hard: bool = False,
    dim: int = -1,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""The sum of the rows of `neuralsort` for the k best positions: $m_j = \sum_{i > n - k} P_{ij}$.

    A reference relaxation, for comparison.

    Args:
        logits: `[..., n]`, any floating dtype; -inf = masked, never a member.
        k: in [0, n]; at most the number of elements that are not masked.
        temperature: larger is softer; a positive number or a tensor broadcastable to logits with size 1 at `dim` (it
            gets a gradient).
        hard: the exact k largest forward, the gradient of the relaxation backward.
        dim: the dimension to choose along.
        generator: unused, there is no noise; all k-of-n functions take it.

    Returns:
        The shape and dtype of logits, at least 0, summing to k; **entries can exceed 1**, as the matrix's columns do
        not sum to 1. Where only k elements are present they are the members, exactly.

    Raises:
        TypeError: logits or a tensor temperature is not a floating-point tensor; an argument has the wrong type.
        ValueError: k, temperature or dim out of range; NaN or +inf logits; fewer than k elements present.

    Cost:
        O(n^2) time and memory per row.

    Transforms:
        backward, double backward, torch.func.grad/vmap/jacrev, torch.compile(fullgraph=True).

    References:
        Grover, Wang, Zweig, Ermon, "Stochastic Optimization of Sorting Networks via Continuous Relaxations",
        ICLR 2019, arXiv 1903.08850 (whose rows are descending).

    Example:
        >>> import torch, difflayers as dl
        >>> from difflayers import subsets
        >>> subsets.neuralsort_topk(torch.tensor([1.0, 3.0, 0.0, 2.0]), 2, 0.1).round(decimals=3)
        tensor([0., 1., 0., 1.])
    """
    function = "difflayers.subsets.neuralsort_topk"
    choice = Subset(function, logits, k, temperature, hard=hard, dim=dim, generator=generator)
    return choice.finish(lambda: _matrix.last_rows(choice, _fit, choice.k).sum(1))


class NeuralSortTopK(SubsetModule):
    """`difflayers.subsets.neuralsort_topk` as a module.

    Args:
        k, hard, dim: see `difflayers.subsets.neuralsort_topk`.
        temperature: a number, a tensor (kept as a buffer) or a schedule of `difflayers.schedules`.

    Returns:
        The module. Called as `module(logits, *, generator=None)`: the membership.

    Raises:
        As the function, at construction where the input is not needed.

    Cost, transforms, references: see the function.

    Example:
        >>> import torch, difflayers as dl
        >>> from difflayers import subsets
        >>> subsets.NeuralSortTopK(2, hard=True)(torch.tensor([1.0, 3.0, 0.0, 2.0]))
        tensor([0., 1., 0., 1.])
    """

    function = "difflayers.subsets.NeuralSortTopK"

    def forward(self, logits: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        return neuralsort_topk(logits, self.k, self.temperature, hard=self.hard, dim=self.dim, generator=generator)
