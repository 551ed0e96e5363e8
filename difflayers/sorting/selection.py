"""The best k, quantiles and the median: a few output wires of the network, and only what they depend on."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from .. import _checks
from .networks import Network
from .rows import Rows, Steepness
from .swaps import Swap

__all__ = ["TopKResult", "median", "quantile", "topk"]


class TopKResult(NamedTuple):
    """Result of `topk`: `values` [..., k], best first, and `membership` [..., n] in [0, 1], summing to k."""

    values: Tensor
    membership: Tensor


def topk(
    x: Tensor,
    k: int,
    *,
    largest: bool = True,
    network: str | Network = "odd_even_merge",
    swap: str | Swap = "cauchy",
    steepness: Steepness = 10.0,
    hard: bool = False,
    mask: Tensor | None = None,
    dim: int = -1,
) -> TopKResult:
    r"""The relaxed k best values and how much each element belongs to them.

    $\text{membership}_j = \sum_{i \in \text{best } k} P_{ij}$: an indicator carried through the transpose of
    the network, from which every comparator that the k wanted outputs do not depend on is left out.

    Args:
        x, network, swap, steepness, hard, mask, dim: see `sort`.
        k: in [0, n].
        largest: the largest k, else the smallest k.

    Returns:
        `TopKResult(values, membership)`: values have k in place of n at `dim`, best first; membership has
        the shape of x, lies in [0, 1] and sums to k. With a mask, absent elements are never members; where
        fewer than k are present, the remaining values are 0 and membership sums to the number present.

    Raises:
        As `sort`; ValueError when k is out of range.

    Cost:
        At most that of `rank`; only the comparators that the k wanted outputs depend on are run (of
        odd_even_merge the fewest).

    Transforms:
        As `sort`; with hard=True the second derivative of the membership raises.

    References:
        Petersen, Kuehne, Borgelt, Deussen, "Differentiable Top-k Classification Learning", ICML 2022,
        arXiv 2206.07290, section 3.

    Example:
        >>> import torch, difflayers as dl
        >>> dl.topk(torch.tensor([0.3, 0.1, 0.2]), 2, hard=True)
        TopKResult(values=tensor([0.3000, 0.2000]), membership=tensor([1., 0., 1.]))
    """
    function = "difflayers.topk"
    largest = _checks.boolean(function, "largest", largest)
    rows = Rows(
        function, x, network=network, swap=swap, steepness=steepness, hard=hard, mask=mask, dim=dim,
        absent=-math.inf if largest else math.inf,
    )  # fmt: skip
    k = _checks.integer(function, "k", k, minimum=0, maximum=rows.n)
    first, last = (rows.n - k, rows.n) if largest else (0, k)
    values = rows.transport("values", first=first, last=last)
    indicator = rows.scores.new_ones(1, k, 1)
    if rows.count is not None:
        filled = torch.arange(k, device=x.device) < rows.count  # [B, k], best first
        wires = filled.flip(1) if largest else filled
        values = torch.where(wires, values, 0.0)
        indicator = wires.to(values.dtype)[..., None]
    membership = rows.transport("carry_transposed", indicator, first, last)[..., 0].clamp(0.0, 1.0)  # rounding
    if rows.present is not None:
        membership = torch.where(rows.present, membership, 0.0)
    if largest:
        values = values.flip(1)
    return TopKResult(rows.restore(values), rows.restore(membership))


def quantile(
    x: Tensor,
    q: float | Tensor,
    *,
    keepdim: bool = False,
    network: str | Network = "odd_even_merge",
    swap: str | Swap = "cauchy",
    steepness: Steepness = 10.0,
    hard: bool = False,
    mask: Tensor | None = None,
    dim: int = -1,
) -> Tensor:
    r"""Relaxed quantiles, linearly interpolated between neighbours as `torch.quantile` does.

    With y = sort(x) from index 0, h = q (n - 1), i = floor(h) and t = h - i: $(1 - t)\, y_i + t\, y_{\lceil h \rceil}$.

    Args:
        x, network, swap, steepness, hard, mask, dim: see `sort`; n >= 1. With a mask, n is each row's
            number of present elements; a row with none gives NaN.
        q: a number in [0, 1] or a tensor of them with 0 or 1 dimensions; q gets no gradient.
        keepdim: keeps the reduced dimension with size 1.

    Returns:
        x's shape without `dim` (with size 1 there when keepdim); q's size first if q has a dimension.

    Raises:
        As `sort`; ValueError when q is out of range or x has no elements along dim.

    Cost:
        At most that of `sort`: for a number q and no mask, only the comparators that the two wanted wires
        depend on are run.

    Transforms:
        As `sort`.

    References:
        Hyndman and Fan, "Sample Quantiles in Statistical Packages", 1996, definition 7.

    Example:
        >>> import torch, difflayers as dl
        >>> dl.quantile(torch.tensor([4.0, 1.0, 3.0, 2.0]), 0.5, hard=True)
        tensor(2.5000)
    """
    function = "difflayers.quantile"
    keepdim = _checks.boolean(function, "keepdim", keepdim)
    rows = Rows(function, x, network=network, swap=swap, steepness=steepness, hard=hard, mask=mask, dim=dim)
    if rows.n == 0:
        raise ValueError(
            f"{function}: argument 'x' must have at least one element along dim, got shape {tuple(x.shape)}"
        )
    first, last = 0, rows.n
    if isinstance(q, Tensor):
        levels = _checks.tensor(function, "q", q).detach()
        if levels.dim() > 1:
            raise ValueError(f"{function}: argument 'q' must have 0 or 1 dimensions, got shape {tuple(levels.shape)}")
        if _checks.contents_are_checked(levels) and not bool(((levels >= 0) & (levels <= 1)).all()):
            raise ValueError(f"{function}: argument 'q' must lie in [0, 1], got {levels.tolist()}")
    else:
        level = _checks.number(function, "q", q, minimum=0.0, maximum=1.0)
        levels = torch.tensor(level, dtype=torch.float64)
        if mask is None:
            first = math.floor(level * (rows.n - 1))
            last = min(first + 2, rows.n)
    values = rows.transport("values", first=first, last=last)
    # positions are computed in float64: float32 misplaces floor(q (n - 1)) for large n
    at = levels.to(device=x.device, dtype=torch.float64).reshape(1, -1)
    at = at * (rows.n - 1 if rows.count is None else (rows.count - 1).clamp(min=0))
    at = at.expand(rows.size, -1)
    low = at.floor()
    below = values.gather(1, (low.long() - first).clamp(0, last - first - 1))
    above = values.gather(1, (at.ceil().long() - first).clamp(0, last - first - 1))
    weight = (at - low).to(values.dtype)
    # an exact position takes the one neighbour, equal infinities either: 0 * inf and inf - inf must not make NaN
    above = torch.where(weight > 0, above, below)
    mixed = (1 - weight) * below + weight * above
    result = torch.where((below == above) & below.isinf(), below, mixed)
    if rows.count is not None:
        result = torch.where(rows.count > 0, result, torch.nan)
    result = rows.restore(result)  # the quantiles stand at dim
    if levels.dim() == 0:
        return result if keepdim else result.squeeze(rows.dim)
    result = result.movedim(rows.dim, 0)
    return result.unsqueeze(rows.dim if rows.dim < 0 else rows.dim + 1) if keepdim else result


def median(
    x: Tensor,
    *,
    keepdim: bool = False,
    network: str | Network = "odd_even_merge",
    swap: str | Swap = "cauchy",
    steepness: Steepness = 10.0,
    hard: bool = False,
    mask: Tensor | None = None,
    dim: int = -1,
) -> Tensor:
    """The relaxed median, `quantile(x, 0.5)`: the mean of the two middle values when n is even.

    (`torch.median` returns the lower of the two instead.)

    Args:
        x, keepdim, network, swap, steepness, hard, mask, dim: see `quantile`.

    Returns:
        x's shape without `dim` (with size 1 there when keepdim).

    Raises:
        As `quantile`.

    Cost:
        As `quantile`.

    Transforms:
        As `sort`.

    Example:
        >>> import torch, difflayers as dl
        >>> dl.median(torch.tensor([3.0, 1.0, 2.0]), hard=True)
        tensor(2.)
    """
    return quantile(
        x, 0.5, keepdim=keepdim, network=network, swap=swap, steepness=steepness, hard=hard, mask=mask, dim=dim
    )
