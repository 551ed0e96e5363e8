"""Three points that determine nothing."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["on_a_line"]

# the height of a triangle over its longest side, of what float32 coordinates of a thousand pixels can tell
FLAT = 1e-5


def on_a_line(corners: Tensor) -> Tensor:
    """Whether three points `[..., 3, d]`, d = 2 or 3, are on a line or two of them at one place, `[...]`."""
    one, other = (corners[..., 1:, :] - corners[..., :1, :]).double().unbind(-2)
    if corners.shape[-1] == 2:
        area = (one[..., 0] * other[..., 1] - one[..., 1] * other[..., 0]).abs()
    else:
        area = torch.linalg.cross(one, other).norm(dim=-1)
    longest = torch.stack([one, other, one - other], -1).norm(dim=-2).amax(-1)
    # an area that has overflown is NaN, and determines nothing either
    return ~(area > FLAT * longest.square())
