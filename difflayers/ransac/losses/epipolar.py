"""How far true inliers are from an epipolar geometry."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from ... import _checks
from .. import residuals
from ._points import aligned, bounded_mean

__all__ = ["EpipolarLoss", "epipolar_loss"]

DISTANCES = ("symmetric_epipolar", "sampson")


def epipolar_loss(
    models: Tensor, points: Tensor, inliers: Tensor | None = None, *, limit: float, distance: str = "symmetric_epipolar"
) -> Tensor:
    r"""How far true inliers are from the epipolar geometry of each model.

    $$\ell(F) = \frac{1}{\sum_i w_i} \sum_i w_i \min\Bigl(\frac{d_i^2}{\text{limit}^2}, 1\Bigr),$$

    with $e = x_2^\top F x_1$, $(a, b, \cdot) = F x_1$ and $(a', b', \cdot) = F^\top x_2$ either the symmetric epipolar
    distance, $d^2 = e^2 / (a^2 + b^2) + e^2 / (a'^2 + b'^2)$, or Sampson's, $d^2 = e^2 / (a^2 + b^2 + a'^2 + b'^2)$.
    In [0, 1], the same for $F$ and $c F$, and smooth where it is zero. A model from which all inliers are farther
    than the limit has loss 1 and zero gradient, and so has a model that is zero.

    Args:
        models: `[*batch, ..., 3, 3]`, fundamental matrices or essential ones of normalised points: any dimensions
            of hypotheses after those of the batch.
        points: `[*batch, n, 4]`, rows (x1, y1, x2, y2).
        inliers: `[*batch, n]`, which pairs are true ones: bool, or weights that are not negative; None: all.
        limit: a distance in the units of the points, positive; farther inliers count 1.
        distance: `"symmetric_epipolar"` or `"sampson"`, as in `difflayers.ransac.residuals`.

    Returns:
        `[*batch, ...]`, one loss a model, in [0, 1]; 0 where there are no inliers.

    Raises:
        TypeError, ValueError: models or points are not floating-point tensors of these shapes, an unknown distance, a
            limit that is not positive.

    Cost:
        O(models n) time and memory; a gradient only for the pairs of a model and a point within the limit.

    Transforms:
        backward, double backward; torch.compile breaks the graph.

    References:
        Hartley, Zisserman, "Multiple View Geometry in Computer Vision", 2nd edition, equations 11.9 and 11.10.

    Example:
        >>> import torch, difflayers as dl
        >>> shift = torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.0, -1.0], [0.0, 1.0, 0.0]])  # along x: y1 = y2
        >>> points = torch.tensor([[0.0, 0.0, 1.0, 0.0], [0.0, 1.0, 2.0, 1.5]])
        >>> dl.ransac.epipolar_loss(shift, points, limit=1.0)
        tensor(0.2500)
    """
    function = "difflayers.ransac.epipolar_loss"
    _checks.choice(function, "distance", distance, DISTANCES)
    limit = _checks.number(function, "limit", limit, above=0)
    models, points = _checks.tensor(function, "models", models), _checks.tensor(function, "points", points)
    if models.shape[-2:] != (3, 3):
        raise ValueError(f"{function}: argument 'models' must have the shape (..., 3, 3), got {tuple(models.shape)}")
    points, weights = aligned(function, models.shape[:-2], points, 4, inliers)
    # the loss does not depend on the scale, but F of pixels can be so small that its squares are 0 in float32
    scale = models.detach().abs().amax((-2, -1), keepdim=True)
    unit = models / torch.where(scale > 0, scale, 1)
    return bounded_mean(partial(residuals.squared, distance), unit, points, weights, limit)


class EpipolarLoss(nn.Module):
    """`epipolar_loss` as a module.

    Args:
        limit, distance: as there.

    Returns:
        Of a call with models `[*batch, ..., 3, 3]`, points `[*batch, n, 4]` and inliers: `[*batch, ...]`.

    Raises:
        As `epipolar_loss`.

    Cost, transforms:
        As `epipolar_loss`.

    Example:
        >>> import torch, difflayers as dl
        >>> shift = torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.0, -1.0], [0.0, 1.0, 0.0]])
        >>> dl.losses.EpipolarLoss(limit=1.0, distance="sampson")(shift, torch.tensor([[0.0, 1.0, 2.0, 1.5]]))
        tensor(0.1250)
    """

    def __init__(self, *, limit: float, distance: str = "symmetric_epipolar") -> None:
        super().__init__()
        self.limit = _checks.number("difflayers.losses.EpipolarLoss", "limit", limit, above=0)
        self.distance = _checks.choice("difflayers.losses.EpipolarLoss", "distance", distance, DISTANCES)

    def forward(self, models: Tensor, points: Tensor, inliers: Tensor | None = None) -> Tensor:
        """One loss a model."""
        return epipolar_loss(models, points, inliers, limit=self.limit, distance=self.distance)

    def extra_repr(self) -> str:
        return f"limit={self.limit}, distance={self.distance!r}"
