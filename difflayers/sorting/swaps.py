"""Conditional swaps: the sigmoid that turns a comparator into a mixture.

For a comparator with wires a and b and d = b - a, the sigmoid f gives the weight of "already in order":

    soft-min = f(d) a + (1 - f(d)) b,      soft-max = (1 - f(d)) a + f(d) b,      f(-d) = 1 - f(d).

A swap is *monotonic* when soft-min and soft-max are non-decreasing in both inputs, that is when
0 <= e(d) <= 1 for e(d) = (1 - f(d)) - d f'(d). Its *error bound* is sup_x |soft-min(x, 0) - min(x, 0)|.

References: Petersen, Borgelt, Kuehne, Deussen, "Differentiable Sorting Networks for Scalable Sorting and
Ranking Supervision", ICML 2021, arXiv 2105.04019 (logistic, ART); the same authors, "Monotonic
Differentiable Sorting Networks", ICLR 2022, arXiv 2203.09630 (reciprocal, Cauchy, optimal).
"""

from __future__ import annotations

import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

from .. import _checks

__all__ = ["SWAPS", "Cauchy", "Custom", "Gaussian", "Logistic", "LogisticART", "Optimal", "Reciprocal", "Swap"]


class Swap(ABC):
    """What every conditional swap provides; `d` is the difference of the wires, `s` the steepness.

    Attributes:
        name: the name under which functions take it.
        monotonic: whether soft-min and soft-max are monotonic; None when unknown.
        parameter: the one extra number that the kernel takes (ART's lambda), else 0.
        compiled: whether the kernels know it.
    """

    name: str
    monotonic: bool | None
    parameter: float = 0.0
    compiled: bool = True

    def value(self, d: Tensor, s: Tensor) -> Tensor:
        """f(d; s), elementwise."""
        tail = self.tail(torch.where(d >= 0, d, -d), s)  # abs() has no slope at 0, f has
        return torch.where(d >= 0, 1 - tail, tail)

    @abstractmethod
    def tail(self, r: Tensor, s: Tensor) -> Tensor:
        """f(-r; s) for r >= 0: the weight of the wrong wire, in [0, 1/2], without cancellation."""

    def derivative(self, d: Tensor, s: Tensor) -> Tensor:
        """f'(d; s), elementwise."""
        with torch.enable_grad():
            variable = d.detach().requires_grad_()
            return torch.autograd.grad(self.value(variable, s).sum(), variable)[0]

    def error_bound(self, s: float) -> float | None:
        """sup over x of |soft-min(x, 0) - min(x, 0)| at steepness s, in the units of the values."""
        return None

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self.__dict__ == other.__dict__

    def __hash__(self) -> int:
        return hash((type(self), self.parameter))


class Logistic(Swap):
    """f(d) = 1 / (1 + exp(-s d)). Not monotonic; error bound W(1/e) / s = 0.278 / s."""

    name = "logistic"
    monotonic = False

    def tail(self, r: Tensor, s: Tensor) -> Tensor:
        return torch.sigmoid(-s * r)

    def derivative(self, d: Tensor, s: Tensor) -> Tensor:
        f = torch.sigmoid(s * d)
        return s * f * (1 - f)

    def error_bound(self, s: float) -> float:
        return 0.2784645427610738 / s  # Lambert's W at 1/e


class LogisticART(Swap):
    """f(d) = sigmoid(s d / (|d| + 1e-10)^lam): logistic with the activation replacement trick.

    Not monotonic. The power makes the swap harder for small differences and softer for large ones.
    The 1e-10 is the published guard for d = 0; it bounds the slope there by s 10^(10 lam) / 4.

    Args:
        lam: in [0, 1); 0 is the plain logistic swap. Default 0.25.
    """

    name = "logistic_art"
    monotonic = False

    def __init__(self, lam: float = 0.25) -> None:
        self.parameter = _checks.number("difflayers.swaps.LogisticART", "lam", lam, minimum=0.0, below=1.0)

    def _exponent(self, r: Tensor, s: Tensor) -> Tensor:
        return s * r / (r + 1e-10) ** self.parameter

    def tail(self, r: Tensor, s: Tensor) -> Tensor:
        return torch.sigmoid(-self._exponent(r, s))

    def derivative(self, d: Tensor, s: Tensor) -> Tensor:
        r = d.abs()
        f = torch.sigmoid(self._exponent(r, s))
        slope = (1 - self.parameter * r / (r + 1e-10)) / (r + 1e-10) ** self.parameter
        return s * slope * f * (1 - f)

    def error_bound(self, s: float) -> float:
        # sup_r r sigmoid(-s r^(1-lam)): with v = s r^(1-lam) and p = 1/(1-lam) the maximum is at v sigmoid(v) = p.
        p = 1 / (1 - self.parameter)
        low, high = 0.0, 2 * p + 2
        for _ in range(200):
            v = (low + high) / 2
            low, high = (v, high) if v / (1 + math.exp(-v)) < p else (low, v)
        return (low / s) ** p / (1 + math.exp(low))

    def __repr__(self) -> str:
        return f"LogisticART(lam={self.parameter})"


class Gaussian(Swap):
    """f(d) = Phi(s d), the standard normal distribution function. Not monotonic; error bound 0.170 / s."""

    name = "gaussian"
    monotonic = False

    def tail(self, r: Tensor, s: Tensor) -> Tensor:
        return 0.5 * torch.erfc(s * r * math.sqrt(0.5))

    def derivative(self, d: Tensor, s: Tensor) -> Tensor:
        return s * torch.exp(-0.5 * (s * d) ** 2) / math.sqrt(2 * math.pi)

    def error_bound(self, s: float) -> float:
        return 0.16997120747990369 / s  # max of v Phi(-v), at v = 0.7518


class Reciprocal(Swap):
    """f(d) = (1 + s d / (2 + s |d|)) / 2. Monotonic; error bound 1 / s, approached as d grows."""

    name = "reciprocal"
    monotonic = True

    def tail(self, r: Tensor, s: Tensor) -> Tensor:
        return 1 / (2 + s * r)

    def derivative(self, d: Tensor, s: Tensor) -> Tensor:
        return s / (2 + s * d.abs()) ** 2

    def error_bound(self, s: float) -> float:
        return 1 / s


class Cauchy(Swap):
    """f(d) = 1/2 + arctan(s d) / pi. Monotonic; error bound 1 / (pi s), approached as d grows."""

    name = "cauchy"
    monotonic = True

    def tail(self, r: Tensor, s: Tensor) -> Tensor:
        # atan2(1, v) = pi/2 - arctan(v) without the cancellation at large v
        v = s * r
        return torch.atan2(torch.ones_like(v), v) / math.pi

    def derivative(self, d: Tensor, s: Tensor) -> Tensor:
        return s / (math.pi * (1 + (s * d) ** 2))

    def error_bound(self, s: float) -> float:
        return 1 / (math.pi * s)


class Optimal(Swap):
    """The error-optimal sigmoid: f(d) = 1/2 + v for |v| <= 1/4, 1 - 1/(16 v) above, 1/(16 |v|) below, v = s d.

    Monotonic, with the smallest error bound for a given slope, 1 / (16 s): beyond |v| = 1/4 the error is
    constant, so the gradient to the wire that lost is exactly zero there.
    """

    name = "optimal"
    monotonic = True

    def tail(self, r: Tensor, s: Tensor) -> Tensor:
        v = s * r
        far = v > 0.25
        return torch.where(far, 1 / (16 * torch.where(far, v, 1.0)), 0.5 - v)

    def derivative(self, d: Tensor, s: Tensor) -> Tensor:
        v = s * d.abs()
        far = v > 0.25
        return torch.where(far, s / (16 * torch.where(far, v, 1.0) ** 2), s * torch.ones_like(v))

    def error_bound(self, s: float) -> float:
        return 1 / (16 * s)


class Custom(Swap):
    """A user's own sigmoid; runs on the plain-PyTorch path, its derivatives come from autograd.

    Args:
        f: a callable of tensors made of differentiable torch operations: either f(v) of the product
            v = s d alone, or, when it takes two required arguments, f(d, s). It must satisfy
            f(0) = 1/2 and f(-d) = 1 - f(d) and rise from 0 to 1; this is checked on a grid.

    Raises:
        TypeError: f is not callable or does not return a tensor.
        ValueError: f is not such a sigmoid.

    Example:
        >>> import torch, difflayers as dl
        >>> algebraic = dl.swaps.Custom(lambda v: 0.5 + 0.5 * v / torch.hypot(v, torch.ones_like(v)))
        >>> dl.sort(torch.tensor([2.0, 1.0]), swap=algebraic, steepness=100.0).round(decimals=2)
        tensor([1., 2.])
    """

    name = "custom"
    monotonic = None
    compiled = False

    def __init__(self, f: Callable[..., Tensor]) -> None:
        where = "difflayers.swaps.Custom"
        if not callable(f):
            raise TypeError(f"{where}: argument 'f' must be callable, got {type(f).__name__}")
        self.f = f
        self._two_arguments = _required_arguments(f) == 2
        grid = torch.linspace(-50, 50, 2001, dtype=torch.float64)
        value = self.value(grid, torch.ones((), dtype=torch.float64))
        if not isinstance(value, Tensor) or value.shape != grid.shape:
            got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise TypeError(f"{where}: argument 'f' must map a tensor to a tensor of its shape, got {got}")
        symmetric = torch.allclose(value + value.flip(0), torch.ones_like(value), atol=1e-6)
        if not (symmetric and bool((value.diff() >= -1e-6).all()) and value[-1] > 0.9):
            raise ValueError(
                f"{where}: argument 'f' must be a sigmoid with f(-d) = 1 - f(d) that rises from 0 to 1, "
                f"got f(-50) = {value[0].item():.3g}, f(0) = {value[1000].item():.3g}, f(50) = {value[-1].item():.3g}"
            )

    def value(self, d: Tensor, s: Tensor) -> Tensor:
        return self.f(d, s) if self._two_arguments else self.f(s * d)

    def tail(self, r: Tensor, s: Tensor) -> Tensor:
        return self.value(-r, s)

    def __repr__(self) -> str:
        return f"Custom({self.f!r})"

    def __hash__(self) -> int:
        return hash((type(self), self.f))


def _required_arguments(f: Callable[..., Tensor]) -> int:
    try:
        parameters = inspect.signature(f).parameters.values()
    except (TypeError, ValueError):  # builtins such as torch.sigmoid have no signature; they are f(v)
        return 1
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(p.kind in kinds and p.default is inspect.Parameter.empty for p in parameters)


SWAPS: dict[str, Swap] = {
    swap.name: swap for swap in (Logistic(), LogisticART(), Gaussian(), Reciprocal(), Cauchy(), Optimal())
}


def resolve(function: str, swap: str | Swap) -> Swap:
    """The swap object for a name or an object; raises with the list of names otherwise."""
    if isinstance(swap, Swap):
        return swap
    names = ", ".join(map(repr, SWAPS))
    if not isinstance(swap, str):
        raise TypeError(
            f"{function}: argument 'swap' must be a name ({names}) or a difflayers.swaps object, "
            f"got {type(swap).__name__}"
        )
    if swap not in SWAPS:
        raise ValueError(
            f"{function}: argument 'swap' must be one of {names} or a difflayers.swaps object, got {swap!r}"
        )
    return SWAPS[swap]
