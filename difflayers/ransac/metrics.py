"""How well a set of problems was solved: shares of errors below thresholds, and the area below that curve."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import _checks

__all__ = ["auc_binned", "auc_exact", "success_rate"]


def auc_exact(errors: Tensor, thresholds: float | Sequence[float]) -> Tensor:
    r"""The area under the recall curve up to each threshold, divided by the threshold.

    Recall at an error e is the share of problems with at most that error. The curve goes in straight lines through
    $(0, 0)$ and $(e_{(i)}, i / n)$, $e_{(1)} \le e_{(2)} \le \dots$ the errors, and stays level from the last error
    below the threshold to the threshold. This is the protocol of SuperGlue and of most papers since. `auc_binned` is
    the older one; the two are not comparable.

    Args:
        errors: `[..., n]` floating point, not negative; NaN and inf count as failures.
        thresholds: positive numbers in the units of the errors.

    Returns:
        `[..., thresholds]` in [0, 1], without the last dimension for a single number; no gradient.

    Raises:
        TypeError, ValueError: errors is not a floating-point tensor with at least one element in its last dimension, or
            has negative ones; thresholds are not positive.

    Cost:
        O(n log n).

    Transforms:
        None; not differentiable.

    References:
        Sarlin, DeTone, Malisiewicz, Rabinovich, "SuperGlue: Learning Feature Matching with Graph Neural Networks",
        CVPR 2020, arXiv 1911.11763.

    Example:
        >>> import torch, difflayers as dl
        >>> dl.ransac.auc_exact(torch.tensor([1.0, 30.0]), (5, 10))
        tensor([0.4500, 0.4750])
    """
    function = "difflayers.ransac.auc_exact"
    ordered, limits = _ordered(function, errors, thresholds)
    n = ordered.shape[-1]
    end = torch.arange(1, n + 1, device=ordered.device, dtype=ordered.dtype) / n
    start = end - 1 / n
    before = torch.cat([torch.zeros_like(ordered[..., :1]), ordered[..., :-1]], -1)
    finite = ordered.isfinite()
    piece = torch.where(finite, (ordered - before) * (start + end) / 2, 0)
    areas = []
    for limit in limits:
        below = ordered < limit
        last = torch.where(below, ordered, 0).amax(-1)
        recall = below.double().mean(-1)
        areas.append((torch.where(below, piece, 0).sum(-1) + (limit - last) * recall) / limit)
    return _result(areas, errors, thresholds)


def auc_binned(errors: Tensor, thresholds: float | Sequence[float], *, bin_width: float = 5.0) -> Tensor:
    r"""The mean of the recall at the ends of bins up to each threshold.

    $$\frac{1}{m} \sum_{b=1}^{m} \operatorname{recall}(b \cdot \text{bin}), \qquad m = \text{threshold} / \text{bin}.$$

    With a threshold of one bin it is plain recall. The protocol of learned correspondence papers before SuperGlue, of
    NG-RANSAC and of differentiable RANSAC, with bins of 5 degrees; never below `auc_exact` by more than the curve
    rises in a bin, and mostly far above: the two are not comparable.

    Args:
        errors: `[..., n]` floating point, not negative; NaN and inf count as failures.
        thresholds: positive multiples of bin_width.
        bin_width: positive.

    Returns:
        `[..., thresholds]` in [0, 1], without the last dimension for a single number; no gradient.

    Raises:
        TypeError, ValueError: errors is not a floating-point tensor with at least one element in its last dimension, or
            has negative ones; thresholds are not positive multiples of bin_width.

    Cost:
        O(n bins).

    Transforms:
        None; not differentiable.

    References:
        Yi, Trulls, Ono, Lepetit, Salzmann, Fua, "Learning to Find Good Correspondences", CVPR 2018, arXiv 1711.05971.

    Example:
        >>> import torch, difflayers as dl
        >>> dl.ransac.auc_binned(torch.tensor([1.0, 30.0]), (5, 10))
        tensor([0.5000, 0.5000])
    """
    function = "difflayers.ransac.auc_binned"
    width = _checks.number(function, "bin_width", bin_width, above=0)
    ordered, limits = _ordered(function, errors, thresholds)
    areas = []
    for limit in limits:
        bins = round(min(limit / width, 2.0**53))
        if not 1 <= bins <= 10_000_000 or abs(bins * width - limit) > 1e-9 * limit:
            raise ValueError(
                f"{function}: argument 'thresholds' must be multiples of bin_width = {width:g}, got {limit:g} (at most "
                f"10,000,000 times); give another bin_width, or take auc_exact"
            )
        edges = torch.arange(1, bins + 1, device=ordered.device, dtype=ordered.dtype) * width
        below = torch.searchsorted(ordered, edges.expand(*ordered.shape[:-1], -1).contiguous())
        areas.append((below.double() / ordered.shape[-1]).mean(-1))
    return _result(areas, errors, thresholds)


def success_rate(errors: Tensor, thresholds: float | Sequence[float]) -> Tensor:
    """The share of problems with an error below each threshold.

    Args:
        errors: `[..., n]` floating point, not negative; NaN and inf count as failures.
        thresholds: positive numbers in the units of the errors.

    Returns:
        `[..., thresholds]` in [0, 1], without the last dimension for a single number; no gradient.

    Raises:
        TypeError, ValueError: errors is not a floating-point tensor with at least one element in its last dimension, or
            has negative ones; thresholds are not positive.

    Cost:
        O(n log n).

    Transforms:
        None; not differentiable.

    Example:
        >>> import torch, difflayers as dl
        >>> dl.ransac.success_rate(torch.tensor([1.0, 30.0, torch.nan, 2.0]), 5)
        tensor(0.5000)
    """
    ordered, limits = _ordered("difflayers.ransac.success_rate", errors, thresholds)
    return _result([(ordered < limit).to(ordered.dtype).mean(-1) for limit in limits], errors, thresholds)


def _ordered(function: str, errors: Tensor, thresholds: float | Sequence[float]) -> tuple[Tensor, list[float]]:
    """The errors in float64, ascending, failures inf; the thresholds as a list."""
    errors = _checks.tensor(function, "errors", errors).detach()
    if not errors.dim() or not errors.shape[-1]:
        raise ValueError(
            f"{function}: argument 'errors' must have at least one element in its last dimension, got the shape "
            f"{tuple(errors.shape)}"
        )
    if _checks.contents_are_checked(errors) and bool((errors < 0).any()):
        raise ValueError(
            f"{function}: argument 'errors' must not be negative, got {errors.min().item():g}; take the absolute value"
        )
    listed = thresholds if isinstance(thresholds, Sequence) else [thresholds]
    limits = [_checks.number(function, "thresholds", value, above=0) for value in listed]
    exact = errors.double()
    return exact.masked_fill(exact.isnan(), torch.inf).sort(-1).values, limits


def _result(values: list[Tensor], errors: Tensor, thresholds: float | Sequence[float]) -> Tensor:
    """One value for a single threshold, else stacked; in the errors' dtype."""
    if not isinstance(thresholds, Sequence):
        return values[0].to(errors.dtype)
    if not values:
        return errors.new_zeros((*errors.shape[:-1], 0))
    return torch.stack(values, -1).to(errors.dtype)
