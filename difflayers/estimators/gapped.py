"""The gapped straight-through estimator: a relaxation that agrees with the sample, without noise of its own."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _checks
from .._choice import Choice, ChoiceModule, Temperature, hardened
from ..schedules import Schedule
from . import reference, tempered

__all__ = ["GappedStraightThrough", "gapped_straight_through"]


def _gap(function: str, gap: object) -> float | None:
    """A number, or None for the gap that depends on the probability."""
    if isinstance(gap, str):
        _checks.choice(function, "gap", gap, ("probability",))
        return None
    return _checks.number(function, "gap", gap, minimum=0.0, maximum=torch.finfo(torch.float32).max)


def probable_gap(logits: Tensor, chosen: Tensor) -> Tensor:
    """[B, 1]: -log(1 - p) / p, p being the probability of the chosen class; +inf where nothing else is present."""
    logarithms = torch.log_softmax(logits.detach(), 1)
    p = torch.where(chosen, logarithms.exp(), 0.0).sum(1, keepdim=True)
    # 1 - p loses its digits as p nears 1, the sum of the others loses them as p nears 0
    rest = torch.logsumexp(logarithms.masked_fill(chosen, -torch.inf), 1, keepdim=True)
    rest = torch.where(p < 0.5, torch.log1p(-p), rest)
    return torch.where(p > torch.finfo(p.dtype).tiny, -rest / p, 1.0)  # the limit for p = 0


def gapped_keys(logits: Tensor, index: Tensor, gap: float | None) -> Tensor:
    """[B, n]: the logits moved as little as puts the chosen one on top, all others at least `gap` below it."""
    logits = logits.detach()
    chosen = reference.one_hot(index, logits).bool()
    below = logits - logits.amax(1, keepdim=True)
    ceiling = -probable_gap(logits, chosen) if gap is None else torch.full_like(below[:, :1], -gap)
    return torch.where(chosen, 0.0, torch.minimum(below, ceiling))


def gapped_straight_through(
    logits: Tensor,
    temperature: Temperature = 1.0,
    *,
    gap: float | str = 1.0,
    dim: int = -1,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""Draws a one-hot sample whose gradient is that of a softmax in which the sample wins by a gap.

    Forward, $D \sim \operatorname{Categorical}(\operatorname{softmax}(\theta))$. Backward, as if it were
    $\operatorname{softmax}(\theta' / \tau)$, where the displacement $\theta' - \theta$ counts as a constant and

    $$\theta'_D = \max_i \theta_i, \qquad
    \theta'_j = \min\left(\theta_j, \max_i \theta_i - \text{gap}\right), \ j \ne D:$$

    consistent with the sample as in straight-through Gumbel-Softmax, with no noise beyond the sample itself, so
    less variance at the cost of one softmax.

    Args:
        logits: `[..., n]`, any floating dtype; -inf masks a class out. float16 and bfloat16 are computed in float32.
        temperature: of the backward pass only, larger is softer; a positive number or a tensor broadcastable to
            logits with size 1 at `dim` (it gets a gradient).
        gap: at least 0; or "probability", which is $-\log(1 - \pi_D) / \pi_D$ (1 for an improbable sample, larger for
            a probable one).
        dim: the dimension of the classes.
        generator: draws the sample; default PyTorch's global one.

    Returns:
        One-hot, the shape and dtype of logits. The same seed gives the same sample whatever the strides or `dim`,
        and the sample that `straight_through` would draw.

    Raises:
        TypeError: logits or a tensor temperature is not a floating-point tensor; gap is neither number nor string.
        ValueError: NaN or +inf in logits, a slice that is -inf throughout, a temperature that is not positive
            (contents are checked on the CPU; elsewhere the row is NaN), a negative or unknown gap, a generator of
            another device.

    Cost:
        O(n) time and one random number a row; n numbers a row are kept for backward.

    Transforms:
        backward, double backward (the surrogate's), torch.func.grad/vmap/jacrev (vmap with randomness="different"
        or "same"), torch.compile(fullgraph=True) and torch.export without a generator.

    References:
        Fan, Chi, Rudnicky, Ramadge, "Training Discrete Deep Generative Models via Gapped Straight-Through Estimator",
        ICML 2022, arXiv 2206.07235.

    Example:
        >>> import torch
        >>> from difflayers import estimators
        >>> estimators.gapped_straight_through(torch.zeros(4, 3), gap="probability").sum(1)
        tensor([1., 1., 1., 1.])
    """
    function = "difflayers.estimators.gapped_straight_through"
    choice = Choice(function, logits, temperature, dim=dim, generator=generator)
    space = _gap(function, gap)
    rows = choice.rows
    if choice.n == 0:
        return choice.restore(rows.clone())
    index = reference.sample(rows, choice.uniform())
    keys = tempered.moved(gapped_keys(rows, index, space), rows)
    soft = tempered.softmax(keys, choice.temperature)
    return choice.restore(hardened(reference.one_hot(index, rows), soft))


class GappedStraightThrough(ChoiceModule):
    """`gapped_straight_through` as a module.

    Args:
        temperature: of the backward pass; a number, a tensor, or a schedule of `difflayers.schedules`.
        gap: at least 0, or "probability".
        learnable: learn the temperature, as the exponential of the parameter `log_temperature`.
        dim: the dimension of the classes.

    Returns:
        Of a call with logits (and optionally a generator): a one-hot sample in the shape of the logits.

    Raises:
        As `gapped_straight_through`.

    Cost, transforms:
        As `gapped_straight_through`.

    Example:
        >>> import torch
        >>> from difflayers import estimators
        >>> estimators.GappedStraightThrough()(torch.zeros(4, 3)).sum(1)
        tensor([1., 1., 1., 1.])
    """

    function = "difflayers.estimators.GappedStraightThrough"

    def __init__(
        self,
        temperature: Temperature | Schedule = 1.0,
        *,
        gap: float | str = 1.0,
        learnable: bool = False,
        dim: int = -1,
    ) -> None:
        super().__init__(temperature, learnable=learnable, dim=dim)
        _gap(self.function, gap)
        self.gap = gap

    def forward(self, logits: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """Draws a one-hot sample in the shape of the logits."""
        return gapped_straight_through(logits, self.temperature, gap=self.gap, dim=self.dim, generator=generator)

    def extra_repr(self) -> str:
        """The settings, as repr shows them."""
        return f"{super().extra_repr()}, gap={self.gap!r}"
