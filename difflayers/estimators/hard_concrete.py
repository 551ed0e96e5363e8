"""Hard concrete gates: yes, no, or a little of each, with a differentiable probability of being open."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .. import _checks
from .._choice import Temperature
from ..schedules import Schedule
from . import tempered
from .elements import ElementModule, Elements

__all__ = ["HardConcrete", "hard_concrete", "hard_concrete_gate", "hard_concrete_open_probability"]


def checked_interval(function: str, lower: object, upper: object) -> tuple[float, float]:
    """The ends of the stretched interval, which must contain [0, 1] in its inside."""
    return _checks.number(function, "lower", lower, below=0.0), _checks.number(function, "upper", upper, above=1.0)


def hard_concrete(
    logits: Tensor,
    temperature: Temperature = 2 / 3,
    *,
    lower: float = -0.1,
    upper: float = 1.1,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""Draws gates in [0, 1] that are exactly 0 or exactly 1 with positive probability.

    $$z = \min(1, \max(0, s\,(\text{upper} - \text{lower}) + \text{lower})), \qquad
    s = \operatorname{sigmoid}\left(\frac{\theta + L}{\tau}\right)$$

    with logistic noise L: a binary concrete sample, stretched beyond [0, 1] and cut off there. It is its own
    relaxation: differentiable with the true gradient, which is 0 where z is 0 or 1.

    Args:
        logits: any shape, any floating dtype; +inf is a certain 1, -inf a certain 0. float16 and bfloat16 are
            computed in float32.
        temperature: larger is softer; a positive number or a tensor broadcastable to logits (it gets a gradient).
        lower, upper: the interval that s is stretched to; lower < 0 and upper > 1.
        generator: draws the noise; default PyTorch's global one.

    Returns:
        The shape and dtype of logits, in [0, 1]. The same seed gives the same sample whatever the strides.

    Raises:
        TypeError: logits or a tensor temperature is not a floating-point tensor; lower or upper is not a number.
        ValueError: NaN in logits, a temperature that is not positive (contents are checked on the CPU; elsewhere
            the element is NaN), lower or upper out of range, a generator of another device.

    Cost:
        O(1) time an element, most of it for the noise; a few numbers an element are kept for backward.

    Transforms:
        backward, double backward, torch.func.grad/vmap/jacrev (vmap with randomness="different" or "same"),
        torch.compile(fullgraph=True) and torch.export without a generator.

    References:
        Louizos, Welling, Kingma, "Learning Sparse Neural Networks through L0 Regularization", ICLR 2018,
        arXiv 1712.01312, equations 10 and 11.

    Example:
        >>> import torch
        >>> from difflayers import estimators
        >>> estimators.hard_concrete(torch.tensor([50.0, -50.0]))
        tensor([1., 0.])
    """
    function = "difflayers.estimators.hard_concrete"
    elements = Elements(function, logits, temperature, generator=generator)
    lower, upper = checked_interval(function, lower, upper)
    keys = elements.values + elements.logistic()
    soft = torch.sigmoid(tempered.divided(keys, elements.temperature))
    return elements.restore((soft * (upper - lower) + lower).clamp(0, 1))


def hard_concrete_gate(logits: Tensor, *, lower: float = -0.1, upper: float = 1.1) -> Tensor:
    r"""The gates that hard_concrete's are replaced by after training: without noise and without temperature.

    $$z = \min(1, \max(0, \operatorname{sigmoid}(\theta)\,(\text{upper} - \text{lower}) + \text{lower})).$$

    Args:
        logits: any shape, any floating dtype. float16 and bfloat16 are computed in float32.
        lower, upper: as in training.

    Returns:
        The shape and dtype of logits, in [0, 1].

    Raises:
        TypeError: logits is not a floating-point tensor; lower or upper is not a number.
        ValueError: NaN in logits (checked on the CPU; elsewhere the element is NaN), lower or upper out of range.

    Cost:
        O(1) time an element.

    Transforms:
        All of them: it is plain PyTorch.

    References:
        Louizos, Welling, Kingma, "Learning Sparse Neural Networks through L0 Regularization", ICLR 2018,
        arXiv 1712.01312, equation 13.

    Example:
        >>> import torch
        >>> from difflayers import estimators
        >>> estimators.hard_concrete_gate(torch.tensor([4.0, 0.0, -4.0]))
        tensor([1.0000, 0.5000, 0.0000])
    """
    function = "difflayers.estimators.hard_concrete_gate"
    elements = Elements(function, logits)
    lower, upper = checked_interval(function, lower, upper)
    return elements.restore((torch.sigmoid(elements.values) * (upper - lower) + lower).clamp(0, 1))


def hard_concrete_open_probability(
    logits: Tensor,
    temperature: Temperature = 2 / 3,
    *,
    lower: float = -0.1,
    upper: float = 1.1,
) -> Tensor:
    r"""The probability that hard_concrete's gate is not 0, whose sum is the differentiable L0 penalty.

    $$P(z \neq 0) = \operatorname{sigmoid}\left(\theta - \tau \log\frac{-\text{lower}}{\text{upper}}\right).$$

    Args:
        logits: any shape, any floating dtype. float16 and bfloat16 are computed in float32.
        temperature: as in `hard_concrete`.
        lower, upper: as in `hard_concrete`.

    Returns:
        The shape and dtype of logits, in [0, 1].

    Raises:
        As `hard_concrete`.

    Cost:
        O(1) time an element.

    Transforms:
        All of them: it is plain PyTorch.

    References:
        Louizos, Welling, Kingma, "Learning Sparse Neural Networks through L0 Regularization", ICLR 2018,
        arXiv 1712.01312, equation 12.

    Example:
        >>> import torch
        >>> from difflayers import estimators
        >>> estimators.hard_concrete_open_probability(torch.tensor([2.0, -2.0])).sum()
        tensor(1.3743)
    """
    function = "difflayers.estimators.hard_concrete_open_probability"
    elements = Elements(function, logits, temperature)
    lower, upper = checked_interval(function, lower, upper)
    return elements.restore(torch.sigmoid(elements.values - elements.temperature * math.log(-lower / upper)))


class HardConcrete(ElementModule):
    """`hard_concrete` as a module: stochastic gates in training mode, `hard_concrete_gate` in evaluation mode.

    Args:
        temperature: a number, a tensor, or a schedule of `difflayers.schedules`.
        lower, upper: the interval that a binary concrete sample is stretched to; lower < 0 and upper > 1.
        learnable: learn the temperature, as the exponential of the parameter `log_temperature`.

    Returns:
        Of a call with logits (and optionally a generator): gates in the shape of the logits.

    Raises:
        As `hard_concrete`.

    Cost, transforms:
        As `hard_concrete`.

    Example:
        >>> import torch
        >>> from difflayers import estimators
        >>> gate = estimators.HardConcrete().eval()
        >>> gate(torch.tensor([4.0, 0.0, -4.0]))
        tensor([1.0000, 0.5000, 0.0000])
        >>> gate.open_probability(torch.tensor([4.0, 0.0, -4.0]))
        tensor([0.9963, 0.8318, 0.0831])
    """

    function = "difflayers.estimators.HardConcrete"

    def __init__(
        self,
        temperature: Temperature | Schedule = 2 / 3,
        *,
        lower: float = -0.1,
        upper: float = 1.1,
        learnable: bool = False,
    ) -> None:
        super().__init__(temperature, learnable=learnable)
        self.lower, self.upper = checked_interval(self.function, lower, upper)

    def forward(self, logits: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """Gates in the shape of the logits: drawn in training mode, fixed in evaluation mode."""
        if not self.training:
            return hard_concrete_gate(logits, lower=self.lower, upper=self.upper)
        return hard_concrete(logits, self.temperature, lower=self.lower, upper=self.upper, generator=generator)

    def open_probability(self, logits: Tensor) -> Tensor:
        """The probability that a gate is not 0, in the shape of the logits: sum it for the L0 penalty."""
        return hard_concrete_open_probability(logits, self.temperature, lower=self.lower, upper=self.upper)

    def extra_repr(self) -> str:
        """The settings, as repr shows them."""
        return f"{super().extra_repr()}, lower={self.lower:g}, upper={self.upper:g}"
