"""How far a pose is off."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ... import _checks

__all__ = ["PoseError", "pose_error"]


class PoseError(NamedTuple):
    """Angles in degrees.

    Attributes:
        rotation: `[...]` in [0, 180].
        translation: `[...]` in [0, 180], between the directions.
    """

    rotation: Tensor
    translation: Tensor

    @property
    def largest(self) -> Tensor:
        """The larger of the two, `[...]`: the pose error of benchmarks."""
        return torch.maximum(self.rotation, self.translation)


def pose_error(rotation: Tensor, translation: Tensor, true_rotation: Tensor, true_translation: Tensor) -> PoseError:
    r"""The angles by which a rotation and the direction of a translation are off.

    With $D = R^\top R_\text{true}$ and $v = (D_{32} - D_{23}, D_{13} - D_{31}, D_{21} - D_{12})$, the rotation angle is
    $\operatorname{atan2}(|v|, \operatorname{tr} D - 1)$, and that of the translations $\operatorname{atan2}(|t \times
    t_\text{true}|, t \cdot t_\text{true})$: exact for small angles, where an arc cosine keeps half of the digits and
    its derivative is infinite. At angles of 0 and 180 degrees, where there is no derivative, it is zero.

    Args:
        rotation, true_rotation: `[..., 3, 3]`.
        translation, true_translation: `[..., 3]`, of any length. For a translation whose sign is unknown take the
            smaller of the angle and 180 less it.

    Returns:
        `PoseError(rotation, translation)` in degrees, each `[...]`; NaN where an input is. A translation of zero has
        the error 180, unless the true one is zero and no direction is wrong.

    Raises:
        TypeError, ValueError: the arguments are not floating-point tensors of these shapes.

    Cost:
        O(1) a pose.

    Transforms:
        backward, torch.func, torch.compile.

    Example:
        >>> import torch, difflayers as dl
        >>> a, b = torch.eye(3), torch.tensor([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
        >>> dl.ransac.pose_error(a, torch.tensor([1.0, 0.0, 0.0]), b, torch.tensor([2.0, 2.0, 0.0]))
        PoseError(rotation=tensor(90.), translation=tensor(45.))
    """
    function = "difflayers.ransac.pose_error"
    for name, value, shape in (
        ("rotation", rotation, (3, 3)), ("true_rotation", true_rotation, (3, 3)),
        ("translation", translation, (3,)), ("true_translation", true_translation, (3,)),
    ):  # fmt: skip
        _checks.tensor(function, name, value)
        if tuple(value.shape[-len(shape) :]) != shape:
            raise ValueError(
                f"{function}: argument '{name}' must have a shape that ends in {shape}, got {tuple(value.shape)}"
            )
    d = rotation.mT @ true_rotation
    axis = torch.stack([d[..., 2, 1] - d[..., 1, 2], d[..., 0, 2] - d[..., 2, 0], d[..., 1, 0] - d[..., 0, 1]], -1)
    turn = _angle(_length(axis), d.diagonal(dim1=-2, dim2=-1).sum(-1) - 1)
    there, wanted = _length(translation) > 0, _length(true_translation) > 0
    unit = translation / torch.where(there, _length(translation.detach()), 1).unsqueeze(-1)
    across = _length(torch.linalg.cross(*torch.broadcast_tensors(unit, true_translation)))
    direction = _angle(across, (unit * true_translation).sum(-1))
    # NaN is not > 0 either, and has to stay NaN
    lost = (translation == 0).all(-1) & wanted
    return PoseError(turn, torch.where(lost, 180.0, direction))


def _length(v: Tensor) -> Tensor:
    """The norm, whose gradient at zero is zero."""
    square = v.square().sum(-1)
    return torch.where(square == 0, 0, torch.where(square == 0, 1, square).sqrt())


def _angle(sine: Tensor, cosine: Tensor) -> Tensor:
    """In degrees, of a sine and a cosine times the same; 0, with zero gradient, where both are 0."""
    nothing = (sine == 0) & (cosine == 0)
    return torch.rad2deg(torch.atan2(sine, torch.where(nothing, 1, cosine)))
