"""Rotations and eigenvectors that solve a least-squares problem, with gradients that no gap of singular values spoils.

Backward differentiates the condition that the solution satisfies, not the decomposition that found it: where the
solution is unique its gradient is finite, also at equal singular values of no importance; elsewhere it is zero. The
formulas are made of differentiable operations, so that they can be differentiated again.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .manifolds import cross_matrix

__all__ = ["nearest_rotation", "smallest_eigenvector"]


def nearest_rotation(matrices: Tensor, worst: float) -> tuple[Tensor, Tensor]:
    r"""The rotation R of largest $\operatorname{tr}(R^\top C)$ for C `[..., 3, 3]`, and how far from unique it is.

    That is $(s_1 + s_2) / (s_2 + s_3)$ in the singular values of C, $s_3$ with the sign of det C; from `worst` on the
    gradient is zero. With $M = R^\top C$, which is symmetric, $dR = R [\omega]_\times$ has
    $(\operatorname{tr}(M) I - M)\,\omega = \operatorname{vex}(R^\top dC - dC^\top R)$.
    """
    batch = matrices.shape[:-2]
    rotation, spread = _Rotation.apply(matrices.reshape(-1, 3, 3), worst)
    return rotation.view(*batch, 3, 3), spread.view(batch)


def _vex(m: Tensor) -> Tensor:  # the a of m - m^T = [a]x
    return torch.stack([m[..., 2, 1] - m[..., 1, 2], m[..., 0, 2] - m[..., 2, 0], m[..., 1, 0] - m[..., 0, 1]], -1)


class _Rotation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, matrices: Tensor, worst: float) -> tuple[Tensor, Tensor]:
        finite = matrices.flatten(1).isfinite().all(-1)
        left, value, right = torch.linalg.svd(torch.where(finite[:, None, None], matrices, 0))
        sign = torch.linalg.det(left @ right).sign()
        left = torch.cat([left[..., :2], left[..., 2:] * sign[:, None, None]], -1)
        result = left @ right
        smallest = value[:, 1] + sign * value[:, 2]
        spread = torch.where(smallest > 0, (value[:, 0] + value[:, 1]) / smallest, torch.inf)
        spread = torch.where(finite, spread, torch.inf)
        ctx.save_for_backward(matrices, result, spread < worst)
        ctx.mark_non_differentiable(spread)
        return result, spread

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        matrices, rotation, good = ctx.saved_tensors
        keep = good[:, None, None]
        product = torch.where(keep, rotation.mT @ matrices, torch.eye(3, dtype=rotation.dtype, device=rotation.device))
        product = (product + product.mT) / 2
        trace = product.diagonal(dim1=-2, dim2=-1).sum(-1)[:, None, None]
        system = trace * torch.eye(3, dtype=rotation.dtype, device=rotation.device) - product
        u = torch.linalg.solve(system, _vex(rotation.mT @ gradients[0]))
        return torch.where(keep, rotation @ cross_matrix(u), 0), None


def smallest_eigenvector(matrices: Tensor, worst: float) -> tuple[Tensor, Tensor]:
    r"""The unit eigenvector n of the smallest eigenvalue of symmetric matrices `[..., p, p]`, and how far from unique.

    That is the largest eigenvalue over the gap between the two smallest; from `worst` on the gradient is zero. With
    $\lambda = n^\top S n$, $dn$ solves $(S - \lambda I)\,dn + n\,d\lambda = -dS\,n$, $n^\top dn = 0$.
    """
    batch, size = matrices.shape[:-2], matrices.shape[-1]
    vector, spread = _Eigenvector.apply(matrices.reshape(-1, size, size), worst)
    return vector.view(*batch, size), spread.view(batch)


class _Eigenvector(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, matrices: Tensor, worst: float) -> tuple[Tensor, Tensor]:
        finite = matrices.flatten(1).isfinite().all(-1)
        value, vectors = torch.linalg.eigh(torch.where(finite[:, None, None], matrices, 0))
        gap = value[:, 1] - value[:, 0]
        spread = torch.where(finite & (gap > 0), value[:, -1] / gap, torch.inf)
        result = vectors[..., 0]
        # LAPACK's sign depends on rounding
        largest = result.gather(-1, result.abs().argmax(-1, keepdim=True))
        result = result * torch.where(largest < 0, -1.0, 1.0)
        ctx.save_for_backward(matrices, result, spread < worst)
        ctx.mark_non_differentiable(spread)
        return result, spread

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        matrices, vector, good = ctx.saved_tensors
        keep = good[:, None, None]
        size = matrices.shape[-1]
        identity = torch.eye(size, dtype=vector.dtype, device=vector.device)
        # any matrix of which the system is regular, where there is no gradient
        standard = identity - vector.unsqueeze(-1) * vector.unsqueeze(-2)
        length = torch.where(good, matrices.diagonal(dim1=-2, dim2=-1).sum(-1), 1)[:, None, None]
        relative = torch.where(keep, matrices / length, standard)
        level = vector.unsqueeze(-2) @ relative @ vector.unsqueeze(-1)
        column = vector.unsqueeze(-1)
        corner = torch.zeros_like(level)
        system = torch.cat(
            [torch.cat([relative - level * identity, column], -1), torch.cat([column.mT, corner], -1)], -2
        )
        right = torch.cat([gradients[0], torch.zeros_like(gradients[0][:, :1])], -1)
        u = torch.linalg.solve(system, -right)[:, :size]
        outer = u.unsqueeze(-1) * vector.unsqueeze(-2) / length
        return torch.where(keep, (outer + outer.mT) / 2, 0), None
