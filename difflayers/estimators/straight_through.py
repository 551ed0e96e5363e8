"""The straight-through estimator of a categorical sample."""

from __future__ import annotations

import torch
from torch import Tensor

from .._choice import Choice, ChoiceModule, Temperature
from ..schedules import Schedule
from . import fused

__all__ = ["StraightThrough", "straight_through"]


def straight_through(
    logits: Tensor,
    temperature: Temperature = 1.0,
    *,
    dim: int = -1,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""Draws a one-hot sample whose gradient is that of the softmax.

    Forward, $D \sim \operatorname{Categorical}(\operatorname{softmax}(\theta))$. Backward, as if it were
    $\pi_\tau = \operatorname{softmax}(\theta / \tau)$: $\nabla_\theta = J(\pi_\tau)\,g / \tau$ with
    $J(p) = \operatorname{diag}(p) - p p^\top$. At temperature 1 it is unbiased for losses that are linear in the
    sample (of first order); it has the least variance of all estimators here, and the most bias.

    Args:
        logits: `[..., n]`, any floating dtype; -inf masks a class out. float16 and bfloat16 are computed in float32.
        temperature: of the backward pass only; a positive number or a tensor broadcastable to logits with size 1
            at `dim` (it gets the gradient of the relaxation).
        dim: the dimension of the classes.
        generator: draws the sample; default PyTorch's global one.

    Returns:
        One-hot, the shape and dtype of logits. The same seed gives the same sample whatever the strides or `dim`.

    Raises:
        TypeError: logits or a tensor temperature is not a floating-point tensor.
        ValueError: NaN or +inf in logits, a slice that is -inf throughout, a temperature that is not positive
            (contents are checked on the CPU; elsewhere the row is NaN), a generator of another device.

    Cost:
        O(n) time and one random number a row; the logits and the index are kept for backward.

    Transforms:
        backward, double backward (the surrogate's), torch.func.grad/vmap/jacrev (vmap with randomness="different"
        or "same"), torch.compile(fullgraph=True) and torch.export without a generator.

    References:
        Bengio, Léonard, Courville, "Estimating or Propagating Gradients Through Stochastic Neurons for Conditional
        Computation", 2013, arXiv 1308.3432.

    Example:
        >>> import torch, difflayers as dl
        >>> logits = torch.zeros(2, requires_grad=True)
        >>> dl.straight_through(logits)[0].backward()
        >>> logits.grad
        tensor([ 0.2500, -0.2500])
    """
    choice = Choice("difflayers.straight_through", logits, temperature, dim=dim, generator=generator)
    return choice.restore(fused.choose(choice, "straight_through"))


class StraightThrough(ChoiceModule):
    """`straight_through` as a module.

    Args:
        temperature: of the backward pass; a number, a tensor, or a schedule of `difflayers.schedules`.
        learnable: learn the temperature, as the exponential of the parameter `log_temperature`.
        dim: the dimension of the classes.

    Returns:
        Of a call with logits (and optionally a generator): a one-hot sample in the shape of the logits.

    Raises:
        As `straight_through`.

    Cost, transforms:
        As `straight_through`.

    Example:
        >>> import torch, difflayers as dl
        >>> dl.StraightThrough()(torch.zeros(4, 3)).sum(1)
        tensor([1., 1., 1., 1.])
    """

    function = "difflayers.StraightThrough"

    def __init__(self, temperature: Temperature | Schedule = 1.0, *, learnable: bool = False, dim: int = -1) -> None:
        super().__init__(temperature, learnable=learnable, dim=dim)

    def forward(self, logits: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """Draws a one-hot sample in the shape of the logits."""
        return straight_through(logits, self.temperature, dim=self.dim, generator=generator)
