"""Steps along the sets that models live on, for `MinimalSolver.retract`.

Each maps a model and a step to a model, the step 0 to the model itself, is differentiable by the step as often as
wanted, and keeps the model's constraints (rank 2, equal singular values, a rotation) for steps of any size. Models that
violate them a little are moved onto the set first. The compiled refinement takes the same steps up to the choice of
directions (csrc/cpu/refine_manifolds.h).
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = [
    "retract_essential",
    "retract_fundamental",
    "retract_homogeneous",
    "retract_hyperplane",
    "retract_motion",
    "rotation",
]


def cross_matrix(w: Tensor) -> Tensor:
    """Vectors `[..., 3]` -> matrices `[..., 3, 3]` with `[w]x v = w x v`."""
    zero = torch.zeros_like(w[..., 0])
    a, b, c = w.unbind(-1)
    return torch.stack([zero, -c, b, c, zero, -a, -b, a, zero], -1).unflatten(-1, (3, 3))


def rotation(w: Tensor) -> Tensor:
    r"""Cayley's map: the rotation about w by $2 \arctan(|w| / 2)$.

    Rational, so that its derivatives at 0 need no care, unlike the exponential's.

    Args:
        w: `[..., 3]`.

    Returns:
        `[..., 3, 3]`.

    Example:
        >>> import torch, difflayers as dl
        >>> dl.ransac.manifolds.rotation(torch.tensor([0.0, 0.0, 2.0])) + 0.0  # a quarter turn about z
        tensor([[ 0., -1.,  0.],
                [ 1.,  0.,  0.],
                [ 0.,  0.,  1.]])
    """
    half = cross_matrix(w / 2)
    factor = 2 / (1 + w.square().sum(-1) / 4)
    return torch.eye(3, dtype=w.dtype, device=w.device) + factor[..., None, None] * (half + half @ half)


def across(direction: Tensor) -> Tensor:
    """Unit vectors `[..., p]` -> orthonormal directions across them, `[..., p - 1, p]`, without gradient.

    The rows of the Householder reflection that maps the vector to the last axis.
    """
    direction = direction.detach()
    size = direction.shape[-1]
    last = direction[..., -1:]
    normal = torch.cat([direction[..., :-1], last + torch.where(last < 0, -1.0, 1.0)], -1)
    reflection = normal.unsqueeze(-1) * normal.unsqueeze(-2) / (1 + last.abs()).unsqueeze(-1)
    return (torch.eye(size, dtype=direction.dtype, device=direction.device) - reflection)[..., :-1, :]


def turned(direction: Tensor, step: Tensor) -> Tensor:
    """Unit vectors `[..., p]` moved on their sphere by steps `[..., p - 1]`."""
    moved = direction + (step.unsqueeze(-2) @ across(direction)).squeeze(-2)
    return moved / moved.norm(dim=-1, keepdim=True)


def retract_homogeneous(models: Tensor, step: Tensor) -> Tensor:
    """Moves matrices whose scale is free; their norm is kept.

    Args:
        models: `[..., p, q]`, not zero.
        step: `[..., p q - 1]`, along directions across the model.

    Returns:
        `[..., p, q]`.

    Example:
        >>> import torch, difflayers as dl
        >>> moved = dl.ransac.manifolds.retract_homogeneous(torch.eye(3), torch.full((8,), 0.1))
        >>> moved.square().sum().round(decimals=4)
        tensor(3.)
    """
    flat = models.flatten(-2)
    length = flat.norm(dim=-1, keepdim=True)
    return (turned(flat / length, step) * length).unflatten(-1, models.shape[-2:])


def retract_hyperplane(models: Tensor, step: Tensor) -> Tensor:
    """Moves hyperplanes: the unit normal turns, the offset changes.

    Args:
        models: unit normals and offsets, `[..., p + 1]`.
        step: `[..., p]`, the last that of the offset.

    Returns:
        `[..., p + 1]`.

    Example:
        >>> import torch, difflayers as dl
        >>> line = dl.ransac.manifolds.retract_hyperplane(torch.tensor([0.0, 1.0, 5.0]), torch.tensor([0.0, 0.5]))
        >>> line
        tensor([0.0000, 1.0000, 5.5000])
    """
    return torch.cat([turned(models[..., :-1], step[..., :-1]), models[..., -1:] + step[..., -1:]], -1)


def retract_motion(models: Tensor, step: Tensor) -> Tensor:
    r"""Moves motions $[sR \mid t]$: R turns by Cayley's map, t changes, s is multiplied.

    Args:
        models: `[..., 3, 4]`.
        step: `[..., 6]` (rotation, translation), or `[..., 7]` (and the logarithm of s).

    Returns:
        `[..., 3, 4]`.

    Example:
        >>> import torch, difflayers as dl
        >>> step = torch.tensor([0.0, 0.0, 0.0, 1.0, 2.0, 3.0])
        >>> dl.ransac.manifolds.retract_motion(torch.eye(3, 4), step)
        tensor([[1., 0., 0., 1.],
                [0., 1., 0., 2.],
                [0., 0., 1., 3.]])
    """
    linear = rotation(step[..., :3]) @ models[..., :3]
    if step.shape[-1] == 7:
        linear = linear * step[..., 6, None, None].exp()
    return torch.cat([linear, models[..., 3:] + step[..., 3:6].unsqueeze(-1)], -1)


def retract_essential(models: Tensor, step: Tensor) -> Tensor:
    r"""Moves essential matrices: R and the direction of t turn; the norm is kept.

    $E = [t]_\times R$; of the two rotations of an E either will do. With $E = u_1 v_1^\top + u_2 v_2^\top$,
    $[u_3]_\times = u_2 u_1^\top - u_1 u_2^\top$ and $R = u_1 v_2^\top - u_2 v_1^\top + u_3 v_3^\top$.

    Args:
        models: `[..., 3, 3]`, of any norm.
        step: `[..., 5]`, of R (3) and t (2).

    Returns:
        `[..., 3, 3]`.

    Example:
        >>> import torch, difflayers as dl
        >>> sideways = dl.ransac.essential_from_pose(torch.eye(3), torch.tensor([1.0, 0.0, 0.0]))
        >>> moved = dl.ransac.manifolds.retract_essential(sideways, torch.full((5,), 0.1))
        >>> torch.linalg.svdvals(moved).round(decimals=4)
        tensor([0.7071, 0.7071, 0.0000])
    """
    constant = models.detach()
    left, _, right = torch.linalg.svd(constant)
    v1, v2 = right[..., 0, :], right[..., 1, :]
    u1, u2 = left[..., 0], left[..., 1]
    u3, v3 = torch.linalg.cross(u1, u2), torch.linalg.cross(v1, v2)
    outer = lambda a, b: a.unsqueeze(-1) * b.unsqueeze(-2)  # noqa: E731
    of_e = outer(u1, v2) - outer(u2, v1) + outer(u3, v3)
    size = constant.flatten(-2).norm(dim=-1)[..., None, None] / 2**0.5
    return size * (cross_matrix(turned(u3, step[..., 3:])) @ (rotation(step[..., :3]) @ of_e))


def retract_fundamental(models: Tensor, step: Tensor) -> Tensor:
    r"""Moves matrices of rank 2, whose norm is kept.

    $F \propto U \operatorname{diag}(1, s, 0) V^\top$: U and V are turned, s changes by the last.

    Args:
        models: `[..., 3, 3]` of rank 2, of any norm.
        step: `[..., 7]`.

    Returns:
        `[..., 3, 3]` of rank 2.

    References:
        Bartoli, Sturm, "Nonlinear Estimation of the Fundamental Matrix with Minimal Parameters", PAMI 2004.

    Example:
        >>> import torch, difflayers as dl
        >>> flat = torch.diag(torch.tensor([2.0, 1.0, 0.0], dtype=torch.float64))
        >>> moved = dl.ransac.manifolds.retract_fundamental(flat, torch.full((7,), 0.1, dtype=torch.float64))
        >>> bool(torch.linalg.svdvals(moved)[2] < 1e-12), round(float(moved.norm() ** 2), 6)
        (True, 5.0)
    """
    constant = models.detach()
    rows, columns = _balance(constant)
    balanced = rows.unsqueeze(-1) * constant * columns.unsqueeze(-2)
    left, value, right = torch.linalg.svd(balanced)
    left = left @ rotation(step[..., :3])
    right = right.mT @ rotation(step[..., 3:6])
    values = torch.stack([torch.ones_like(step[..., 6]), value[..., 1] / value[..., 0] + step[..., 6]], -1)
    moved = (left[..., :2] * values.unsqueeze(-2)) @ right[..., :2].mT
    moved = moved / rows.unsqueeze(-1) / columns.unsqueeze(-2)
    size = constant.flatten(-2).norm(dim=-1) / moved.flatten(-2).norm(dim=-1)
    return size[..., None, None] * moved


def _balance(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Factors (1, 1, k) of the rows and of the columns that bring the entries of an F of pixels to one size."""
    rows = columns = torch.ones_like(matrix[..., 0])
    for _ in range(3):
        scaled = rows.unsqueeze(-1) * matrix * columns.unsqueeze(-2)
        rows = rows * _equal(scaled.square().sum(-1))
        scaled = rows.unsqueeze(-1) * matrix * columns.unsqueeze(-2)
        columns = columns * _equal(scaled.square().sum(-2))
    return rows, columns


def _equal(squares: Tensor) -> Tensor:
    ratio = (squares[..., :2].mean(-1) / squares[..., 2]).sqrt()
    # a row of zeros stays one; an epipole in the origin makes one
    ratio = torch.where((ratio > 1e-8) & (ratio < 1e8), ratio, 1)
    return torch.stack([torch.ones_like(ratio), torch.ones_like(ratio), ratio], -1)
