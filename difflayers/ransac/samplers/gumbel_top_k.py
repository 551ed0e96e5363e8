"""Sampling by logits that are trained."""

from __future__ import annotations

import torch
from torch import Tensor

from ... import _checks, _random
from ._draw import plackett_luce
from ._log_probability import NOTHING, log_probability, mass_outside
from .base import Sampler, checked

__all__ = ["GumbelTopK"]

GRADIENTS = ("score_function", "straight_through", "relaxed")


class GumbelTopK(Sampler):
    r"""Draws point after point with probability $\propto e^{\theta_i}$ among those left, with a gradient by the logits.

    The k points with the largest keys $\theta_i + G_i$, $G_i$ standard Gumbel, are a Plackett-Luce draw. What the
    gradient does with it:

    - `"score_function"`: the log-probability of the drawn set, exactly: the sum over all k! orders, by dynamic
      programming over the 2^k subsets (for k > 8, of the order drawn). `expected_loss` makes an unbiased gradient of
      it, whatever the loss.
    - `"relaxed"`: the j-th point is x with the pathwise gradient of $P_j x$, $P_j$ the softmax of keys /
      temperature over all points but the j - 1 drawn before: the same wherever the origin lies, because the rows of P
      sum to one, but biased: it knows how the loss changes when a point moves, not when another is drawn.
    - `"straight_through"`: the coordinates of the drawn points times $1 - \operatorname{stop}(y) + y$, y the softmax
      of all keys / temperature: as published for differentiable RANSAC. It changes when the origin moves.

    The last two are there for comparison. They let gradients reach the logits through points, solver and score alone,
    but on losses of minimal models their directions are close to random: median cosines with the exact gradient
    within 0.25 of zero, where the score function has 0.99 (`tests/benchmarks/bench_ransac_learning.py`).

    Args:
        gradient: `"score_function"`, `"relaxed"` or `"straight_through"`.
        temperature: of the softmax of the last two.

    Returns:
        Of `sample(logits, size, count)`: `[B, count, size]` int64, in the order drawn. Of `log_prob(logits,
        samples)`: `[B, count]`, or None unless the gradient is the score function.

    Raises:
        TypeError, ValueError: an unknown gradient, a temperature that is not positive; of `sample` and `log_prob`: NaN
            or +inf in logits, fewer finite ones than `size`, a shape other than `[B, N]`.

    Cost, transforms:
        Draws: a sort of the logits, then O(size^2 + size log N) a sample; log-probabilities: O(2^size size) a sample
        and a sort. The relaxed and the straight-through gradient need O(N size) and O(N) memory a sample. backward and
        double backward.

    References:
        Gumbel-top-k: Kool, van Hoof, Welling, "Stochastic Beams and Where to Find Them", ICML 2019, arXiv 1903.06059.
        Unordered sets: the same authors, "Estimating Gradients for Discrete Random Variables by Sampling without
        Replacement", ICLR 2020, arXiv 2002.06043. Relaxed: Xie, Ermon, "Reparameterizable Subset Sampling via
        Continuous Relaxations", IJCAI 2019, arXiv 1901.10517. Straight-through: Wei, Patel, Shekhovtsov, Matas, Barath,
        "Generalized Differentiable RANSAC", ICCV 2023, arXiv 2212.13185.

    Example:
        >>> import torch, difflayers as dl
        >>> sampler = dl.ransac.GumbelTopK()
        >>> logits = torch.tensor([[0.0, 0.0, 0.0, -torch.inf]])
        >>> samples = sampler.sample(logits, 2, 5)
        >>> sampler.log_prob(logits, samples).exp()  # of each of three sets
        tensor([[0.3333, 0.3333, 0.3333, 0.3333, 0.3333]])
    """

    def __init__(self, gradient: str = "score_function", *, temperature: float = 1.0) -> None:
        function = "difflayers.ransac.GumbelTopK"
        self.gradient = _checks.choice(function, "gradient", gradient, GRADIENTS)
        self.temperature = _checks.number(function, "temperature", temperature, above=0)

    def sample(
        self, logits: Tensor, size: int, count: int, *, first: int = 0, generator: torch.Generator | None = None
    ) -> Tensor:
        """Draws `[B, count, size]` different points."""
        return plackett_luce(checked(self, logits, size, count, first), size, count, generator)

    def log_prob(self, logits: Tensor, samples: Tensor) -> Tensor | None:
        """The log-probability `[B, count]` of each drawn set, if that is where the gradient comes from."""
        if self.gradient != "score_function":
            return None
        if not samples.shape[1]:
            return logits.new_zeros(samples.shape[:2])
        checked(self, logits, samples.shape[-1])
        return log_probability(logits, samples)

    def gather(
        self, points: Tensor, logits: Tensor, samples: Tensor, *, generator: torch.Generator | None = None
    ) -> Tensor:
        """The points of the samples, `[B, count, size, d]`, with the gradient by logits of the two biased kinds.

        The generator draws the keys of the points, given which came first."""
        gathered = super().gather(points, logits, samples)
        if self.gradient == "score_function" or not samples.shape[1] or not logits.requires_grad:
            return gathered
        keys = conditional_keys(logits, samples, generator) / self.temperature
        if self.gradient == "straight_through":
            of_drawn = keys.gather(-1, samples) - keys.logsumexp(-1, keepdim=True)
            soft = of_drawn.exp()
            return gathered * (1 + (soft - soft.detach())).unsqueeze(-1).to(points.dtype)
        weights = []
        for i in range(samples.shape[-1]):
            weights.append(keys.softmax(-1))
            keys = keys.scatter(-1, samples[..., i : i + 1], -torch.inf)
        weight = torch.stack(weights, -2)  # shape: [B, count, size, N]
        return gathered + (weight - weight.detach()).to(points.dtype) @ points.detach().unsqueeze(1)

    def __repr__(self) -> str:
        softmax = "" if self.gradient == "score_function" else f", temperature={self.temperature}"
        return f"GumbelTopK(gradient={self.gradient!r}{softmax})"


def conditional_keys(logits: Tensor, samples: Tensor, generator: torch.Generator | None) -> Tensor:
    """The keys of Gumbel-top-k, `[B, count, N]` float64, distributed as they are given the draws, largest first, and
    with the gradient by logits of logits + noise.

    The largest of several keys is a Gumbel variable with the logarithm of their mass as location; the largest of
    those that are left likewise, below the one before; so are, in the end, all others."""
    with torch.no_grad():
        exact = logits.double()
        exact = exact.masked_fill(exact.isneginf(), NOTHING)
        batch, count, size = samples.shape
        left = [mass_outside(exact, samples)]
        for point in exact.gather(1, samples.flatten(1)).view(samples.shape).flip(-1).unbind(-1):
            left.append(torch.logaddexp(left[-1], point))
        noise = _random.gumbel(
            (batch, count, size + exact.shape[1]), dtype=exact.dtype, device=exact.device, generator=generator
        )
        bound = left.pop() + noise[..., 0]
        largest = [bound]
        for i in range(1, size):
            bound = _below(bound, left.pop() + noise[..., i])
            largest.append(bound)
        keys = _below(bound.unsqueeze(-1), exact.unsqueeze(1) + noise[..., size:])
        keys = keys.scatter(-1, samples, torch.stack(largest, -1))
        keys = keys.masked_fill(logits.isneginf().unsqueeze(1), -torch.inf)
    finite = logits.masked_fill(logits.isneginf(), 0).unsqueeze(1)
    return keys + (finite - finite.detach())


def _below(bound: Tensor, key: Tensor) -> Tensor:
    """A Gumbel variable given that it is below a bound, of one that is not."""
    return -torch.logaddexp(-bound, -key)
