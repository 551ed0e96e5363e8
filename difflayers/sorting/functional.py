"""Relaxed sorting, ranking, top-k and payload sorting as plain functions.

All of them are one operation, the transport of values or of a payload through a relaxed sorting network
(see `reference.transport`), with different payloads: the identity gives the permutation matrix, 1..n through
the transpose gives ranks, an indicator of the best k positions through the transpose gives top-k membership.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from .. import _checks
from .networks import Network
from .rows import Rows, Steepness
from .swaps import Swap

__all__ = ["TopKResult", "median", "permutation", "quantile", "rank", "sort", "sort_by", "topk"]


class TopKResult(NamedTuple):
    """Result of `topk`: `values` [..., k], best first, and `membership` [..., n] in [0, 1], summing to k."""

    values: Tensor
    membership: Tensor


def sort(
    x: Tensor,
    *,
    descending: bool = False,
    network: str | Network = "odd_even_merge",
    swap: str | Swap = "cauchy",
    steepness: Steepness = 10.0,
    hard: bool = False,
    mask: Tensor | None = None,
    dim: int = -1,
) -> Tensor:
    r"""Sorts along a dimension with a relaxed sorting network, ascending.

    Each comparator replaces (a, b) by

    $$a' = \alpha a + (1 - \alpha) b, \qquad b' = (1 - \alpha) a + \alpha b, \qquad \alpha = f(b - a; s).$$

    The sum of the values is conserved. With a monotonic swap the result is monotonic in every input.

    Args:
        x: `[..., n]`, any floating dtype; n may be 0 or 1. float16 and bfloat16 are computed in float32.
        descending: the ascending result flipped.
        network: "odd_even", "bitonic", "odd_even_merge", or a `difflayers.sorting.Network` on n wires.
        swap: "logistic", "logistic_art", "gaussian", "reciprocal", "cauchy", "optimal", or a
            `difflayers.swaps` object.
        steepness: larger is harder; a positive number, a tensor broadcastable to x with size 1 at `dim`
            (it gets a gradient), or a `RelativeSteepness`.
        hard: error-free swaps: the exact sorted values, with the gradient of the relaxed network
            evaluated at the exact wire values.
        mask: bool, broadcastable to x, True = present. Absent elements act as +inf, their outputs
            (the last positions) are 0 and nothing flows back to them.
        dim: the dimension to sort along.

    Returns:
        The shape and dtype of x. A row that contains NaN is NaN throughout, its gradient too. Infinities go
        to the ends and leak nothing. Tied elements share the gradient; with three or more ties the shares
        depend on the wires' positions in the network.

    Raises:
        TypeError: x or a tensor steepness is not a floating-point tensor; mask is not bool.
        ValueError: dim, shapes or steepness out of range; unknown network or swap.

    Cost:
        O(n log^2 n) time per row (O(n^2) for "odd_even"); n floats per row are kept for backward.

    Transforms:
        backward, double backward, torch.func.grad/vmap/jacrev, torch.compile(fullgraph=True),
        torch.export. Forward mode (jvp) raises.

    References:
        Petersen et al., arXiv 2105.04019, eq. 3-5; arXiv 2203.09630; error-free swaps: Kim, Yoon, Cho,
        "Generalized Neural Sorting Networks with Error-Free Differentiable Swap Functions", ICLR 2024,
        arXiv 2310.07174, eq. 9-10.

    Example:
        >>> import torch, difflayers as dl
        >>> dl.sort(torch.tensor([3.0, 1.0, 2.0]), steepness=1e6).round(decimals=3)
        tensor([1., 2., 3.])
        >>> dl.sort(torch.tensor([3.0, 1.0, 2.0]), hard=True)
        tensor([1., 2., 3.])
    """
    rows = Rows("difflayers.sort", x, network=network, swap=swap, steepness=steepness, hard=hard, mask=mask, dim=dim)
    values = rows.transport("values")
    if mask is not None:
        values = torch.where(rows.occupied(), values, 0.0)
    if _checks.boolean("difflayers.sort", "descending", descending):
        values = values.flip(1)
    return rows.restore(values)


def permutation(
    x: Tensor,
    *,
    descending: bool = False,
    network: str | Network = "odd_even_merge",
    swap: str | Swap = "cauchy",
    steepness: Steepness = 10.0,
    hard: bool = False,
    mask: Tensor | None = None,
    dim: int = -1,
) -> Tensor:
    r"""The relaxed permutation matrix that sorts x: `P[..., i, j]` is the weight of input j at output i.

    $P = M_C \cdots M_1$, where $M_c$ mixes the two wires of comparator c with
    $\begin{pmatrix}\alpha & 1-\alpha\\ 1-\alpha & \alpha\end{pmatrix}$; doubly stochastic, and
    `sort(x) = P @ x`.

    Args:
        x, network, swap, steepness, hard, mask, dim: see `sort`. With hard=True, P is the exact permutation
            matrix forward.
        descending: the ascending matrix with its rows flipped.

    Returns:
        `[..., n, n]` in the dtype of x, where ... are x's dimensions without `dim`. With a mask, the
        columns of absent elements and the rows of the positions they fill are 0.

    Raises:
        As `sort`.

    Cost:
        O(n^2 log^2 n) time per row; peak memory is the result itself. If P is only going to be multiplied,
        `sort_by`, `rank` and `topk` never form it.

    Transforms:
        As `sort`.

    References:
        arXiv 2105.04019, eq. 6-8 (whose matrix is this one; their code returns the transpose).

    Example:
        >>> import torch, difflayers as dl
        >>> dl.permutation(torch.tensor([3.0, 1.0, 2.0]), hard=True)
        tensor([[0., 1., 0.],
                [0., 0., 1.],
                [1., 0., 0.]])
    """
    rows = Rows(
        "difflayers.permutation", x,
        network=network, swap=swap, steepness=steepness, hard=hard, mask=mask, dim=dim,
    )  # fmt: skip
    matrix = rows.transport("matrix")
    if mask is not None:
        matrix = torch.where(rows.occupied()[..., None], matrix, 0.0)
    if _checks.boolean("difflayers.permutation", "descending", descending):
        matrix = matrix.flip(1)
    return matrix.reshape(*rows.lead, rows.n, rows.n).to(x.dtype)


def rank(
    x: Tensor,
    *,
    descending: bool = False,
    network: str | Network = "odd_even_merge",
    swap: str | Swap = "cauchy",
    steepness: Steepness = 10.0,
    hard: bool = False,
    mask: Tensor | None = None,
    dim: int = -1,
) -> Tensor:
    r"""Relaxed ranks, 1 = smallest: $r = P(x)^\top (1, \dots, n)$, computed without forming P.

    Args:
        x, network, swap, steepness, hard, mask, dim: see `sort`. With hard=True the ranks are exactly the
            ordinal ones; ties get distinct ranks.
        descending: n + 1 - rank.

    Returns:
        The shape and dtype of x; 0 for absent elements. float16 holds integers exactly only up to 2048.

    Raises:
        As `sort`.

    Cost:
        Twice the time of `sort`; n floats per row are kept for backward.

    Transforms:
        As `sort`.

    References:
        arXiv 2105.04019, section 3.

    Example:
        >>> import torch, difflayers as dl
        >>> dl.rank(torch.tensor([0.3, 0.1, 0.2]), hard=True)
        tensor([3., 1., 2.])
    """
    rows = Rows("difflayers.rank", x, network=network, swap=swap, steepness=steepness, hard=hard, mask=mask, dim=dim)
    positions = torch.arange(1, rows.n + 1, device=x.device, dtype=rows.scores.dtype)
    if _checks.boolean("difflayers.rank", "descending", descending):
        positions = positions.flip(0)
    ranks = rows.transport("carry_transposed", positions[None, :, None])[..., 0]
    if rows.present is not None:
        ranks = torch.where(rows.present, ranks, 0.0)
    return rows.restore(ranks)


def sort_by(
    x: Tensor,
    payload: Tensor,
    *,
    inverse: bool = False,
    descending: bool = False,
    network: str | Network = "odd_even_merge",
    swap: str | Swap = "cauchy",
    steepness: Steepness = 10.0,
    hard: bool = False,
    mask: Tensor | None = None,
    dim: int = -1,
) -> Tensor:
    r"""Sorts a payload by the order of x: $P(x)\,V$, or $P(x)^\top V$ with inverse=True, without forming P.

    The differentiable `payload[argsort(x)]`; with inverse=True, the differentiable scatter that undoes it.

    Args:
        x: the scores, see `sort`.
        payload: `[..., n, m]`; its batch dimensions broadcast with those of x (without `dim`).
        inverse: applies the transpose: payload row i goes back to the input that belongs at output i.
        descending: the order is the ascending one flipped.
        network, swap, steepness, hard, mask, dim: see `sort`. Payload rows of absent elements (with
            inverse=True: of the positions they would fill) are ignored, whatever they hold.

    Returns:
        `[..., n, m]` in the dtype of payload.

    Raises:
        TypeError, ValueError: as `sort`; payload's shape does not fit x.

    Cost:
        O(m n log^2 n) time per row; n + n m floats per row are kept for backward.

    Transforms:
        As `sort`.

    References:
        arXiv 2105.04019, section 3.

    Example:
        >>> import torch, difflayers as dl
        >>> items = torch.tensor([[30.0], [10.0], [20.0]])
        >>> dl.sort_by(torch.tensor([0.3, 0.1, 0.2]), items, hard=True)[:, 0]
        tensor([10., 20., 30.])
    """
    function = "difflayers.sort_by"
    payload = _checks.tensor(function, "payload", payload)
    x = _checks.tensor(function, "x", x)
    promoted = torch.promote_types(x.dtype, payload.dtype)
    compute_dtype = torch.float32 if promoted in (torch.float16, torch.bfloat16) else promoted
    dim = _checks.dimension(function, "x", x, dim)
    x = x.movedim(dim, -1)
    mask = mask.movedim(dim, -1) if isinstance(mask, Tensor) and mask.dim() == x.dim() else mask
    if isinstance(steepness, Tensor) and steepness.dim() == x.dim():
        steepness = steepness.movedim(dim, -1)
    if payload.dim() < 2 or payload.shape[-2] != x.shape[-1]:
        raise ValueError(f"{function}: argument 'payload' must have shape [..., n, m] with n = {x.shape[-1]}, "
                         f"the size of x at dim, got {tuple(payload.shape)}")
    try:
        lead = torch.broadcast_shapes(x.shape[:-1], payload.shape[:-2])
    except RuntimeError:
        raise ValueError(
            f"{function}: argument 'payload' must have batch dimensions that broadcast with those of x, "
            f"{tuple(x.shape[:-1])}, got {tuple(payload.shape[:-2])}"
        ) from None
    rows = Rows(
        function, x.expand(*lead, x.shape[-1]), network=network, swap=swap, steepness=steepness, hard=hard,
        mask=mask, dim=-1, compute_dtype=compute_dtype,
    )  # fmt: skip
    n, m = payload.shape[-2:]
    moved = payload.to(compute_dtype).expand(*lead, n, m).reshape(rows.size, n, m)
    flip = _checks.boolean(function, "descending", descending)
    if _checks.boolean(function, "inverse", inverse):
        moved = moved.flip(1) if flip else moved
        if mask is not None:
            moved = torch.where(rows.occupied()[..., None], moved, 0.0)
        moved = rows.transport("carry_transposed", moved)
        if rows.present is not None:
            moved = torch.where(rows.present[..., None], moved, 0.0)
    else:
        if rows.present is not None:
            moved = torch.where(rows.present[..., None], moved, 0.0)
        moved = rows.transport("carry", moved)
        if mask is not None:
            moved = torch.where(rows.occupied()[..., None], moved, 0.0)
        moved = moved.flip(1) if flip else moved
    return moved.reshape(*lead, n, m).to(payload.dtype)


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
        O(n log n log k) comparators are left of O(n log^2 n).

    Transforms:
        As `sort`.

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

    With y = sort(x) and h = q (n - 1): $(1 - h + \lfloor h \rfloor)\, y_{\lfloor h \rfloor} + (h - \lfloor h \rfloor)\, y_{\lceil h \rceil}$.

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
    rows = Rows(function, x, network=network, swap=swap, steepness=steepness, hard=hard, mask=mask, dim=dim)
    if rows.n == 0:
        raise ValueError(f"{function}: argument 'x' must have at least one element along dim, got shape {tuple(x.shape)}")
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
    # an exact position takes the one neighbour: 0 * inf of the other must not make it NaN
    result = torch.where(weight > 0, below + weight * (torch.where(weight > 0, above, below) - below), below)
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
