"""Gates: n switches with a gradient."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor, nn

from .. import _checks
from ..estimators import (
    hard_concrete_gate,
    hard_concrete_open_probability,
    reinmax_bernoulli,
    straight_through_bernoulli,
)

__all__ = ["BernoulliGate", "Gate", "HardConcreteGate", "TrainableGate"]

Shape = Callable[[Tensor], Tensor]


def _triangle(w: Tensor) -> Tensor:
    return (1 - w.abs()).clamp(min=0)


def _sigmoid(w: Tensor) -> Tensor:
    s = torch.sigmoid(w)
    return s * (1 - s)


SHAPES: dict[str, Shape] = {"constant": torch.ones_like, "sigmoid": _sigmoid, "triangle": _triangle}


class Gate(nn.Module, ABC):
    """n gates: the base of those that are ready, and of a user's own.

    Attributes:
        weight: Parameter `[n]`; the larger, the more open.
    """

    weight: nn.Parameter

    def __init__(self, n: int) -> None:
        super().__init__()
        name = f"difflayers.gates.{type(self).__name__}"
        self.n = _checks.integer(name, "n", n, minimum=1)

    @abstractmethod
    def forward(self) -> Tensor:
        """The gates' values now, `[n]`: 1 open, 0 closed (a relaxed gate may be between while it trains)."""

    def openness(self) -> Tensor:
        """The expected values, `[n]`, with a gradient: what budgets count."""
        return self()

    @torch.no_grad()
    def opened(self) -> Tensor:
        """Which gates are open for good, `[n]` bool."""
        return self.weight >= 0

    @torch.no_grad()
    def set_open(self, opened: Tensor) -> None:
        """Writes weights of which `opened()` is this, `[n]` bool; those that are so already keep theirs."""
        wrong = opened.to(self.weight.device) != self.opened()
        margin = self.weight.abs().mean().clamp(min=1e-3, max=10.0)
        for _ in range(20):  # gates whose threshold is not 0 need more
            self.weight[wrong] = torch.where(opened.to(self.weight.device), margin, -margin)[wrong].to(
                self.weight.dtype
            )
            if bool((self.opened() == opened.to(self.weight.device)).all()):
                return
            margin = margin * 2
        raise ValueError(
            f"difflayers.gates.{type(self).__name__}: no weight opens or closes every gate as 'set_open' "
            f"asks; override it"
        )

    def extra_repr(self) -> str:
        """The settings, as repr shows them."""
        return f"n={self.n}"


class TrainableGate(Gate):
    r"""Gates that are exactly 0 or 1, with a gradient of chosen shape.

    $$TG_M(w; g) = b(w) + s_M(w)\,g(w), \qquad b(w) = [w \ge 0], \qquad s_M(w) = (M w - \lfloor M w \rfloor) / M$$

    is within $|g| / M$ of the step b and has the derivative $g + s_M g' \to g$ for large M. The default is that limit:
    the value is exactly $[w \ge 0]$, so that a closed gate leaks nothing, the gradient exactly g(w). With `finite_m`
    the formula is taken literally (in float32, values leak about 1e-6; float16 overflows from M = 1e5).

    Args:
        n: how many.
        gradient: the shape g: "constant" (1 everywhere; never saturates), "sigmoid" (the logistic function's
            derivative), "triangle" (max(0, 1 - |w|)), or a function of the weights, elementwise.
        finite_m: M, positive; None: its limit.
        initial: the weights at the start; a number or a tensor `[n]`.

    Returns:
        Of a call without arguments: the values `[n]`.

    Raises:
        TypeError, ValueError: a setting of the wrong type or out of range.

    Cost, transforms:
        O(n); backward, double backward (of the surrogate), torch.func, torch.compile.

    References:
        Kim, Park, Jung, Choe, "Differentiable Pruning Method for Neural Networks" (trainable gate layer), AAAI 2020,
        arXiv 1904.10921.

    Example:
        >>> import torch, difflayers as dl
        >>> gate = dl.TrainableGate(3, initial=torch.tensor([0.5, 0.0, -0.5]))
        >>> gate()
        tensor([1., 1., 0.], grad_fn=<AddBackward0>)
        >>> gate().sum().backward()
        >>> gate.weight.grad
        tensor([1., 1., 1.])
    """

    def __init__(
        self,
        n: int,
        *,
        gradient: str | Shape = "constant",
        finite_m: float | None = None,
        initial: float | Tensor = 0.5,
    ) -> None:
        super().__init__(n)
        name = "difflayers.TrainableGate"
        if not callable(gradient):
            gradient = _checks.choice(name, "gradient", gradient, tuple(SHAPES))
        self.gradient = gradient
        self.finite_m = None if finite_m is None else _checks.number(name, "finite_m", finite_m, above=0)
        self.weight = nn.Parameter(_initial(name, self.n, initial))

    @property
    def shape(self) -> Shape:
        """g."""
        return self.gradient if callable(self.gradient) else SHAPES[self.gradient]

    def forward(self) -> Tensor:
        """The gates' values, `[n]`."""
        if self.finite_m is None:
            return _step(self.weight, self.shape)
        scaled = self.finite_m * self.weight
        sawtooth = (scaled - scaled.detach().floor()) / self.finite_m
        return (self.weight >= 0).to(self.weight.dtype) + sawtooth * self.shape(self.weight)

    def extra_repr(self) -> str:
        """The settings, as repr shows them."""
        return f"n={self.n}, gradient={self.gradient!r}" + (
            "" if self.finite_m is None else f", finite_m={self.finite_m:g}"
        )


def _step(weight: Tensor, shape: Shape) -> Tensor:
    """[w >= 0] with the gradient g(w) and the second derivative g'(w).

    Of plain operations, because a torch.autograd.Function cannot be traced in all of torch's transforms: zero = w - w
    is exactly 0 and has the derivative 1, and with d for it, the derivatives of d g(w + d / 2) at d = 0 are g and g'.
    """
    fixed = weight.detach()
    zero = weight - fixed
    return (fixed >= 0).to(weight.dtype) + zero * shape(fixed + zero / 2)


class HardConcreteGate(Gate):
    """Stochastic gates of L0 regularisation.

    `difflayers.hard_concrete` in training, `difflayers.hard_concrete_gate` in evaluation; open for good where the
    probability of not being 0 is at least a half.

    Args:
        n: how many.
        temperature: of the binary concrete.
        initial: the logits at the start; a number or a tensor `[n]`.

    Returns:
        Of a call without arguments: values `[n]` in [0, 1].

    Raises:
        TypeError, ValueError: a setting of the wrong type or out of range.

    Cost, transforms:
        As `difflayers.hard_concrete`.

    References:
        Louizos, Welling, Kingma, "Learning Sparse Neural Networks through L0 Regularization", ICLR 2018,
        arXiv 1712.01312.

    Example:
        >>> import difflayers as dl
        >>> dl.gates.HardConcreteGate(4, initial=3.0).eval()()
        tensor([1., 1., 1., 1.], grad_fn=<ClampBackward1>)
    """

    def __init__(self, n: int, *, temperature: float = 2 / 3, initial: float | Tensor = 2.0) -> None:
        super().__init__(n)
        name = "difflayers.gates.HardConcreteGate"
        self.temperature = _checks.number(name, "temperature", temperature, above=0)
        self.weight = nn.Parameter(_initial(name, self.n, initial))

    def forward(self) -> Tensor:
        """The gates' values, `[n]`."""
        if self.training:
            from ..estimators import hard_concrete

            return hard_concrete(self.weight, self.temperature)
        return hard_concrete_gate(self.weight)

    def openness(self) -> Tensor:
        """The probability of not being 0, `[n]`."""
        return hard_concrete_open_probability(self.weight, self.temperature)

    @torch.no_grad()
    def opened(self) -> Tensor:
        """Which are open with a probability of a half at least, `[n]` bool."""
        return self.openness() >= 0.5


class BernoulliGate(Gate):
    """Stochastic gates that are exactly 0 or 1, open with probability sigmoid(weight); in evaluation [weight >= 0].

    Args:
        n: how many.
        estimator: of the gradient, "reinmax" or "straight_through".
        initial: the logits at the start; a number or a tensor `[n]`.

    Returns:
        Of a call without arguments: values `[n]`, 0 or 1.

    Raises:
        TypeError, ValueError: a setting of the wrong type or out of range.

    Cost, transforms:
        As `difflayers.reinmax_bernoulli`.

    References:
        As `difflayers.reinmax_bernoulli`.

    Example:
        >>> import difflayers as dl
        >>> dl.gates.BernoulliGate(2, initial=30.0)()
        tensor([1., 1.], grad_fn=<AddBackward0>)
    """

    def __init__(self, n: int, *, estimator: str = "reinmax", initial: float | Tensor = 2.0) -> None:
        super().__init__(n)
        name = "difflayers.gates.BernoulliGate"
        self.estimator = _checks.choice(name, "estimator", estimator, ("reinmax", "straight_through"))
        self.weight = nn.Parameter(_initial(name, self.n, initial))

    def forward(self) -> Tensor:
        """The gates' values, `[n]`."""
        draw = reinmax_bernoulli if self.estimator == "reinmax" else straight_through_bernoulli
        if self.training:
            return draw(self.weight)
        hard = (self.weight >= 0).to(self.weight.dtype)
        soft = torch.sigmoid(self.weight)
        return hard + (soft - soft.detach())

    def openness(self) -> Tensor:
        """The probability of being open, `[n]`."""
        return torch.sigmoid(self.weight)


def _initial(function: str, n: int, initial: float | Tensor) -> Tensor:
    if isinstance(initial, Tensor):
        if initial.shape != (n,):
            raise ValueError(
                f"{function}: argument 'initial' must be a number or a tensor of shape ({n},), "
                f"got {tuple(initial.shape)}"
            )
        if not bool(_checks.tensor(function, "initial", initial).isfinite().all()):
            raise ValueError(f"{function}: argument 'initial' must be finite, got {initial.tolist()}")
        return initial.detach().clone()
    return torch.full((n,), _checks.number(function, "initial", initial))
