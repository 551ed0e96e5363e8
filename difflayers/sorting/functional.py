"""Relaxed sorting, ranking and payload sorting as plain functions.

All of them are one operation, the transport of values or of a payload through a relaxed sorting network
(see `reference.transport`), with different payloads: the identity gives the permutation matrix, 1..n through
the transpose gives ranks, an indicator of the best k positions through the transpose gives top-k membership.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _checks
from .networks import Network
from .rows import Rows, Steepness
from .swaps import Swap

__all__ = ["permutation", "rank", "sort", "sort_by"]


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
        As `sort`; with hard=True the second derivative raises.

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
        As `sort`; with hard=True the second derivative raises.

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
        raise ValueError(
            f"{function}: argument 'payload' must have shape [..., n, m] with n = {x.shape[-1]}, "
            f"the size of x at dim, got {tuple(payload.shape)}"
        )
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
