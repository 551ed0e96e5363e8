"""Sparse replacements of the softmax: the same kind of result, with exact zeros.

The support (which entries are not zero) and the threshold are found without gradient, in float64; then the result is
written again as a closed form of the entries on the support, whose derivatives of every order are the right ones.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from .. import _checks
from .._choice import Choice

__all__ = ["Entmax15", "Sparsemax", "entmax15", "sparsemax"]


def _sorted(values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Values in descending order, their number so far, their sum so far; each [B, n] float64."""
    # the threshold is at least -1, so what is below (-inf as well) is out of the support wherever exactly it stands
    ordered = values.clamp(min=-1.0).sort(1, descending=True).values
    count = torch.ones_like(ordered).cumsum(1)
    return ordered, count, ordered.cumsum(1)


def _last(thresholds: Tensor, inside: Tensor) -> Tensor:
    """[B, 1]: the threshold of the largest candidate support that is consistent; the first always is."""
    return thresholds.gather(1, (inside.sum(1, keepdim=True) - 1).clamp(min=0))


def sparsemax_threshold(values: Tensor) -> Tensor:
    """[B, 1]: t with sum(max(values - t, 0)) = 1, for rows whose maximum is 0."""
    ordered, count, total = _sorted(values)
    thresholds = (total - 1) / count
    return _last(thresholds, ordered > thresholds)


def entmax15_threshold(values: Tensor) -> Tensor:
    """[B, 1]: t with sum(max(values - t, 0)^2) = 1, for rows whose maximum is 0."""
    ordered, count, total = _sorted(values)
    mean = total / count
    spread = ordered.square().cumsum(1) - count * mean.square()
    # beyond the support the quadratic equation may have no solution
    thresholds = mean - ((1 - spread) / count).clamp(min=0).sqrt()
    return _last(thresholds, ordered > thresholds)


def sparsemax_on(above: Tensor, support: Tensor) -> Tensor:
    """The closed form on the support, of the heights above the threshold (0 elsewhere)."""
    excess = (above.sum(1, keepdim=True) - 1) / support.sum(1, keepdim=True)  # 0 but for rounding; its gradient is not
    result = torch.where(support, above - excess, 0.0)
    return result + (result.clamp(min=0) - result).detach()  # rounding may leave -1e-8


def entmax15_on(above: Tensor, support: Tensor) -> Tensor:
    """The closed form on the support, of the heights above the threshold (0 elsewhere)."""
    total, count = above.sum(1, keepdim=True), support.sum(1, keepdim=True)
    excess = above.square().sum(1, keepdim=True) - 1  # 0 but for rounding; its gradient is not
    # the small root e of sum (above - e)^2 = 1; total is at least 1, so nothing cancels
    shift = excess / (total + (total.square() - count * excess).sqrt())
    return torch.where(support, (above - shift).square(), 0.0)


def _normalised(
    function: str,
    x: Tensor,
    dim: int,
    dtype: torch.dtype | None,
    scale: float,
    threshold: Callable[[Tensor], Tensor],
    closed_form: Callable[[Tensor, Tensor], Tensor],
) -> Tensor:
    if dtype is not None:
        if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
            raise TypeError(f"{function}: argument 'dtype' must be a floating-point torch.dtype or None, got {dtype}")
        if isinstance(x, Tensor):
            x = x.to(dtype)
    choice = Choice(function, x, dim=dim, name="x")
    if choice.n == 0:
        return choice.restore(choice.rows.clone())
    # the row's maximum becomes 0, which neither the result nor its gradient depends on
    values = (choice.rows - choice.rows.detach().amax(1, keepdim=True)) * scale
    fixed = values.detach()
    if fixed.device.type != "mps":  # which has no float64
        fixed = fixed.double()
    level = threshold(fixed)
    support = fixed > level
    above = torch.where(support, values - level.to(values.dtype), 0.0)
    return choice.restore(closed_form(above, support))


def sparsemax(x: Tensor, dim: int = -1, *, dtype: torch.dtype | None = None) -> Tensor:
    r"""The point of the probability simplex nearest to x: a softmax with exact zeros.

    $$p = \operatorname*{argmin}_{p \in \Delta} \lVert p - x \rVert^2 = \max(x - t, 0), \qquad
    \textstyle\sum_i p_i = 1.$$

    Args:
        x: `[..., n]`, any floating dtype; -inf masks an entry out. float16 and bfloat16 are computed in float32.
        dim: the dimension that is normalised.
        dtype: as in torch.softmax: x is converted to it first.

    Returns:
        The shape of x; at least 0, sums to 1 along `dim`.

    Raises:
        TypeError: x is not a floating-point tensor (after conversion to dtype).
        ValueError: NaN or +inf in x, a slice that is -inf throughout (contents are checked on the CPU; elsewhere
            the slice is NaN), dim out of range.

    Cost:
        O(n log n) time a row, for one sort; n numbers a row are kept for backward.

    Transforms:
        backward and double backward (zero almost everywhere: it is piecewise linear), torch.func.grad/vmap/jacrev/jvp,
        torch.compile(fullgraph=True), torch.export. At a kink the gradient is that of the smaller support.

    References:
        Martins, Astudillo, "From Softmax to Sparsemax: A Sparse Model of Attention and Multi-Label Classification",
        ICML 2016, arXiv 1602.02068, Algorithm 1.

    Example:
        >>> import torch
        >>> from difflayers import estimators
        >>> estimators.sparsemax(torch.tensor([1.0, 0.5, -1.0]))
        tensor([0.7500, 0.2500, 0.0000])
    """
    return _normalised("difflayers.estimators.sparsemax", x, dim, dtype, 1.0, sparsemax_threshold, sparsemax_on)


def entmax15(x: Tensor, dim: int = -1, *, dtype: torch.dtype | None = None) -> Tensor:
    r"""1.5-entmax: half-way from softmax to sparsemax; smooth on the inside, with exact zeros.

    $$p_i = \max\left(\tfrac12 x_i - t, 0\right)^2, \qquad \textstyle\sum_i p_i = 1.$$

    Args:
        x: `[..., n]`, any floating dtype; -inf masks an entry out. float16 and bfloat16 are computed in float32.
        dim: the dimension that is normalised.
        dtype: as in torch.softmax: x is converted to it first.

    Returns:
        The shape of x; at least 0, sums to 1 along `dim`.

    Raises:
        TypeError: x is not a floating-point tensor (after conversion to dtype).
        ValueError: NaN or +inf in x, a slice that is -inf throughout (contents are checked on the CPU; elsewhere
            the slice is NaN), dim out of range.

    Cost:
        O(n log n) time a row, for one sort; a few times n numbers a row are kept for backward.

    Transforms:
        backward and double backward, torch.func.grad/vmap/jacrev/jvp, torch.compile(fullgraph=True), torch.export. The
        first derivative is continuous; the second has a jump where the support changes.

    References:
        Peters, Niculae, Martins, "Sparse Sequence-to-Sequence Models", ACL 2019, arXiv 1905.05702, Algorithm 2.

    Example:
        >>> import torch
        >>> from difflayers import estimators
        >>> estimators.entmax15(torch.tensor([1.0, 1.0, -3.0]))
        tensor([0.5000, 0.5000, 0.0000])
    """
    return _normalised("difflayers.estimators.entmax15", x, dim, dtype, 0.5, entmax15_threshold, entmax15_on)


class _Normaliser(nn.Module):
    def __init__(self, dim: int = -1) -> None:
        super().__init__()
        self.dim = _checks.integer(f"difflayers.estimators.{type(self).__name__}", "dim", dim)

    def extra_repr(self) -> str:
        """The settings, as repr shows them."""
        return f"dim={self.dim}"


class Sparsemax(_Normaliser):
    """`sparsemax` as a module, in place of torch.nn.Softmax.

    Args:
        dim: the dimension that is normalised.

    Returns:
        Of a call with x: the shape and dtype of x.

    Raises:
        As `sparsemax`.

    Cost, transforms:
        As `sparsemax`.

    Example:
        >>> import torch
        >>> from difflayers import estimators
        >>> estimators.Sparsemax()(torch.tensor([2.0, 0.0]))
        tensor([1., 0.])
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalises along `dim`."""
        return sparsemax(x, self.dim)


class Entmax15(_Normaliser):
    """`entmax15` as a module, in place of torch.nn.Softmax.

    Args:
        dim: the dimension that is normalised.

    Returns:
        Of a call with x: the shape and dtype of x.

    Raises:
        As `entmax15`.

    Cost, transforms:
        As `entmax15`.

    Example:
        >>> import torch
        >>> from difflayers import estimators
        >>> estimators.Entmax15()(torch.tensor([2.0, 0.0]))
        tensor([1., 0.])
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalises along `dim`."""
        return entmax15(x, self.dim)
