"""Between poses and epipolar matrices, with gradients."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .. import _checks
from ._epipolar import cofactors, homogeneous, null_vector
from ._projections import nearest_essential

__all__ = ["Pose", "decompose_essential", "essential_from_pose", "fundamental_from_essential", "recover_pose"]


class Pose(NamedTuple):
    """A relative pose: x2 ~ R x1 + t for x1 the point in the first camera's frame; |t| = 1.

    Attributes:
        rotation: `[..., 3, 3]`.
        translation: `[..., 3]`.
        in_front: `[..., n]` bool; which pairs are in front of both cameras.
    """

    rotation: Tensor
    translation: Tensor
    in_front: Tensor


def essential_from_pose(rotation: Tensor, translation: Tensor) -> Tensor:
    r"""The essential matrix of a pose, $E = [t]_\times R$ scaled to unit Frobenius norm.

    Args:
        rotation: `[..., 3, 3]`.
        translation: `[..., 3]`, of any length.

    Returns:
        `[..., 3, 3]`; 0 for t = 0, which has no epipolar geometry.

    Raises:
        TypeError, ValueError: the arguments are not floating-point tensors of these shapes.

    Cost, transforms:
        O(1) a pose; every transform of PyTorch, no NaN in the gradient.

    Example:
        >>> import torch, difflayers as dl
        >>> dl.ransac.essential_from_pose(torch.eye(3), torch.tensor([2.0, 0.0, 0.0]))
        tensor([[ 0.0000,  0.0000,  0.0000],
                [ 0.0000,  0.0000, -0.7071],
                [ 0.0000,  0.7071,  0.0000]])
    """
    _checked("difflayers.ransac.essential_from_pose", "rotation", rotation, (3, 3))
    _checked("difflayers.ransac.essential_from_pose", "translation", translation, (3,))
    length2 = translation.square().sum(-1, keepdim=True)
    unit = torch.where(length2 > 0, translation / torch.where(length2 > 0, 2 * length2, 1.0).sqrt(), 0)
    return _cross(unit, rotation)


def fundamental_from_essential(essential: Tensor, first: Tensor, second: Tensor) -> Tensor:
    r"""The fundamental matrix of calibrated cameras, $F = K_2^{-\top} E K_1^{-1}$ scaled to unit Frobenius norm.

    Args:
        essential: `[..., 3, 3]`.
        first: the first camera's matrix K1, `[..., 3, 3]`.
        second: the second camera's matrix K2, `[..., 3, 3]`.

    Returns:
        `[..., 3, 3]`; NaN where a camera's matrix is singular.

    Raises:
        TypeError, ValueError: the arguments are not floating-point tensors of these shapes.

    Cost, transforms:
        O(1) a matrix; every transform of PyTorch.

    Example:
        >>> import torch, difflayers as dl
        >>> sideways = dl.ransac.essential_from_pose(torch.eye(3), torch.tensor([1.0, 0.0, 0.0]))
        >>> camera = torch.tensor([[100.0, 0.0, 50.0], [0.0, 100.0, 50.0], [0.0, 0.0, 1.0]])
        >>> bool(torch.allclose(dl.ransac.fundamental_from_essential(sideways, camera, camera), sideways))
        True
    """
    for name, value in (("essential", essential), ("first", first), ("second", second)):
        _checked("difflayers.ransac.fundamental_from_essential", name, value, (3, 3))
    half, first_fails = torch.linalg.solve_ex(first.mT, essential.mT)
    result, second_fails = torch.linalg.solve_ex(second.mT, half.mT)
    result = torch.where(((first_fails != 0) | (second_fails != 0))[..., None, None], torch.nan, result)
    length2 = result.square().sum((-2, -1), keepdim=True)
    return result / torch.where(length2 > 0, length2, 1.0).sqrt()


def decompose_essential(essential: Tensor) -> tuple[Tensor, Tensor]:
    r"""The four poses of an essential matrix: (R, t), (R, -t), (R', t), (R', -t).

    R' is R turned by half a turn about t. With E scaled to singular values (1, 1, 0):
    $R, R' = \operatorname{cof}(E) \mp [t]_\times E$. The first pose gives E
    back with its sign. A matrix that is not essential is first replaced by the nearest one that is.

    Args:
        essential: `[..., 3, 3]`, of any scale.

    Returns:
        Rotations `[..., 4, 3, 3]` and unit translations `[..., 4, 3]`; NaN where the input is not finite.

    Raises:
        TypeError, ValueError: the arguments are not floating-point tensors of these shapes.

    Cost, transforms:
        One singular value decomposition of 3 x 3 a matrix; backward only, exact, and finite although two singular
        values are equal.

    References:
        Horn, "Recovering baseline and orientation from essential matrix", 1990.

    Example:
        >>> import torch, difflayers as dl
        >>> sideways = dl.ransac.essential_from_pose(torch.eye(3), torch.tensor([1.0, 0.0, 0.0]))
        >>> rotations, translations = dl.ransac.decompose_essential(sideways)
        >>> bool(torch.allclose(rotations[0], torch.eye(3), atol=1e-6)), rotations.shape
        (True, torch.Size([4, 3, 3]))
    """
    _checked("difflayers.ransac.decompose_essential", "essential", essential, (3, 3))
    matrix = nearest_essential(essential) * 2**0.5
    of = cofactors(matrix)
    t = null_vector(of)
    turned = _cross(t, matrix)
    one, other = of - turned, of + turned
    return torch.stack([one, one, other, other], -3), torch.stack([t, -t, t, -t], -2)


def recover_pose(essential: Tensor, points: Tensor, mask: Tensor | None = None) -> Pose:
    """The one of the four poses of an essential matrix that has the most pairs in front of both cameras.

    Args:
        essential: `[..., 3, 3]`.
        points: `[..., n, 4]`, rows (x1, y1, x2, y2) in normalised coordinates.
        mask: `[..., n]` bool, the pairs to count, say the inliers; None: all.

    Returns:
        `Pose(rotation, translation, in_front)` with x2 ~ R x1 + t and |t| = 1, differentiable by the essential matrix;
        the choice among the four is not differentiated. NaN where the matrix is not finite.

    Raises:
        TypeError, ValueError: the arguments are not floating-point tensors of these shapes.

    Cost, transforms:
        O(n) a matrix; backward only.

    Example:
        >>> import torch, difflayers as dl
        >>> sideways = dl.ransac.essential_from_pose(torch.eye(3), torch.tensor([-1.0, 0.0, 0.0]))
        >>> pose = dl.ransac.recover_pose(sideways, torch.tensor([[0.1, 0.0, 0.0, 0.0], [0.3, 0.2, -0.1, 0.2]]))
        >>> pose.translation[0], pose.in_front
        (tensor(-1.), tensor([True, True]))
    """
    _checked("difflayers.ransac.recover_pose", "essential", essential, (3, 3))
    points = _checks.tensor("difflayers.ransac.recover_pose", "points", points)
    if points.shape[-1:] != (4,) or points.dim() < 2:
        raise ValueError(
            f"difflayers.ransac.recover_pose: argument 'points' must have shape [..., n, 4], rows (x1, y1, x2, y2), "
            f"got {tuple(points.shape)}"
        )
    if mask is not None and (not isinstance(mask, Tensor) or mask.dtype != torch.bool):
        got = str(mask.dtype).removeprefix("torch.") if isinstance(mask, Tensor) else type(mask).__name__
        raise TypeError(f"difflayers.ransac.recover_pose: argument 'mask' must be a bool tensor or None, got {got}")
    batches = [essential.shape[:-2], points.shape[:-2], *([] if mask is None else [mask.shape[:-1]])]
    try:
        torch.broadcast_shapes(*batches)
    except RuntimeError:
        listed = " and ".join(str(tuple(batch)) for batch in batches)
        raise ValueError(
            f"difflayers.ransac.recover_pose: arguments 'essential', 'points' and 'mask' must have batches that "
            f"broadcast, got {listed}"
        ) from None
    if mask is not None and mask.shape[-1:] not in (points.shape[-2:-1], (1,)):
        raise ValueError(
            f"difflayers.ransac.recover_pose: argument 'mask' must have shape [..., {points.shape[-2]}], "
            f"got {tuple(mask.shape)}"
        )
    rotations, translations = decompose_essential(essential)
    with torch.no_grad():
        # l2 x2 = l1 u + t with u = R x1, crossed with x2 and with u; t -> -t changes both signs, and the other rotation
        # turns u by half a turn about t: u.u and u.t stay, u.x2 does not
        t = translations[..., :1, :]
        u, x = homogeneous(points[..., :2]) @ rotations[..., 0, :, :].mT, homogeneous(points[..., 2:])
        ut, xt, uu, xx, ux = ((a * b).sum(-1) for a, b in ((u, t), (x, t), (u, u), (x, x), (u, x)))
        parts = []
        for along in (ux, 2 * ut * xt - ux):
            second, first = along * xt - ut * xx, uu * xt - ut * along
            parts += [(first > 0) & (second > 0), (first < 0) & (second < 0)]
        front = torch.stack(parts, -2)  # shape: [..., 4, n]
        counted = front if mask is None else front & mask.unsqueeze(-2)
        best = counted.sum(-1).argmax(-1, keepdim=True)
        in_front = front.gather(-2, best.unsqueeze(-1).expand(*front.shape[:-2], 1, front.shape[-1])).squeeze(-2)
    shape = best.shape[:-1]
    rotations, translations = rotations.expand(*shape, 4, 3, 3), translations.expand(*shape, 4, 3)
    chosen = best[..., None].expand(*shape, 1, 3)
    translation = translations.gather(-2, chosen).squeeze(-2)
    rotation = rotations.gather(-3, chosen[..., None, :].expand(*shape, 1, 3, 3)).squeeze(-3)
    return Pose(rotation, translation, in_front)


def _cross(vector: Tensor, matrix: Tensor) -> Tensor:
    """[v]_x m."""
    return torch.linalg.cross(*torch.broadcast_tensors(vector.unsqueeze(-1), matrix), dim=-2)


def _checked(function: str, name: str, value: Tensor, shape: tuple[int, ...]) -> None:
    _checks.tensor(function, name, value)
    if value.shape[-len(shape) :] != shape:
        wanted = ", ".join(["...", *map(str, shape)])
        raise ValueError(f"{function}: argument '{name}' must have shape [{wanted}], got {tuple(value.shape)}")
