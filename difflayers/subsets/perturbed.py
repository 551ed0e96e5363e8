"""Perturbed top-k: the mean of exact top-k under Gaussian noise."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .. import _checks, _random
from .._choice import Temperature
from ..schedules import Schedule
from ._base import Subset, SubsetModule, best

__all__ = ["PerturbedTopK", "perturbed_topk"]


CHUNK = 2**22  # elements of noise made at a time


def perturbed_topk(
    logits: Tensor,
    k: int,
    temperature: Temperature = 1.0,
    *,
    samples: int = 100,
    hard: bool = False,
    dim: int = -1,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""The mean of the exact top-k of the logits under Gaussian noise, with the score-function gradient.

    $$m = \mathrm{E}[y(\text{logits} + \sigma Z)], \qquad
    \frac{\partial m}{\partial \text{logits}} = \frac{1}{\sigma} \mathrm{E}[y(\text{logits} + \sigma Z)\, Z^\top],
    \qquad Z \sim N(0, I),$$

    both estimated from the same samples. From each y the mean of the others is subtracted in the gradient
    (leave-one-out control variate), which leaves it unbiased and takes most of its variance. Higher derivatives and
    those by the temperature are score-function estimates too.

    Args:
        logits: `[..., n]`, any floating dtype; -inf = masked, never a member.
        k: in [0, n]; at most the number of elements that are not masked.
        temperature: the standard deviation of the noise, larger is softer; a positive number or a tensor
            broadcastable to logits with size 1 at `dim` (it gets a gradient).
        samples: at least 2; the error of m and of its gradient falls with their square root.
        hard: the exact k largest logits forward, the estimated gradient backward.
        dim: the dimension to choose along.
        generator: of the noise, on the logits' device.

    Returns:
        The shape and dtype of logits, in [0, 1], summing to k.

    Raises:
        TypeError: logits or a tensor temperature is not a floating-point tensor; an argument has the wrong type.
        ValueError: generator on another device; samples below 2; k, temperature or dim out of range; NaN or +inf
            logits; fewer than k elements present.

    Cost:
        samples times a top-k of every row. With gradient, about 2 samples times the size of the logits is kept for
        backward; without, noise is made in chunks of 4 million numbers and nothing is kept.

    Transforms:
        backward, double backward (estimates), torch.func.grad/jacrev, vmap with randomness="different" or "same",
        torch.compile(fullgraph=True) with generator=None.

    References:
        Berthet, Blondel, Teboul, Cuturi, Vert, Bach, "Learning with Differentiable Perturbed Optimizers",
        NeurIPS 2020, arXiv 2002.08676. The control variate is the usual one of the score function.

    Example:
        >>> import torch, difflayers as dl
        >>> from difflayers import subsets
        >>> generator = torch.Generator().manual_seed(0)
        >>> subsets.perturbed_topk(torch.tensor([1.0, 3.0, 0.0, 2.0]), 2, 0.1, generator=generator)
        tensor([0., 1., 0., 1.])
    """
    function = "difflayers.subsets.perturbed_topk"
    samples = _checks.integer(function, "samples", samples, minimum=2)
    choice = Subset(function, logits, k, temperature, hard=hard, dim=dim, generator=generator)
    return choice.finish(lambda: _mean(choice, samples))


def _mean(choice: Subset, samples: int) -> Tensor:
    """The mean with its derivatives.

    A sample x = logits + sigma Z is a constant with a density, whose ratio w to itself is 1, with the derivatives of
    the score function of every order. So mean(y w) has the right derivatives, and y minus the mean of the
    others in place of y (in the factor of w - 1) takes the variance away.
    """
    rows, sigma = choice.rows, choice.scaled()[1]
    middle = choice.middle(rows)  # a large common part would swallow small noise
    if choice.present is not None:
        rows = torch.where(choice.present, rows, middle)
    fixed, fixed_sigma = rows.detach(), sigma.detach()
    count = choice.n if choice.present is None else choice.present.sum(1, keepdim=True)
    total = torch.zeros_like(fixed)
    weighted, weights = 0.0, 0.0
    chunk = samples  # where sizes are symbolic, a loop whose length depends on them would be compiled for each
    if not torch.compiler.is_compiling():
        chunk = max(1, CHUNK // max(1, choice.size * choice.n))
    for start in range(0, samples, chunk):
        shape = (min(chunk, samples - start), choice.size, choice.n)
        noise = _random.normal(shape, dtype=rows.dtype, device=rows.device, generator=choice.generator)
        if choice.present is not None:
            noise = torch.where(choice.present, noise, 0.0)
        keys = (fixed - middle) + fixed_sigma * noise
        if choice.present is not None:
            keys = torch.where(choice.present, keys, -math.inf)
        chosen = best(keys.flatten(0, 1), choice.k).unflatten(0, shape[:2])
        # (x - logits) / sigma, written so that it is the noise exactly
        distance = noise * (fixed_sigma / sigma) + (fixed - rows) / sigma
        density = -distance.square().sum(2, keepdim=True) / 2 - count * sigma.log()
        excess = (density - density.detach()).expm1()  # w - 1, which is 0; shape: [chunk, B, 1]
        total = total + chosen.sum(0)
        weighted = weighted + (chosen * excess).sum(0)
        weights = weights + excess.sum(0)
    mean = total / samples
    return mean + (weighted - mean * weights) / (samples - 1)


class PerturbedTopK(SubsetModule):
    """`difflayers.subsets.perturbed_topk` as a module.

    Args:
        k, samples, hard, dim: see `difflayers.subsets.perturbed_topk`.
        temperature: a number, a tensor (kept as a buffer) or a schedule of `difflayers.schedules`.

    Returns:
        The module. Called as `module(logits, *, generator=None)`: the membership.

    Raises:
        As the function, at construction where the input is not needed.

    Cost, transforms, references: see the function.

    Example:
        >>> import torch, difflayers as dl
        >>> from difflayers import subsets
        >>> subsets.PerturbedTopK(2, hard=True)(torch.tensor([1.0, 3.0, 0.0, 2.0]))
        tensor([0., 1., 0., 1.])
    """

    function = "difflayers.subsets.PerturbedTopK"

    def __init__(
        self,
        k: int,
        temperature: Temperature | Schedule = 1.0,
        *,
        samples: int = 100,
        hard: bool = False,
        dim: int = -1,
    ) -> None:
        super().__init__(k, temperature, hard=hard, dim=dim)
        self.samples = _checks.integer(self.function, "samples", samples, minimum=2)

    def forward(self, logits: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        return perturbed_topk(
            logits, self.k, self.temperature, samples=self.samples, hard=self.hard, dim=self.dim, generator=generator
        )
