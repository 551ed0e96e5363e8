"""Gumbel-Rao: the straight-through Gumbel-Softmax, averaged over the noise that gives the same sample."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _checks, _random
from .._choice import Choice, ChoiceModule, Temperature, hardened
from ..schedules import Schedule
from . import reference, tempered

__all__ = ["GumbelRao", "gumbel_rao"]


def conditional_keys(logits: Tensor, index: Tensor, noise: Tensor) -> Tensor:
    """[K, B, n] Gumbel keys of these logits given that the largest is at `index`.

    The largest of the keys is a Gumbel variable itself, -log E_D for normalised logits; every other key is
    a Gumbel variable below it, of which this is the closed form, in the logarithm.

    Args:
        logits: [B, n].
        index: [B, 1].
        noise: [K, B, n], standard exponential.
    """
    logarithms = torch.log_softmax(logits.detach(), 1)
    times = noise.log()
    first = times.gather(2, index.expand(noise.shape[0], -1, 1))
    # log E_j - log p_j is +inf where masked, and the key is then -inf
    others = -torch.logaddexp(times - logarithms, first)
    return torch.where(reference.one_hot(index, logarithms).bool(), -first, others)


def gumbel_rao(
    logits: Tensor,
    temperature: Temperature = 1.0,
    *,
    samples: int = 10,
    dim: int = -1,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""Draws a one-hot sample with the gradient of Gumbel-Softmax averaged over the noise that leads to that sample.

    Forward, $D \sim \operatorname{Categorical}(\operatorname{softmax}(\theta))$. Backward, with K draws of Gumbel
    noise $G^{(k)}$ conditioned on D being the largest of $\theta + G^{(k)}$, which count as constants,

    $$\nabla_\theta = \frac{1}{K\tau} \sum_k J(q_k)\,g, \qquad
    q_k = \operatorname{softmax}\left(\frac{\theta + G^{(k)}}{\tau}\right), \qquad
    J(p) = \operatorname{diag}(p) - p p^\top.$$

    The mean is that of `gumbel_softmax` with hard=True (so is the bias), the variance is lower (Rao-Blackwell), most of
    which ten draws give; a low temperature, where the bias is small, becomes affordable.

    Args:
        logits: `[..., n]`, any floating dtype; -inf masks a class out. float16 and bfloat16 are computed in float32.
        temperature: of the backward pass only, larger is softer; a positive number or a tensor broadcastable to
            logits with size 1 at `dim` (it gets a gradient).
        samples: K, how many draws are averaged; at least 1.
        dim: the dimension of the classes.
        generator: draws the sample and the noise; default PyTorch's global one.

    Returns:
        One-hot, the shape and dtype of logits. The same seed gives the same sample whatever the strides or `dim`,
        and the sample that `straight_through` would draw.

    Raises:
        TypeError: logits or a tensor temperature is not a floating-point tensor; samples is not an integer.
        ValueError: NaN or +inf in logits, a slice that is -inf throughout, a temperature that is not positive
            (contents are checked on the CPU; elsewhere the row is NaN), samples below 1, a generator of another
            device.

    Cost:
        O(K n) time and memory a row: K draws of noise and K softmaxes, which are kept for backward.

    Transforms:
        backward, double backward (the surrogate's), torch.func.grad/vmap/jacrev (vmap with randomness="different"
        or "same"), torch.compile(fullgraph=True) and torch.export without a generator.

    References:
        Paulus, Maddison, Krause, "Rao-Blackwellizing the Straight-Through Gumbel-Softmax Gradient Estimator",
        ICLR 2021, arXiv 2010.04838.

    Example:
        >>> import torch
        >>> from difflayers import estimators
        >>> estimators.gumbel_rao(torch.zeros(4, 3), 0.5, samples=100).sum(1)
        tensor([1., 1., 1., 1.])
    """
    function = "difflayers.estimators.gumbel_rao"
    choice = Choice(function, logits, temperature, dim=dim, generator=generator)
    samples = _checks.integer(function, "samples", samples, minimum=1)
    rows = choice.rows
    if choice.n == 0:
        return choice.restore(rows.clone())
    index = reference.sample(rows, choice.uniform())
    noise = _random.exponential(
        (samples, choice.size, choice.n), dtype=rows.dtype, device=rows.device, generator=choice.generator
    )
    keys = tempered.moved(conditional_keys(rows, index, noise), rows)
    soft = tempered.softmax(keys, choice.temperature).mean(0)
    return choice.restore(hardened(reference.one_hot(index, rows), soft))


class GumbelRao(ChoiceModule):
    """`gumbel_rao` as a module.

    Args:
        temperature: of the backward pass; a number, a tensor, or a schedule of `difflayers.schedules`.
        samples: how many draws of the noise are averaged.
        learnable: learn the temperature, as the exponential of the parameter `log_temperature`.
        dim: the dimension of the classes.

    Returns:
        Of a call with logits (and optionally a generator): a one-hot sample in the shape of the logits.

    Raises:
        As `gumbel_rao`.

    Cost, transforms:
        As `gumbel_rao`.

    Example:
        >>> import torch
        >>> from difflayers import estimators
        >>> estimators.GumbelRao(0.5)(torch.zeros(4, 3)).sum(1)
        tensor([1., 1., 1., 1.])
    """

    function = "difflayers.estimators.GumbelRao"

    def __init__(
        self,
        temperature: Temperature | Schedule = 1.0,
        *,
        samples: int = 10,
        learnable: bool = False,
        dim: int = -1,
    ) -> None:
        super().__init__(temperature, learnable=learnable, dim=dim)
        self.samples = _checks.integer(self.function, "samples", samples, minimum=1)

    def forward(self, logits: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """Draws a one-hot sample in the shape of the logits."""
        return gumbel_rao(logits, self.temperature, samples=self.samples, dim=self.dim, generator=generator)

    def extra_repr(self) -> str:
        """The settings, as repr shows them."""
        return f"{super().extra_repr()}, samples={self.samples}"
