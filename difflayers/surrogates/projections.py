"""Euclidean projections onto common convex sets, in closed form: what ConvexLayer would compute, and exactly."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _checks

__all__ = ["project_box", "project_capped_simplex", "project_l1_ball", "project_l2_ball", "project_simplex"]

NAME = "difflayers.surrogates."


def project_simplex(x: Tensor, total: float = 1.0, *, dim: int = -1) -> Tensor:
    r"""The nearest point with entries of at least 0 that sum to `total`.

    $$ \operatorname*{argmin}_{p \ge 0,\; \sum_i p_i = s} \lVert p - x \rVert^2 = \max(x - t, 0) $$

    Args:
        x: `[..., n]` at `dim`, any floating dtype, finite; computed in float64 where the device has it.
        total: s, at least 0.
        dim: the dimension of the n entries.

    Returns:
        The shape and dtype of x.

    Raises:
        TypeError: x is not a floating-point tensor.
        ValueError: arguments out of range, NaN or infinity in x (checked on the CPU; elsewhere the slice is NaN).

    Cost:
        O(n log n) time a row, for one sort.

    Transforms:
        backward and double backward (zero almost everywhere: it is piecewise linear), torch.func.grad/vmap/jacrev,
        torch.compile(fullgraph=True), torch.export.

    References:
        Held, Wolfe, Crowder, "Validation of Subgradient Optimization", 1974; Duchi, Shalev-Shwartz, Singer, Chandra,
        "Efficient Projections onto the l1-Ball for Learning in High Dimensions", ICML 2008.

    Example:
        >>> import torch
        >>> from difflayers import surrogates
        >>> surrogates.project_simplex(torch.tensor([1.0, 0.5, -1.0]))
        tensor([0.7500, 0.2500, 0.0000])
    """
    function = NAME + "project_simplex"
    total = _checks.number(function, "total", total, minimum=0.0)
    rows = _Rows(function, x, dim)
    if rows.n == 0 and total > 0:
        raise ValueError(f"{function}: argument 'total' must be 0 for a set without entries, got {total:g}")
    return rows.restore(_capped(rows.values, total, total))  # no entry can exceed the total


def project_capped_simplex(x: Tensor, total: float, *, upper: float = 1.0, dim: int = -1) -> Tensor:
    r"""The nearest point with entries in [0, upper] that sum to `total`; with upper 1, the polytope of k-subsets.

    $$ \operatorname*{argmin}_{0 \le p \le u,\; \sum_i p_i = s} \lVert p - x \rVert^2 = \min(\max(x - t, 0), u) $$

    Args:
        x: `[..., n]` at `dim`, any floating dtype, finite; computed in float64 where the device has it.
        total: s, in [0, n u].
        upper: u, positive.
        dim: the dimension of the n entries.

    Returns:
        The shape and dtype of x.

    Raises:
        As `project_simplex`.

    Cost, transforms:
        As `project_simplex`.

    References:
        Wang, Lu, "Projection onto the Capped Simplex", 2015, arXiv 1503.01002.

    Example:
        >>> import torch
        >>> from difflayers import surrogates
        >>> surrogates.project_capped_simplex(torch.tensor([2.0, 0.5, 0.25, -1.0]), 2)
        tensor([1.0000, 0.6250, 0.3750, 0.0000])
    """
    function = NAME + "project_capped_simplex"
    upper = _checks.number(function, "upper", upper, above=0.0)
    rows = _Rows(function, x, dim)
    total = _checks.number(function, "total", total, minimum=0.0, maximum=rows.n * upper)
    return rows.restore(_capped(rows.values, total, upper))


def project_box(x: Tensor, lower: float | Tensor = 0.0, upper: float | Tensor = 1.0) -> Tensor:
    r"""The nearest point with every entry in its interval: $\min(\max(x, l), u)$.

    Args:
        x: any shape and floating dtype, without NaN.
        lower: l, a number or a tensor that broadcasts to x; it gets a gradient. -inf is no bound.
        upper: u, likewise, at least l.

    Returns:
        The shape and dtype of x. Entries on a bound pass their gradient to x.

    Raises:
        TypeError: x or a bound is of another type.
        ValueError: a shape that does not fit, lower > upper or NaN (contents are checked on the CPU).

    Cost:
        O(n) time.

    Transforms:
        As `project_simplex`.

    Example:
        >>> import torch
        >>> from difflayers import surrogates
        >>> surrogates.project_box(torch.tensor([1.5, 0.5, -1.0]))
        tensor([1.0000, 0.5000, 0.0000])
    """
    function = NAME + "project_box"
    x = _checks.tensor(function, "x", x)
    low, high = _bound(function, "lower", lower, x), _bound(function, "upper", upper, x)
    if _checks.contents_are_checked(x, low, high):
        if bool(x.isnan().any()):
            raise ValueError(f"{function}: argument 'x' must not contain NaN, got {int(x.isnan().sum())} of them")
        if not bool((low <= high).all()):
            raise ValueError(
                f"{function}: argument 'lower' must be at most 'upper' everywhere, got {int((~(low <= high)).sum())} "
                f"entries where it is not"
            )
    return torch.clamp(x, low, high)


def project_l2_ball(x: Tensor, radius: float = 1.0, *, dim: int = -1) -> Tensor:
    r"""The nearest point of the Euclidean ball around 0: $x \min(1, r / \lVert x \rVert_2)$.

    Args:
        x: `[..., n]` at `dim`, any floating dtype, finite; computed in float64 where the device has it.
        radius: r, at least 0.
        dim: the dimension of the n entries.

    Returns:
        The shape and dtype of x.

    Raises:
        As `project_simplex`.

    Cost:
        O(n) time.

    Transforms:
        As `project_simplex`; the second derivative is not zero outside of the ball.

    Example:
        >>> import torch
        >>> from difflayers import surrogates
        >>> surrogates.project_l2_ball(torch.tensor([3.0, 4.0]))
        tensor([0.6000, 0.8000])
    """
    function = NAME + "project_l2_ball"
    radius = _checks.number(function, "radius", radius, minimum=0.0)
    rows = _Rows(function, x, dim)
    outside = rows.values.detach().norm(dim=-1, keepdim=True) > radius
    safe = torch.where(outside, rows.values, 1.0)  # the norm has no derivative at 0, which is inside
    return rows.restore(torch.where(outside, rows.values * (radius / safe.norm(dim=-1, keepdim=True)), rows.values))


def project_l1_ball(x: Tensor, radius: float = 1.0, *, dim: int = -1) -> Tensor:
    r"""The nearest point whose absolute values sum to at most r: $\operatorname{sign}(x) \max(|x| - t, 0)$.

    Args:
        x: `[..., n]` at `dim`, any floating dtype, finite; computed in float64 where the device has it.
        radius: r, at least 0.
        dim: the dimension of the n entries.

    Returns:
        The shape and dtype of x.

    Raises:
        As `project_simplex`.

    Cost, transforms:
        As `project_simplex`.

    References:
        Duchi, Shalev-Shwartz, Singer, Chandra, "Efficient Projections onto the l1-Ball for Learning in High
        Dimensions", ICML 2008.

    Example:
        >>> import torch
        >>> from difflayers import surrogates
        >>> surrogates.project_l1_ball(torch.tensor([1.0, -0.5, 0.1]))
        tensor([ 0.7500, -0.2500,  0.0000])
    """
    function = NAME + "project_l1_ball"
    radius = _checks.number(function, "radius", radius, minimum=0.0)
    rows = _Rows(function, x, dim)
    if rows.n == 0:
        return rows.restore(rows.values.clone())
    outside = rows.values.detach().abs().sum(-1, keepdim=True) > radius
    sign = torch.where(rows.values.detach() < 0, -1.0, 1.0)
    return rows.restore(torch.where(outside, sign * _capped(sign * rows.values, radius, radius), rows.values))


class _Rows:
    """x with `dim` last, in float64; checked."""

    def __init__(self, function: str, x: Tensor, dim: int) -> None:
        x = _checks.tensor(function, "x", x)
        self.dim, self.dtype = _checks.dimension(function, "x", x, dim), x.dtype
        self.values = x.movedim(self.dim, -1).to(torch.float32 if x.device.type == "mps" else torch.float64)
        self.n = self.values.shape[-1]
        finite = self.values.detach().isfinite()
        self.good = finite.all(-1, keepdim=True)
        if _checks.contents_are_checked(x) and not bool(self.good.all()):
            raise ValueError(
                f"{function}: argument 'x' must be finite, got {int((~finite).sum())} entries of NaN or infinity"
            )

    def restore(self, values: Tensor) -> Tensor:
        return torch.where(self.good, values, torch.nan).to(self.dtype).movedim(-1, self.dim)


def _bound(function: str, name: str, value: object, x: Tensor) -> Tensor:
    if not isinstance(value, Tensor):
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise TypeError(f"{function}: argument '{name}' must be a number or a tensor, got {type(value).__name__}")
        # what the dtype cannot hold is no bound, as infinity is none
        return torch.full((), float(value), dtype=torch.float64).to(x.device, x.dtype)
    try:
        return _checks.tensor(function, name, value).to(x.dtype).expand(x.shape)
    except RuntimeError:
        raise ValueError(
            f"{function}: argument '{name}' must broadcast to the shape of x, {tuple(x.shape)}, "
            f"got {tuple(value.shape)}"
        ) from None


def _capped(x: Tensor, total: float, upper: float) -> Tensor:
    """Rows of x projected onto {0 <= p <= upper, sum p = total}; differentiable in x."""
    n = x.shape[-1]
    if n == 0 or total == 0 or upper == 0:
        return x * 0.0
    fixed = x.detach()
    # The sum of clamp(x - t, 0, upper) as t falls: every x adds 1 to the slope, every x - upper takes it away again.
    points, order = torch.cat([fixed, fixed - upper], -1).sort(-1, descending=True)
    slopes = torch.where(order < n, 1.0, -1.0).to(x.dtype).cumsum(-1)
    sums = ((points[..., :-1] - points[..., 1:]) * slopes[..., :-1]).cumsum(-1)  # at points[..., 1:]
    after = (sums < total).sum(-1, keepdim=True).clamp(max=2 * n - 2)  # rounding may leave all below n * upper
    before_point, after_point = points.gather(-1, after), points.gather(-1, after + 1)
    free = (fixed >= before_point) & (fixed - upper <= after_point)
    full = (fixed - upper >= before_point) & ~free
    # None is free where rounding leads into the gap after a plateau: any level in the gap will do.
    middle = after_point + (before_point - after_point) / 2
    level = torch.where(free.any(-1, keepdim=True), _level(fixed, free, full, total, upper), middle)
    # On a plateau (whole entries only) the level is a bound of entries that look free, and nothing moves.
    rounding = 16 * torch.finfo(x.dtype).eps * (fixed.abs().amax(-1, keepdim=True) + upper)
    above = fixed - level
    free, full = (above > rounding) & (above < upper - rounding), above >= upper - rounding
    inner = x - _level(x, free, full, total, upper)
    inner = inner + (inner.clamp(0.0, upper) - inner).detach()
    return torch.where(free, inner, upper * full.to(x.dtype))


def _level(x: Tensor, free: Tensor, full: Tensor, total: float, upper: float) -> Tensor:
    """The t at which the free entries make up what the full ones leave of the total."""
    count = free.sum(-1, keepdim=True).clamp(min=1)
    taken = upper * full.sum(-1, keepdim=True).to(x.dtype)  # an integer times a Python number would be float32
    return (torch.where(free, x, 0.0).sum(-1, keepdim=True) + taken - total) / count
