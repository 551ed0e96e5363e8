"""ReinMax: the straight-through estimator of second order."""

from __future__ import annotations

import torch
from torch import Tensor

from .._choice import Choice, ChoiceModule, Temperature
from ..schedules import Schedule
from . import fused

__all__ = ["ReinMax", "reinmax"]


def reinmax(
    logits: Tensor,
    temperature: Temperature = 1.0,
    *,
    dim: int = -1,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""Draws a one-hot sample with a gradient of second-order accuracy.

    Forward, $D \sim \operatorname{Categorical}(\pi)$, $\pi = \operatorname{softmax}(\theta)$. Backward, with
    $\pi_D = (\operatorname{softmax}(\theta / \tau) + D) / 2$ and $J(p) = \operatorname{diag}(p) - p p^\top$,

    $$\nabla_\theta = 2 J(\pi_D)\,g - \tfrac12 J(\pi)\,g,$$

    Heun's method where the straight-through estimator is Euler's. At temperature 1, and only there, the gradient is
    exactly unbiased for every quadratic loss of any number of samples. Temperatures above 1 trade some of that for
    less variance; those below 1 are outside what the paper considers, and there is no reason to use them.

    Args:
        logits: `[..., n]`, any floating dtype; -inf masks a class out. float16 and bfloat16 are computed in float32.
        temperature: of the backward pass only; a positive number or a tensor broadcastable to logits with size 1
            at `dim`. It must not require a gradient: the estimator has none for it.
        dim: the dimension of the classes.
        generator: draws the sample; default PyTorch's global one.

    Returns:
        One-hot, the shape and dtype of logits. The same seed gives the same sample whatever the strides or `dim`,
        and the sample that `straight_through` would draw.

    Raises:
        TypeError: logits or a tensor temperature is not a floating-point tensor.
        ValueError: NaN or +inf in logits, a slice that is -inf throughout, a temperature that is not positive
            (contents are checked on the CPU; elsewhere the row is NaN) or requires a gradient, a generator of
            another device.

    Cost:
        O(n) time and one random number a row; the logits and the index are kept for backward.

    Transforms:
        backward, double backward (the surrogate's), torch.func.grad/vmap/jacrev (vmap with randomness="different"
        or "same"), torch.compile(fullgraph=True) and torch.export without a generator.

    References:
        Liu, Dong, Liu, Yu, Gao, "Bridging Discrete and Backpropagation: Straight-Through and Beyond", NeurIPS 2023,
        arXiv 2304.08612, Algorithm 2.

    Example:
        >>> import torch, difflayers as dl
        >>> logits = torch.zeros(2, requires_grad=True)
        >>> dl.reinmax(logits)[0].backward()  # f(D) = D_0: straight-through would be right as well
        >>> logits.grad
        tensor([ 0.2500, -0.2500])
    """
    function = "difflayers.reinmax"
    choice = Choice(function, logits, temperature, dim=dim, generator=generator)
    if isinstance(temperature, Tensor) and temperature.requires_grad:
        raise ValueError(
            f"{function}: argument 'temperature' must not require a gradient, got a tensor that does; ReinMax has no "
            f"gradient for it: pass temperature.detach(), or learn it with gumbel_softmax or straight_through"
        )
    return choice.restore(fused.choose(choice, "reinmax"))


class ReinMax(ChoiceModule):
    """`reinmax` as a module.

    Args:
        temperature: of the backward pass; a number, a tensor, or a schedule of `difflayers.schedules`.
        dim: the dimension of the classes.

    Returns:
        Of a call with logits (and optionally a generator): a one-hot sample in the shape of the logits.

    Raises:
        As `reinmax`.

    Cost, transforms:
        As `reinmax`.

    Example:
        >>> import torch, difflayers as dl
        >>> dl.ReinMax()(torch.zeros(4, 3)).sum(1)
        tensor([1., 1., 1., 1.])
    """

    function = "difflayers.ReinMax"

    def __init__(self, temperature: Temperature | Schedule = 1.0, *, dim: int = -1) -> None:
        super().__init__(temperature, dim=dim)

    def forward(self, logits: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """Draws a one-hot sample in the shape of the logits."""
        return reinmax(logits, self.temperature, dim=self.dim, generator=generator)
