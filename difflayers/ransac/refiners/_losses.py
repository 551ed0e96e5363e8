"""Robust losses of u = (residual / threshold)^2, and their derivatives; see csrc/cpu/refine_kernels.h."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["LOSSES", "Loss"]

# where a Gaussian over a uniform distribution is nearest to the loss of MAGSAC++: sigma in thresholds, the constant
SIGMA, FLOOR = 0.273, 0.82


class Loss(NamedTuple):
    """A robust loss.

    Attributes:
        value: u -> the loss, 0 at 0.
        slope: its derivative.
        bounded: whether points far away have no influence at all, so that those with u >= 1 may be left out.
    """

    value: Callable[[Tensor], Tensor]
    slope: Callable[[Tensor], Tensor]
    bounded: bool


def _gaussian_uniform(u: Tensor) -> Tensor:
    density = (-u / (2 * SIGMA**2)).exp()
    return (math.log(1 + FLOOR) - (density + FLOOR).log()) / math.log((1 + FLOOR) / FLOOR)


def _gaussian_uniform_slope(u: Tensor) -> Tensor:
    density = (-u / (2 * SIGMA**2)).exp()
    return density / (density + FLOOR) / (2 * SIGMA**2 * math.log((1 + FLOOR) / FLOOR))


LOSSES = {
    "truncated": Loss(lambda u: u.clamp(max=1), lambda u: (u < 1).to(u.dtype), True),
    "cauchy": Loss(lambda u: torch.log1p(4 * u) / 4, lambda u: 1 / (1 + 4 * u), False),
    "gaussian_uniform": Loss(_gaussian_uniform, _gaussian_uniform_slope, False),
}
