"""MAGSAC++: the noise scale marginalised out."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .base import Scorer

__all__ = ["MAGSAC"]

CUTOFF = 3.64  # k, the 0.99 quantile of the chi distribution with 4 degrees of freedom
LAST = CUTOFF**2 / 2
# the upper incomplete gamma function G(3/2, x) = sqrt(x) exp(-x) + sqrt(pi) / 2 erfc(sqrt(x)) at the cutoff and at 0
AT_CUTOFF = math.sqrt(LAST) * math.exp(-LAST) + math.sqrt(math.pi) / 2 * math.erfc(math.sqrt(LAST))
AT_ZERO = math.sqrt(math.pi) / 2
COMPLETE = 0.75 * math.sqrt(math.pi)  # Gamma(5/2)


class MAGSAC(Scorer):
    r"""The score of MAGSAC++, which averages over all noise scales up to $\sigma_{max}$.

    $s = 1 - \rho(r) / \rho(t)$ with the loss $\rho$ of MAGSAC++ for 4 degrees of freedom and $k = 3.64$, where the
    threshold is the cutoff, $t = k \sigma_{max}$: with $x = r^2 / 2 \sigma_{max}^2$ and incomplete gamma functions,

    $$\rho \propto \tfrac12 \gamma(\tfrac52, x) + \tfrac x2 (\Gamma(\tfrac32, x) - \Gamma(\tfrac32, \tfrac{k^2}2)),$$

    which for 4 degrees of freedom are closed forms of exp and erfc. s is 1 at r = 0, and 0 with zero slope from the
    threshold on.

    Cost, transforms:
        O(1) a residual, in the fused kernel on the CPU; backward, by models, points and threshold.

    References:
        Barath, Noskova, Ivashechkin, Matas, "MAGSAC++, a Fast, Reliable and Accurate Robust Estimator", CVPR 2020,
        arXiv 1912.05909, section 3.

    Example:
        >>> import torch, difflayers as dl
        >>> dl.ransac.MAGSAC().of_squared(torch.tensor([0.0, 0.25, 1.0])).round(decimals=3)
        tensor([1.0000, 0.2590, 0.0000])
    """

    kernel = "magsac"

    def of_squared(self, ratio: Tensor) -> Tensor:
        """s, elementwise."""
        x = LAST * torch.where(ratio < 1, ratio, 1.0)
        tail: Any = _UpperGamma.apply(x)
        upper = 1.5 * tail + x.pow(1.5) * (-x).exp()  # G(5/2, x)
        loss = (COMPLETE - upper) / 2 + x / 2 * (tail - AT_CUTOFF)
        most = (COMPLETE - 1.5 * AT_CUTOFF - LAST**1.5 * math.exp(-LAST)) / 2
        return torch.where(ratio < 1, 1 - loss / most, 0.0)

    def weight(self, ratio: Tensor) -> Tensor:
        """The weight of MAGSAC++'s reweighted least squares."""
        x = LAST * torch.where(ratio < 1, ratio, 1.0)
        return torch.where(ratio < 1, (_upper_gamma(x) - AT_CUTOFF) / (AT_ZERO - AT_CUTOFF), 0.0)


def _upper_gamma(x: Tensor) -> Tensor:
    root = x.sqrt()
    return root * (-x).exp() + AT_ZERO * root.erfc()


class _UpperGamma(torch.autograd.Function):
    """G(3/2, x), whose derivative is finite at 0 although that of the square root is not."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return _upper_gamma(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return -gradients[0] * x.sqrt() * (-x).exp()
