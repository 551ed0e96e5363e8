"""Modules of the relaxed sorting functions: a function with its settings remembered."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .. import _checks
from . import networks, swaps
from .functional import permutation, rank, sort
from .networks import Network
from .rows import Steepness
from .selection import TopKResult, topk
from .steepness import RelativeSteepness
from .swaps import Swap

__all__ = ["Rank", "Sort", "Sorted", "SortingNetwork", "TopK"]


class Sorted(NamedTuple):
    """Both results of a `SortingNetwork`: `values` in the shape of x and `permutation` [..., n, n]."""

    values: Tensor
    permutation: Tensor


class NetworkModule(nn.Module):
    """Base of every module over a relaxed network: checks the settings of `sort` once and remembers them.

    A mask is a buffer that is not saved. A steepness tensor is a buffer, `fixed_steepness`; with learnable=True
    the steepness is the exponential of the parameter `log_steepness`, so no step can make it negative.
    """

    function: str  # the name in messages
    mask: Tensor | None
    fixed_steepness: Tensor | None
    log_steepness: nn.Parameter | None

    def __init__(
        self,
        *,
        network: str | Network,
        swap: str | Swap,
        steepness: Steepness,
        hard: bool,
        mask: Tensor | None,
        dim: int,
        n: int | None = None,
        learnable: bool = False,
    ) -> None:
        super().__init__()
        wires = getattr(network, "n", 0) if n is None else n  # where n is unknown, the call compares the two
        networks.resolve(self.function, network, wires)
        swaps.resolve(self.function, swap)
        self.network = network
        self.swap = swap
        self.hard = _checks.boolean(self.function, "hard", hard)
        self.dim = _checks.integer(self.function, "dim", dim)
        if mask is not None and (not isinstance(mask, Tensor) or mask.dtype != torch.bool):
            got = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
            raise TypeError(
                f"{self.function}: argument 'mask' must be a bool tensor (True = present), got {got}; "
                f"compare it, for example mask > 0"
            )
        self.register_buffer("mask", mask, persistent=False)
        self._remember_steepness(steepness, _checks.boolean(self.function, "learnable", learnable))

    def _remember_steepness(self, steepness: Steepness, learnable: bool) -> None:
        self.given_steepness: float | RelativeSteepness | None = None
        fixed: Tensor | None = None
        logarithm: Tensor | None = None
        if isinstance(steepness, Tensor):
            steepness = _checks.tensor(self.function, "steepness", steepness)
            positive = (steepness > 0) & steepness.isfinite()
            if _checks.contents_are_checked(steepness) and not bool(positive.all()):
                bad = steepness.detach()[~positive].flatten()[0].item()
                raise ValueError(
                    f"{self.function}: argument 'steepness' must be positive and finite everywhere, got {bad}"
                )
            if steepness.requires_grad and not learnable:
                raise ValueError(
                    f"{self.function}: argument 'steepness' must not require a gradient in a module, got a tensor that "
                    f"does; use SortingNetwork(n, learnable=True), or pass it to the function, difflayers.sort"
                )
            fixed = steepness.detach()
            logarithm = fixed.log()
        elif isinstance(steepness, RelativeSteepness):
            if learnable:
                raise ValueError(
                    f"{self.function}: argument 'steepness' must be a number or a tensor when learnable=True, "
                    f"got {steepness!r}; pass learnable=False or the number {steepness.factor}"
                )
            self.given_steepness = steepness
        else:
            value = _checks.number(self.function, "steepness", steepness, above=0.0)
            self.given_steepness = value
            logarithm = torch.tensor(math.log(value))
        self.register_buffer("fixed_steepness", None if learnable else fixed)
        parameter = nn.Parameter(logarithm) if learnable and logarithm is not None else None
        self.register_parameter("log_steepness", parameter)

    @property
    def steepness(self) -> Steepness:
        """The steepness in use; with learnable=True the exponential of the parameter."""
        if self.log_steepness is not None:
            half = self.log_steepness.dtype in (torch.float16, torch.bfloat16)  # exp(12) is beyond float16
            logarithm = self.log_steepness.float() if half else self.log_steepness
            # a diverged parameter must not round to 0 or inf, which are not steepnesses
            limits = torch.finfo(logarithm.dtype)
            return logarithm.exp().clamp(limits.tiny, limits.max)
        if self.fixed_steepness is not None:
            return self.fixed_steepness
        assert self.given_steepness is not None
        return self.given_steepness

    @steepness.setter
    def steepness(self, value: Steepness) -> None:
        """For schedules that raise the steepness during training; a learnable one belongs to the optimiser."""
        if self.log_steepness is not None:
            raise ValueError(
                f"{self.function}: attribute 'steepness' must not be set when learnable=True, got {value}; "
                f"write its logarithm into log_steepness.data instead"
            )
        self._remember_steepness(value, learnable=False)

    def settings(self, mask: Tensor | None) -> dict[str, Any]:
        """The keyword arguments for a function; a mask given to the call replaces the constructor's."""
        return {
            "network": self.network,
            "swap": self.swap,
            "steepness": self.steepness,
            "hard": self.hard,
            "mask": self.mask if mask is None else mask,
            "dim": self.dim,
        }

    def extra_repr(self) -> str:
        steepness = self.steepness
        if isinstance(steepness, Tensor):
            known = steepness.numel() == 1 and steepness.device.type != "meta"
            steepness = f"{steepness.item():g}" if known else f"tensor of shape {tuple(steepness.shape)}"
        learnable = " (learnable)" if self.log_steepness is not None else ""
        mask = "" if self.mask is None else f", mask of shape {tuple(self.mask.shape)}"
        return (
            f"network={self.network!r}, swap={self.swap!r}, steepness={steepness}{learnable}, "
            f"hard={self.hard}, dim={self.dim}{mask}"
        )


class SortingNetwork(NetworkModule):
    r"""A relaxed sorting network on n wires: values, permutation matrix, ranks, or values and matrix.

    $y = P(x)\,x$ and $r = P(x)^\top (1, \dots, n)$, with P of `difflayers.permutation`. The matrix is computed
    only where it is returned.

    Args:
        n: number of elements, checked against the size of x at `dim`.
        returns: "values", "permutation", "ranks", or "both" (a `Sorted` of values and permutation).
        learnable: makes the steepness a parameter, kept as its logarithm `log_steepness` and starting from
            the given number or tensor; `steepness` is its value.
        descending: the ascending result flipped.
        network, swap, steepness, hard, mask, dim: see `difflayers.sort`. A tensor steepness and the mask
            become buffers (the mask is not saved in state_dict) and move with the module.

    Returns:
        The module. Called as `module(x, mask=None)`, where a mask replaces the constructor's: values or ranks
        in the shape of x, the matrix `[..., n, n]`, or `Sorted(values, permutation)`.

    Raises:
        TypeError, ValueError: at construction for any setting, a network that has not n wires, or a
            `RelativeSteepness` with learnable=True; at the call when x has not n elements along dim.

    Cost:
        That of the function behind `returns`; "both" is one pass of `sort` and one of `permutation`.

    Transforms:
        As `difflayers.sort`; deepcopy, pickle (unless swap is a `Custom` of a lambda), state_dict.

    References:
        Petersen et al., arXiv 2105.04019; arXiv 2203.09630; Kim, Yoon, Cho, arXiv 2310.07174.

    Example:
        >>> import torch, difflayers as dl
        >>> network = dl.SortingNetwork(3, returns="both", hard=True)
        >>> network(torch.tensor([3.0, 1.0, 2.0])).values
        tensor([1., 2., 3.])
    """

    function = "difflayers.SortingNetwork"

    def __init__(
        self,
        n: int,
        *,
        returns: str = "values",
        learnable: bool = False,
        descending: bool = False,
        network: str | Network = "odd_even_merge",
        swap: str | Swap = "cauchy",
        steepness: Steepness = 10.0,
        hard: bool = False,
        mask: Tensor | None = None,
        dim: int = -1,
    ) -> None:
        n = _checks.integer(self.function, "n", n, minimum=0)
        super().__init__(
            network=network, swap=swap, steepness=steepness, hard=hard, mask=mask, dim=dim, n=n, learnable=learnable
        )
        self.n = n
        self.returns = _checks.choice(self.function, "returns", returns, ("values", "permutation", "ranks", "both"))
        self.descending = _checks.boolean(self.function, "descending", descending)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor | Sorted:
        x = _checks.tensor(self.function, "x", x)
        size = x.shape[_checks.dimension(self.function, "x", x, self.dim)]
        if size != self.n:
            raise ValueError(
                f"{self.function}: argument 'x' must have n = {self.n} elements along dim {self.dim}, "
                f"got shape {tuple(x.shape)}; build a SortingNetwork({size})"
            )
        settings = self.settings(mask)
        if self.returns == "values":
            return sort(x, descending=self.descending, **settings)
        if self.returns == "permutation":
            return permutation(x, descending=self.descending, **settings)
        if self.returns == "ranks":
            return rank(x, descending=self.descending, **settings)
        return Sorted(
            sort(x, descending=self.descending, **settings), permutation(x, descending=self.descending, **settings)
        )

    def extra_repr(self) -> str:
        return f"{self.n}, returns={self.returns!r}, descending={self.descending}, {super().extra_repr()}"


class Sort(NetworkModule):
    """`difflayers.sort` as a module.

    Args:
        descending, network, swap, steepness, hard, mask, dim: see `difflayers.sort`; a tensor steepness and
            the mask become buffers.

    Returns:
        The module. Called as `module(x, mask=None)`: the sorted values, in the shape of x.

    Raises:
        As `difflayers.sort`, at construction where the input is not needed.

    Cost, transforms, references: see `difflayers.sort`.

    Example:
        >>> import torch, difflayers as dl
        >>> dl.Sort(hard=True, descending=True)(torch.tensor([3.0, 1.0, 2.0]))
        tensor([3., 2., 1.])
    """

    function = "difflayers.Sort"

    def __init__(
        self,
        *,
        descending: bool = False,
        network: str | Network = "odd_even_merge",
        swap: str | Swap = "cauchy",
        steepness: Steepness = 10.0,
        hard: bool = False,
        mask: Tensor | None = None,
        dim: int = -1,
    ) -> None:
        super().__init__(network=network, swap=swap, steepness=steepness, hard=hard, mask=mask, dim=dim)
        self.descending = _checks.boolean(self.function, "descending", descending)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return sort(x, descending=self.descending, **self.settings(mask))

    def extra_repr(self) -> str:
        return f"descending={self.descending}, {super().extra_repr()}"


class Rank(NetworkModule):
    """`difflayers.rank` as a module.

    Args:
        descending, network, swap, steepness, hard, mask, dim: see `difflayers.rank`; a tensor steepness and
            the mask become buffers.

    Returns:
        The module. Called as `module(x, mask=None)`: the ranks, 1 = smallest, in the shape of x.

    Raises:
        As `difflayers.rank`, at construction where the input is not needed.

    Cost, transforms, references: see `difflayers.rank`.

    Example:
        >>> import torch, difflayers as dl
        >>> dl.Rank(hard=True)(torch.tensor([0.3, 0.1, 0.2]))
        tensor([3., 1., 2.])
    """

    function = "difflayers.Rank"

    def __init__(
        self,
        *,
        descending: bool = False,
        network: str | Network = "odd_even_merge",
        swap: str | Swap = "cauchy",
        steepness: Steepness = 10.0,
        hard: bool = False,
        mask: Tensor | None = None,
        dim: int = -1,
    ) -> None:
        super().__init__(network=network, swap=swap, steepness=steepness, hard=hard, mask=mask, dim=dim)
        self.descending = _checks.boolean(self.function, "descending", descending)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return rank(x, descending=self.descending, **self.settings(mask))

    def extra_repr(self) -> str:
        return f"descending={self.descending}, {super().extra_repr()}"


class TopK(NetworkModule):
    """`difflayers.topk` as a module.

    Args:
        k: how many; at most the size of x at `dim`, which is checked at the call.
        largest: the largest k, else the smallest k.
        network, swap, steepness, hard, mask, dim: see `difflayers.topk`; a tensor steepness and the mask
            become buffers.

    Returns:
        The module. Called as `module(x, mask=None)`: `TopKResult(values, membership)`.

    Raises:
        As `difflayers.topk`, at construction where the input is not needed.

    Cost, transforms, references: see `difflayers.topk`.

    Example:
        >>> import torch, difflayers as dl
        >>> dl.TopK(2, hard=True)(torch.tensor([0.3, 0.1, 0.2])).membership
        tensor([1., 0., 1.])
    """

    function = "difflayers.TopK"

    def __init__(
        self,
        k: int,
        *,
        largest: bool = True,
        network: str | Network = "odd_even_merge",
        swap: str | Swap = "cauchy",
        steepness: Steepness = 10.0,
        hard: bool = False,
        mask: Tensor | None = None,
        dim: int = -1,
    ) -> None:
        super().__init__(network=network, swap=swap, steepness=steepness, hard=hard, mask=mask, dim=dim)
        self.k = _checks.integer(self.function, "k", k, minimum=0)
        self.largest = _checks.boolean(self.function, "largest", largest)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> TopKResult:
        return topk(x, self.k, largest=self.largest, **self.settings(mask))

    def extra_repr(self) -> str:
        return f"{self.k}, largest={self.largest}, {super().extra_repr()}"
