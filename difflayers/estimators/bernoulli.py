"""Yes or no: the one-of-n estimators for two classes, of which one logit is 0 and every element is its own choice."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _checks
from .._choice import Temperature, hardened
from ..schedules import Schedule
from . import tempered
from .elements import ElementModule, Elements

__all__ = [
    "ReinMaxBernoulli",
    "RelaxedBernoulli",
    "StraightThroughBernoulli",
    "reinmax_bernoulli",
    "relaxed_bernoulli",
    "straight_through_bernoulli",
]


def relaxed_bernoulli(
    logits: Tensor,
    temperature: Temperature = 1.0,
    *,
    hard: bool = False,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""Draws relaxed yes-or-no samples: the sigmoid of the logits plus logistic noise (Gumbel-sigmoid).

    $$y = \operatorname{sigmoid}\left(\frac{\theta + L}{\tau}\right), \qquad L = \log u - \log(1 - u),$$

    the binary concrete distribution; y > 1/2 with probability sigmoid(logits). Its gradient is that of y by the
    logits; with hard=True the forward value is exactly 0 or 1.

    Args:
        logits: any shape, any floating dtype; +inf is a certain yes, -inf a certain no. float16 and bfloat16 are
            computed in float32.
        temperature: larger is softer; a positive number or a tensor broadcastable to logits (it gets a gradient).
        hard: exactly 0 or 1 forward, the gradient of y backward (straight-through).
        generator: draws the noise; default PyTorch's global one.

    Returns:
        The shape and dtype of logits, in [0, 1]. The same seed gives the same sample whatever the strides.

    Raises:
        TypeError: logits or a tensor temperature is not a floating-point tensor; hard is not a bool.
        ValueError: NaN in logits, a temperature that is not positive (contents are checked on the CPU; elsewhere
            the element is NaN), a generator of another device.

    Cost:
        O(1) time an element, most of it for the noise; one number an element is kept for backward.

    Transforms:
        backward, double backward, torch.func.grad/vmap/jacrev (vmap with randomness="different" or "same"),
        torch.compile(fullgraph=True) and torch.export without a generator.

    References:
        Maddison, Mnih, Teh, "The Concrete Distribution", ICLR 2017, arXiv 1611.00712, Appendix B.

    Example:
        >>> import torch
        >>> from difflayers import estimators
        >>> generator = torch.Generator().manual_seed(0)
        >>> estimators.relaxed_bernoulli(torch.tensor([torch.inf, -torch.inf]), hard=True, generator=generator)
        tensor([1., 0.])
    """
    function = "difflayers.estimators.relaxed_bernoulli"
    elements = Elements(function, logits, temperature, generator=generator)
    hard = _checks.boolean(function, "hard", hard)
    keys = elements.values + elements.logistic()
    soft = torch.sigmoid(tempered.divided(keys, elements.temperature))
    # by the keys and not by the relaxed value, which at high temperature rounds to 1/2
    return elements.restore(hardened((keys.detach() > 0).to(soft.dtype), soft) if hard else soft)


def straight_through_bernoulli(
    logits: Tensor,
    temperature: Temperature = 1.0,
    *,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""Draws yes-or-no samples whose gradient is that of the sigmoid.

    Forward, $z \sim \operatorname{Bernoulli}(\operatorname{sigmoid}(\theta))$. Backward, as if it were
    $s = \operatorname{sigmoid}(\theta / \tau)$: $\nabla_\theta = s (1 - s)\,g / \tau$. It is `straight_through` for the
    two classes of logits $(\theta, 0)$.

    Args:
        logits: any shape, any floating dtype; +inf is a certain yes, -inf a certain no. float16 and bfloat16 are
            computed in float32.
        temperature: of the backward pass only; a positive number or a tensor broadcastable to logits (it gets the
            gradient of the relaxation).
        generator: draws the sample; default PyTorch's global one.

    Returns:
        Exactly 0 or 1, the shape and dtype of logits. The same seed gives the same sample whatever the strides.

    Raises:
        TypeError: logits or a tensor temperature is not a floating-point tensor.
        ValueError: NaN in logits, a temperature that is not positive (contents are checked on the CPU; elsewhere
            the element is NaN), a generator of another device.

    Cost:
        O(1) time and one random number an element; one number an element is kept for backward.

    Transforms:
        backward, double backward (the surrogate's), torch.func.grad/vmap/jacrev (vmap with randomness="different"
        or "same"), torch.compile(fullgraph=True) and torch.export without a generator.

    References:
        Bengio, Léonard, Courville, "Estimating or Propagating Gradients Through Stochastic Neurons for Conditional
        Computation", 2013, arXiv 1308.3432.

    Example:
        >>> import torch
        >>> from difflayers import estimators
        >>> logits = torch.zeros(2, requires_grad=True)
        >>> estimators.straight_through_bernoulli(logits).sum().backward()
        >>> logits.grad
        tensor([0.2500, 0.2500])
    """
    elements = Elements("difflayers.estimators.straight_through_bernoulli", logits, temperature, generator=generator)
    soft = torch.sigmoid(tempered.divided(elements.values, elements.temperature))
    return elements.restore(hardened(elements.draw(), soft))


def reinmax_bernoulli(
    logits: Tensor,
    temperature: Temperature = 1.0,
    *,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""Draws yes-or-no samples with a gradient of second-order accuracy.

    Forward, $z \sim \operatorname{Bernoulli}(p)$, $p = \operatorname{sigmoid}(\theta)$. Backward, with
    $a = (\operatorname{sigmoid}(\theta / \tau) + z) / 2$,

    $$\nabla_\theta = \left(2 a (1 - a) - \tfrac12 p (1 - p)\right) g.$$

    It is `reinmax` for the two classes of logits $(\theta, 0)$: at temperature 1, and only there, exactly unbiased
    for every quadratic loss of any number of samples.

    Args:
        logits: any shape, any floating dtype; +inf is a certain yes, -inf a certain no. float16 and bfloat16 are
            computed in float32.
        temperature: of the backward pass only; a positive number or a tensor broadcastable to logits. It must not
            require a gradient: the estimator has none for it.
        generator: draws the sample; default PyTorch's global one.

    Returns:
        Exactly 0 or 1, the shape and dtype of logits. The same seed gives the same sample whatever the strides, and
        the sample that `straight_through_bernoulli` would draw.

    Raises:
        TypeError: logits or a tensor temperature is not a floating-point tensor.
        ValueError: NaN in logits, a temperature that is not positive (contents are checked on the CPU; elsewhere
            the element is NaN) or requires a gradient, a generator of another device.

    Cost:
        O(1) time and one random number an element; a few numbers an element are kept for backward.

    Transforms:
        backward, double backward (the surrogate's), torch.func.grad/vmap/jacrev (vmap with randomness="different"
        or "same"), torch.compile(fullgraph=True) and torch.export without a generator.

    References:
        Liu, Dong, Liu, Yu, Gao, "Bridging Discrete and Backpropagation: Straight-Through and Beyond", NeurIPS 2023,
        arXiv 2304.08612, Algorithm 2.

    Example:
        >>> import torch
        >>> from difflayers import estimators
        >>> logits = torch.zeros(2, requires_grad=True)
        >>> estimators.reinmax_bernoulli(logits).sum().backward()
        >>> logits.grad
        tensor([0.2500, 0.2500])
    """
    function = "difflayers.estimators.reinmax_bernoulli"
    elements = Elements(function, logits, temperature, generator=generator)
    if isinstance(temperature, Tensor) and temperature.requires_grad:
        raise ValueError(
            f"{function}: argument 'temperature' must not require a gradient, got a tensor that does; ReinMax has no "
            f"gradient for it: pass temperature.detach(), or learn it with another estimator"
        )
    drawn = elements.draw()
    values = elements.values
    warm = tempered.divided(values.detach(), elements.temperature)
    middle = torch.logit((torch.sigmoid(warm) + drawn) / 2)
    soft = 2 * torch.sigmoid(tempered.moved(middle, values)) - 0.5 * torch.sigmoid(values)
    return elements.restore(hardened(drawn, soft))


class RelaxedBernoulli(ElementModule):
    """`relaxed_bernoulli` as a module.

    Args:
        temperature: a number, a tensor, or a schedule of `difflayers.schedules`.
        hard: samples that are exactly 0 or 1 (straight-through).
        learnable: learn the temperature, as the exponential of the parameter `log_temperature`.

    Returns:
        Of a call with logits (and optionally a generator): a sample in the shape of the logits.

    Raises:
        As `relaxed_bernoulli`.

    Cost, transforms:
        As `relaxed_bernoulli`.

    Example:
        >>> import torch
        >>> from difflayers import estimators
        >>> estimators.RelaxedBernoulli(0.5, hard=True)(torch.tensor([50.0, -50.0]))
        tensor([1., 0.])
    """

    function = "difflayers.estimators.RelaxedBernoulli"

    def __init__(
        self, temperature: Temperature | Schedule = 1.0, *, hard: bool = False, learnable: bool = False
    ) -> None:
        super().__init__(temperature, learnable=learnable)
        self.hard = _checks.boolean(self.function, "hard", hard)

    def forward(self, logits: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """Draws a sample in the shape of the logits."""
        return relaxed_bernoulli(logits, self.temperature, hard=self.hard, generator=generator)

    def extra_repr(self) -> str:
        """The settings, as repr shows them."""
        return f"{super().extra_repr()}, hard={self.hard}"


class StraightThroughBernoulli(ElementModule):
    """`straight_through_bernoulli` as a module.

    Args:
        temperature: of the backward pass; a number, a tensor, or a schedule of `difflayers.schedules`.
        learnable: learn the temperature, as the exponential of the parameter `log_temperature`.

    Returns:
        Of a call with logits (and optionally a generator): zeros and ones in the shape of the logits.

    Raises:
        As `straight_through_bernoulli`.

    Cost, transforms:
        As `straight_through_bernoulli`.

    Example:
        >>> import torch
        >>> from difflayers import estimators
        >>> estimators.StraightThroughBernoulli()(torch.tensor([50.0, -50.0]))
        tensor([1., 0.])
    """

    function = "difflayers.estimators.StraightThroughBernoulli"

    def __init__(self, temperature: Temperature | Schedule = 1.0, *, learnable: bool = False) -> None:
        super().__init__(temperature, learnable=learnable)

    def forward(self, logits: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """Draws zeros and ones in the shape of the logits."""
        return straight_through_bernoulli(logits, self.temperature, generator=generator)


class ReinMaxBernoulli(ElementModule):
    """`reinmax_bernoulli` as a module.

    Args:
        temperature: of the backward pass; a number, a tensor, or a schedule of `difflayers.schedules`.

    Returns:
        Of a call with logits (and optionally a generator): zeros and ones in the shape of the logits.

    Raises:
        As `reinmax_bernoulli`.

    Cost, transforms:
        As `reinmax_bernoulli`.

    Example:
        >>> import torch
        >>> from difflayers import estimators
        >>> estimators.ReinMaxBernoulli()(torch.tensor([50.0, -50.0]))
        tensor([1., 0.])
    """

    function = "difflayers.estimators.ReinMaxBernoulli"

    def __init__(self, temperature: Temperature | Schedule = 1.0) -> None:
        super().__init__(temperature)

    def forward(self, logits: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """Draws zeros and ones in the shape of the logits."""
        return reinmax_bernoulli(logits, self.temperature, generator=generator)
