"""LapSum top-k: distribution functions of Laplace variables, shifted so that they sum to k, in closed form."""

from __future__ import annotations

from typing import Union

import torch
from torch import Tensor, nn

from .. import _checks
from .._choice import Temperature, hardened
from ..schedules import Schedule
from ._base import Subset, SubsetModule, precise
from .threshold import near

__all__ = ["LapSumTopK", "lapsum_topk"]

Real = Union[float, Tensor]  # noqa: UP007 (evaluated at run time on Python 3.10)

MARGIN = 1e-12  # k is kept this far from 0 and n, where the threshold is infinite


def lapsum_topk(
    logits: Tensor,
    k: Real,
    temperature: Temperature = 1.0,
    *,
    hard: bool = False,
    dim: int = -1,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""Membership as the distribution function of the Laplace distribution, shifted so that the entries sum to k.

    $$m_i = F\Big(\frac{x_i - b}{\alpha}\Big), \qquad \sum_i m_i = k, \qquad
    F(u) = \tfrac12 e^u \ (u \le 0), \quad 1 - \tfrac12 e^{-u} \ (u > 0).$$

    Between two neighbouring scores the sum is $\tfrac12 A e^{-b} - \tfrac12 B e^b + \text{const}$, so b is an area
    hyperbolic sine. k may be any real number, and is learnable.

    Args:
        logits: `[..., n]`, any floating dtype, the scores x; -inf = masked, never a member.
        k: real, in [0, n]; at most the number of elements that are not masked. A number or a floating-point tensor
            broadcastable to logits with size 1 at `dim` (it gets a gradient).
        temperature: alpha, larger is softer; a positive number or a tensor broadcastable to logits with size 1 at
            `dim` (it gets a gradient).
        hard: forward 1 for the floor(k) largest and the rest of k for the next one; the gradient of the relaxation
            backward.
        dim: the dimension to choose along.
        generator: unused, there is no noise; all k-of-n functions take it.

    Returns:
        The shape and dtype of logits, in [0, 1], summing to k, increasing with the logits.

    Raises:
        TypeError: logits, a tensor k or a tensor temperature is not a floating-point tensor; an argument has the
            wrong type.
        ValueError: k, temperature or dim out of range; NaN or +inf logits; fewer than k elements present.

    Cost:
        O(n log n) time per row, in float64; a few times n floats are kept for backward.

    Transforms:
        backward, double backward (the second derivative jumps where a score equals b),
        torch.func.grad/vmap/jacrev, torch.compile(fullgraph=True).

    References:
        Struski, Bednarczyk, Podolak, Tabor, "LapSum - One Method to Differentiate Them All: Ranking, Sorting and
        Top-k Selection", ICML 2025.

    Example:
        >>> import torch, difflayers as dl
        >>> from difflayers import subsets
        >>> m = subsets.lapsum_topk(torch.tensor([1.0, 3.0, 0.0, 2.0]), 1.5, 0.1)
        >>> m.round(decimals=3), m.sum().round(decimals=4)
        (tensor([0.0000, 1.0000, 0.0000, 0.5000]), tensor(1.5000))
    """
    function = "difflayers.subsets.lapsum_topk"
    choice = Subset(function, logits, 0, temperature, hard=hard, dim=dim, generator=generator)
    if choice.rows.numel() == 0:
        _rows_of_k(choice, logits, k)
        return choice.restore(choice.rows * 1.0)
    wanted, count = _rows_of_k(choice, logits, k)
    inside = wanted.detach().clamp(torch.full_like(count, MARGIN), count - MARGIN)
    soft = _membership(choice.standardised(dtype=wanted.dtype), wanted + (inside - wanted.detach()))
    soft = soft.to(choice.rows.dtype)
    if choice.present is not None:
        soft = torch.where(choice.present, soft, 0.0)
    if choice.hard:
        order = choice.rows.detach().argsort(dim=1, descending=True, stable=True)
        position = torch.zeros_like(order).scatter(
            1, order, torch.arange(choice.n, device=order.device).expand_as(order)
        )
        soft = hardened((wanted.detach() - position).clamp(0, 1).to(soft.dtype), soft)
    if not choice.checked:
        fits = (wanted.detach() >= 0) & (wanted.detach() <= count)
        soft = torch.where(fits, soft, torch.nan)
    return choice.restore(soft)


def _rows_of_k(choice: Subset, logits: Tensor, k: Real) -> tuple[Tensor, Tensor]:
    """k and the number of present elements, [B, 1] each, in the dtype that is computed in."""
    dtype = precise(choice.rows.device)
    count = torch.full_like(choice.rows[:, :1].detach(), choice.n, dtype=dtype)
    if choice.n == 0:
        count = choice.rows.new_zeros(choice.size, 1, dtype=dtype)
    if choice.present is not None:
        count = choice.present.sum(1, keepdim=True).to(dtype)
    if isinstance(k, Tensor):
        k = _checks.keepdim(choice.function, "k", _checks.tensor(choice.function, "k", k), logits, choice.dim)
        wanted = k.movedim(choice.dim, -1).reshape(choice.size, 1).to(device=count.device, dtype=dtype)
        contents = _checks.contents_are_checked(wanted)
    else:
        number = _checks.number(choice.function, "k", k, minimum=0.0, maximum=float(choice.n))
        wanted = torch.full_like(count, number)
        contents = choice.checked
    if contents and choice.checked and wanted.numel() > 0:
        good = (wanted >= 0) & (wanted <= count)
        if not bool(good.all()):
            bad, most = wanted.detach()[~good][0].item(), int(count[~good][0])
            raise ValueError(
                f"{choice.function}: argument 'k' must be at least 0 and at most the number of elements that are "
                f"not masked (-inf) in every slice along dim {choice.dim}, got {bad:g} where {most} are present"
            )
    return wanted, count


def _membership(theta: Tensor, k: Tensor) -> Tensor:
    """F(theta - b) for theta [B, n] and k [B, 1] in (0, n)."""
    n = theta.shape[1]
    with torch.no_grad():
        descending = theta.detach().sort(dim=1, descending=True).values
        # an integer k has its threshold between two scores, another k near one of them
        inside = descending.gather(1, (k.ceil().long() - 1).clamp(0, n - 1))
        outside = descending.gather(1, k.floor().long().clamp(0, n - 1))
    theta = near(theta, inside, outside)
    with torch.no_grad():
        # the sum of the memberships if b were the m-th smallest score, for every m
        points = near(descending, inside, outside).flip(1)
        growth = points.exp()
        below = growth.cumsum(1) / growth
        above = (1 / growth).flip(1).cumsum(1).flip(1) * growth - 1  # without the point itself
        position = torch.arange(1, n + 1, device=theta.device)
        sums = below / 2 + (n - position) - above / 2
        lower = (sums >= k).sum(1, keepdim=True)  # so many scores are at most b
        border = points.gather(1, (lower - 1).clamp(min=0))
        is_lower = (theta.detach() <= border) & (lower > 0)
        # from here on, counted as it is: equal scores are on one side
        lower = is_lower.sum(1, keepdim=True)
    small = torch.where(is_lower, theta, -torch.inf).exp().sum(1, keepdim=True)
    large = torch.where(is_lower, -torch.inf, -theta).exp().sum(1, keepdim=True)
    # an empty side gets something that vanishes beside the other one
    small = torch.where(lower > 0, small, 1e-60 / large.detach())
    large = torch.where(lower < n, large, 1e-60 / small.detach())
    missing = k - (n - lower)
    border = (small / large).log() / 2 - (missing / (small * large).sqrt()).asinh()
    u = theta - border
    positive = u > 0
    return torch.where(positive, 1 - torch.where(positive, -u, 0.0).exp() / 2, torch.where(positive, 0.0, u).exp() / 2)


class LapSumTopK(SubsetModule):
    """`difflayers.subsets.lapsum_topk` as a module.

    Args:
        k: a real number, a tensor (kept as a buffer), or an `nn.Parameter`, which is then learned.
        hard, dim: see `difflayers.subsets.lapsum_topk`.
        temperature: a number, a tensor (kept as a buffer) or a schedule of `difflayers.schedules`.

    Returns:
        The module. Called as `module(logits, *, generator=None)`: the membership.

    Raises:
        As the function, at construction where the input is not needed.

    Cost, transforms, references: see the function.

    Example:
        >>> import torch, difflayers as dl
        >>> from difflayers import subsets
        >>> subsets.LapSumTopK(2, hard=True)(torch.tensor([1.0, 3.0, 0.0, 2.0]))
        tensor([0., 1., 0., 1.])
    """

    function = "difflayers.subsets.LapSumTopK"
    k: Real  # pyright: ignore[reportIncompatibleVariableOverride]

    def __init__(
        self, k: Real, temperature: Temperature | Schedule = 1.0, *, hard: bool = False, dim: int = -1
    ) -> None:
        super().__init__(0, temperature, hard=hard, dim=dim)
        del self.k
        if isinstance(k, Tensor):
            k = _checks.tensor(self.function, "k", k)
            if isinstance(k, nn.Parameter):
                self.register_parameter("k", k)
            else:
                self.register_buffer("k", k)
        else:
            self.k = _checks.number(self.function, "k", k, minimum=0.0)

    def forward(self, logits: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        return lapsum_topk(logits, self.k, self.temperature, hard=self.hard, dim=self.dim, generator=generator)

    def extra_repr(self) -> str:
        """The settings, as repr shows them."""
        shown = f"tensor of shape {tuple(self.k.shape)}" if isinstance(self.k, Tensor) else f"{self.k:g}"
        return f"k={shown}, {super(SubsetModule, self).extra_repr()}, hard={self.hard}"
