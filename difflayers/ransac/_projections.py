"""The nearest matrix of rank 2, the nearest essential matrix, the smallest eigenvector: their exact derivatives.

PyTorch's derivatives of the singular value and eigenvalue decompositions divide by the gaps between all values; an
essential matrix has two equal ones. The results here depend on one gap only, and it is the only one divided by.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["nearest_essential", "nearest_rank_two", "smallest_eigenvector"]


def nearest_rank_two(matrix: Tensor) -> Tensor:
    """`[..., 3, 3]` with the smallest singular value set to 0."""
    return _Nearest.apply(matrix, False)


def nearest_essential(matrix: Tensor) -> Tensor:
    """`[..., 3, 3]` with the singular values set to 1 / sqrt 2, 1 / sqrt 2 and 0; NaN where not finite."""
    return _Nearest.apply(matrix, True)


def smallest_eigenvector(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """The unit eigenvector `[..., n]` of symmetric matrices `[..., n, n]`, and whether it is unique to rounding."""
    return _SmallestEigenvector.apply(matrix)


class _Nearest(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, matrix: Tensor, essential: bool) -> Tensor:
        finite = matrix.isfinite().all(-1).all(-1)[..., None, None]
        left, values, right = torch.linalg.svd(torch.where(finite, matrix, torch.eye(3).to(matrix)))
        kept = torch.full_like(values, 0.5**0.5) if essential else values.clone()
        kept[..., 2] = 0
        ctx.essential = essential
        ctx.save_for_backward(left, values, kept, right, finite)
        return torch.where(finite, (left * kept.unsqueeze(-2)) @ right, torch.nan)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        # In the frames of the singular vectors a change P of the matrix changes the result by Q, a symmetric map:
        # Q_i3 = k_i (s_i P_i3 + s_3 P_3i) / (s_i^2 - s_3^2) and the same with (i3, 3i) exchanged; the leading block as
        # it is for rank 2, and its antisymmetric part 2 k / (s_1 + s_2) times for the essential matrix.
        left, values, kept, right, finite = ctx.saved_tensors
        gradient = torch.where(finite, gradient, 0)
        p = left.mT @ gradient @ right.mT
        gap = values[..., :2].square() - values[..., 2:].square()
        defined = gap > 1e-12 * values[..., :1].square()
        factor = torch.where(defined, kept[..., :2] / torch.where(defined, gap, 1.0), 0)
        q = torch.zeros_like(p)
        column, row = p[..., :2, 2], p[..., 2, :2]
        q[..., :2, 2] = factor * (values[..., :2] * column + values[..., 2:] * row)
        q[..., 2, :2] = factor * (values[..., 2:] * column + values[..., :2] * row)
        if ctx.essential:
            total = values[..., 0] + values[..., 1]
            turn = kept[..., 0] * (p[..., 0, 1] - p[..., 1, 0]) / torch.where(total > 0, total, 1.0)
            q[..., 0, 1], q[..., 1, 0] = turn, -turn
        else:
            q[..., :2, :2] = p[..., :2, :2]
        return left @ q @ right, None


class _SmallestEigenvector(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, matrix: Tensor) -> tuple[Tensor, Tensor]:
        finite = matrix.isfinite().all(-1).all(-1)
        size = matrix.shape[-1]
        values, vectors = torch.linalg.eigh(torch.where(finite[..., None, None], matrix, torch.eye(size).to(matrix)))
        gap = values[..., 1:] - values[..., :1]
        unique = finite & (gap[..., 0] > 1e-13 * values[..., -1])
        inverse_gap = torch.where(unique.unsqueeze(-1), 1 / torch.where(gap > 0, gap, 1.0), 0)
        ctx.save_for_backward(vectors, inverse_gap)
        ctx.mark_non_differentiable(unique)
        return vectors[..., 0].clone(), unique

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor, _: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        # dv = -sum over k of v_k (v_k^T dM v) / (l_k - l_0)
        vectors, inverse_gap = ctx.saved_tensors
        rest = vectors[..., 1:]
        moved = rest @ ((rest.mT @ gradient.unsqueeze(-1)) * inverse_gap.unsqueeze(-1))
        by_matrix = -moved @ vectors[..., :1].mT
        return (by_matrix + by_matrix.mT) / 2
