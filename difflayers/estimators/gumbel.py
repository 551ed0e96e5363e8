"""Gumbel-Softmax: the relaxed and the straight-through estimator."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _checks
from .._choice import Choice, ChoiceModule, Temperature
from ..schedules import Schedule
from . import fused

__all__ = ["GumbelSoftmax", "gumbel_softmax"]


def gumbel_softmax(
    logits: Tensor,
    temperature: Temperature = 1.0,
    *,
    hard: bool = False,
    dim: int = -1,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""Draws a relaxed one-hot sample: the softmax of the logits plus Gumbel noise.

    $$y = \operatorname{softmax}\left(\frac{\theta + G}{\tau}\right), \qquad G_i = -\log(-\log u_i),$$

    whose largest entry is distributed as softmax(logits). Its gradient is that of y by the logits; with hard=True
    the forward value is the exact one-hot vector of the largest entry. Biased for every temperature. As the temperature
    goes to 0 the relaxed sample's bias goes to 0, and the hard one's to that of `reinmax`, which is 0 for quadratic
    losses; meanwhile the variance grows without bound.

    Args:
        logits: `[..., n]`, any floating dtype; -inf masks a class out. float16 and bfloat16 are computed in float32.
        temperature: larger is softer; a positive number or a tensor broadcastable to logits with size 1 at `dim`
            (it gets a gradient).
        hard: the exact one-hot sample forward, the gradient of y backward (straight-through).
        dim: the dimension of the classes.
        generator: draws the noise; default PyTorch's global one.

    Returns:
        The shape and dtype of logits; sums to 1 along `dim`. The noise is finite for every dtype. The same seed
        gives the same sample whatever the strides or `dim`.

    Raises:
        TypeError: logits or a tensor temperature is not a floating-point tensor.
        ValueError: NaN or +inf in logits, a slice that is -inf throughout, a temperature that is not positive
            (contents are checked on the CPU; elsewhere the row is NaN), a generator of another device.

    Cost:
        O(n) time a row, most of it for the noise; n numbers a row are kept for backward.

    Transforms:
        backward, double backward, torch.func.grad/vmap/jacrev (vmap with randomness="different" or "same"),
        torch.compile(fullgraph=True) and torch.export without a generator.

    References:
        Jang, Gu, Poole, "Categorical Reparameterization with Gumbel-Softmax", ICLR 2017, arXiv 1611.01144;
        Maddison, Mnih, Teh, "The Concrete Distribution", ICLR 2017, arXiv 1611.00712.

    Example:
        >>> import torch, difflayers as dl
        >>> generator = torch.Generator().manual_seed(0)
        >>> dl.gumbel_softmax(torch.tensor([5.0, 0.0, -torch.inf]), hard=True, generator=generator)
        tensor([1., 0., 0.])
    """
    function = "difflayers.gumbel_softmax"
    choice = Choice(function, logits, temperature, dim=dim, generator=generator)
    hard = _checks.boolean(function, "hard", hard)
    return choice.restore(fused.gumbel_softmax(choice, hard))


class GumbelSoftmax(ChoiceModule):
    """`gumbel_softmax` as a module.

    Args:
        temperature: a number, a tensor, or a schedule of `difflayers.schedules`.
        hard: one-hot samples (straight-through).
        learnable: learn the temperature, as the exponential of the parameter `log_temperature`.
        dim: the dimension of the classes.

    Returns:
        Of a call with logits (and optionally a generator): a sample in the shape of the logits.

    Raises:
        As `gumbel_softmax`.

    Cost, transforms:
        As `gumbel_softmax`.

    Example:
        >>> import torch, difflayers as dl
        >>> dl.GumbelSoftmax(0.5, hard=True)(torch.zeros(4, 3)).sum(1)
        tensor([1., 1., 1., 1.])
    """

    function = "difflayers.GumbelSoftmax"

    def __init__(
        self,
        temperature: Temperature | Schedule = 1.0,
        *,
        hard: bool = False,
        learnable: bool = False,
        dim: int = -1,
    ) -> None:
        super().__init__(temperature, learnable=learnable, dim=dim)
        self.hard = _checks.boolean(self.function, "hard", hard)

    def forward(self, logits: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """Draws a sample in the shape of the logits."""
        return gumbel_softmax(logits, self.temperature, hard=self.hard, dim=self.dim, generator=generator)

    def extra_repr(self) -> str:
        """The settings, as repr shows them."""
        return f"{super().extra_repr()}, hard={self.hard}"
