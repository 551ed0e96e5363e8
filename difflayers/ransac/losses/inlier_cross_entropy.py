"""Classification of points as inliers."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ... import _checks
from ._points import weighted_mean

__all__ = ["InlierCrossEntropy", "inlier_cross_entropy"]


def inlier_cross_entropy(
    logits: Tensor, inliers: Tensor, mask: Tensor | None = None, *, balance: str = "classes"
) -> Tensor:
    r"""Binary cross-entropy of logits against which points are inliers.

    $$\frac{1}{2 n_+} \sum_{i \in +} \log(1 + e^{-\theta_i}) + \frac{1}{2 n_-} \sum_{i \in -} \log(1 + e^{\theta_i}),$$

    so that few inliers among many outliers weigh as much as these. A class without points adds nothing.

    Args:
        logits: `[..., n]` floating point; -inf marks an absent point.
        inliers: `[..., n]` bool.
        mask: `[..., n]` bool, True = present; None: all are.
        balance: `"classes"` as above, or `"points"`, the mean over all points.

    Returns:
        `[...]`; 0 where no point is present.

    Raises:
        TypeError, ValueError: logits is not a floating-point tensor, inliers or mask not a bool one of its shape, an
            unknown balance.

    Cost:
        O(n).

    Transforms:
        backward, double backward, torch.func, torch.compile.

    Example:
        >>> import torch, difflayers as dl
        >>> dl.ransac.inlier_cross_entropy(torch.tensor([9.0, -9.0, -9.0]), torch.tensor([True, False, False]))
        tensor(0.0001)
    """
    function = "difflayers.ransac.inlier_cross_entropy"
    logits = _checks.tensor(function, "logits", logits)
    _checks.choice(function, "balance", balance, ("classes", "points"))
    for name, value in (("inliers", inliers), ("mask", mask)):
        if value is None and name == "mask":
            continue
        if not isinstance(value, Tensor) or value.dtype != torch.bool:
            got = str(value.dtype).removeprefix("torch.") if isinstance(value, Tensor) else type(value).__name__
            raise TypeError(f"{function}: argument '{name}' must be a bool tensor, got {got}")
        if value.shape != logits.shape:
            raise ValueError(
                f"{function}: argument '{name}' must have the shape of the logits, {tuple(logits.shape)}, got "
                f"{tuple(value.shape)}"
            )
    present = ~logits.isneginf() if mask is None else mask & ~logits.isneginf()
    each = nn.functional.softplus(torch.where(present, torch.where(inliers, -logits, logits), 0))
    if balance == "points":
        return weighted_mean(each, present.to(logits.dtype))
    positive, negative = (present & inliers).to(logits.dtype), (present & ~inliers).to(logits.dtype)
    return (weighted_mean(each, positive) + weighted_mean(each, negative)) / 2


class InlierCrossEntropy(nn.Module):
    """`inlier_cross_entropy` as a module.

    Args:
        balance: as there.

    Returns:
        Of a call with logits, inliers and a mask, `[..., n]` each: `[...]`.

    Raises:
        As `inlier_cross_entropy`.

    Cost, transforms:
        As `inlier_cross_entropy`.

    Example:
        >>> import torch, difflayers as dl
        >>> dl.losses.InlierCrossEntropy()(torch.zeros(3), torch.tensor([True, False, False]))
        tensor(0.6931)
    """

    def __init__(self, *, balance: str = "classes") -> None:
        super().__init__()
        self.balance = _checks.choice("difflayers.losses.InlierCrossEntropy", "balance", balance, ("classes", "points"))

    def forward(self, logits: Tensor, inliers: Tensor, mask: Tensor | None = None) -> Tensor:
        """One loss a problem."""
        return inlier_cross_entropy(logits, inliers, mask, balance=self.balance)

    def extra_repr(self) -> str:
        return f"balance={self.balance!r}"
