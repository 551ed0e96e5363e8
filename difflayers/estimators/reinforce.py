"""REINFORCE with the leave-one-out baseline."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from .. import _checks
from .._choice import Choice
from . import reference
from .loss_function import LossFunction

__all__ = ["RLOO"]


class RLOO:
    r"""REINFORCE with the leave-one-out baseline, for `expectation`: unbiased for every loss.

    With K independent samples $D_k$, $f_k = f(D_k)$ and $b_k = \frac{1}{K - 1} \sum_{j \ne k} f_j$,

    $$\nabla_\theta = \frac1K \sum_k (f_k - b_k) \nabla_\theta \log p_\theta(D_k) + \frac1K \sum_k \nabla f_k,$$

    the last term by whatever f depends on besides the sample. The loss need not be differentiable by the sample,
    which only ever takes its discrete values. It is the derivative of
    $\frac1K \sum_k f_k + (e^{\log p(D_k) - \operatorname{sg} \log p(D_k)} - 1)(f_k - b_k)$, and so are the higher
    derivatives, which are unbiased as well (the baseline being independent of its sample).

    Args:
        samples: K, the number of evaluations of the loss; at least 2.

    Returns:
        An estimator for `expectation(..., estimator=RLOO(4))`.

    Raises:
        TypeError: samples is not an integer.
        ValueError: samples is below 2: there would be nothing to leave out.

    Cost:
        K evaluations of the loss, one after the other, and their backward passes; O(K n) a row besides.

    Transforms:
        backward, double backward, torch.func.grad/vmap/jacrev (vmap with randomness="different" or "same"),
        torch.compile without a generator.

    References:
        Kool, van Hoof, Welling, "Buy 4 REINFORCE Samples, Get a Baseline for Free!", ICLR 2019 workshop on deep
        reinforcement learning meets structured prediction. For the higher derivatives: Foerster, Farquhar, Al-Shedivat,
        Rocktäschel, Xing, Whiteson, "DiCE: The Infinitely Differentiable Monte Carlo Estimator", ICML 2018,
        arXiv 1802.05098.

    Example:
        >>> import torch
        >>> from difflayers.estimators import RLOO, expectation
        >>> logits = torch.zeros(3, requires_grad=True)
        >>> steps = lambda sample: (sample.argmax() >= 1).float()  # has no derivative
        >>> expectation(steps, logits, estimator=RLOO(2)).backward()
        >>> logits.grad.shape
        torch.Size([3])
    """

    def __init__(self, samples: int = 4) -> None:
        self.samples = _checks.integer("difflayers.estimators.RLOO", "samples", samples, minimum=2)

    def __repr__(self) -> str:
        return f"RLOO({self.samples})"

    def expectation(
        self,
        loss_fn: Callable[[Tensor], Tensor],
        logits: Tensor,
        *,
        dim: int = -1,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """An estimate of the expected loss, with this estimator's gradient; what `expectation` calls."""
        function = "difflayers.expectation"
        choice = Choice(function, logits, dim=dim, generator=generator)
        loss = LossFunction(function, loss_fn, logits, choice.dim)
        if choice.n == 0:
            return loss(logits.detach())  # nothing to choose from: the one sample is the empty one
        logarithms = torch.log_softmax(choice.rows, 1)
        losses, scores = [], []
        for _ in range(self.samples):
            index = reference.sample(choice.rows, choice.uniform())
            losses.append(loss(choice.restore(reference.one_hot(index, choice.rows.detach()))))
            joint = math.prod(loss.lead[losses[-1].dim() :])
            scores.append(logarithms.gather(1, index).reshape(*losses[-1].shape, joint).sum(-1))
        values, score = torch.stack(losses), torch.stack(scores)
        baselines = (values.sum(0) - values) / (self.samples - 1)
        # p / sg(p) - 1: exactly 0, but not its derivatives
        ratio = torch.expm1(score - score.detach())
        return (values + (ratio * (values - baselines)).to(values.dtype)).mean(0)
