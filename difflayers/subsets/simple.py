"""SIMPLE: exact samples of k of n forward, the exact marginals' Jacobian backward."""

from __future__ import annotations

import torch
from torch import Tensor

from .._choice import Temperature
from ..schedules import Schedule
from . import kernels
from ._base import Subset, SubsetModule
from .conditional_bernoulli import draw

__all__ = ["Simple", "simple"]


def simple(
    logits: Tensor,
    k: int,
    temperature: Temperature = 1.0,
    *,
    hard: bool = True,
    dim: int = -1,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""An exact sample of exactly k of n, with the gradient of the marginals.

    Forward $z \sim P(z) \propto \exp(\theta \cdot z)$ on the z in {0, 1}^n that sum to k, theta = logits / temperature;
    backward $\partial \mu / \partial \theta = \mathrm{Cov}(z)$ in place of the derivative that z does not have:

    $$\nabla_\theta = \mathrm{Cov}(z)\, \nabla_z.$$

    Unbiased for losses that are linear in z; no noise in the gradient but that of the loss's own gradient at z.

    Args:
        logits: `[..., n]`, any floating dtype; -inf = masked, never a member.
        k: in [0, n]; at most the number of elements that are not masked.
        temperature: larger is softer, forward and backward; a positive number or a tensor broadcastable to logits
            with size 1 at `dim` (it gets a gradient).
        hard: a sample forward; with hard=False the marginals themselves, whose gradient is exact.
        dim: the dimension to choose along.
        generator: of the noise, on the logits' device.

    Returns:
        The shape and dtype of logits, summing to k: zeros and ones, or with hard=False in [0, 1].

    Raises:
        TypeError: logits or a tensor temperature is not a floating-point tensor; an argument has the wrong type.
        ValueError: generator on another device; k, temperature or dim out of range; NaN or +inf logits; fewer than k
            elements present.

    Cost:
        O(n min(k, n - k)) time per row, see `marginals`; the logits are kept for backward.

    Transforms:
        backward to any order (the marginals'), torch.func.grad/jacrev, vmap with randomness="different" or "same",
        torch.compile(fullgraph=True) with generator=None. Forward mode (jvp) raises.

    References:
        Ahmed, Zeng, Niepert, Van den Broeck, "SIMPLE: A Gradient Estimator for k-Subset Sampling", ICLR 2023,
        arXiv 2210.01941. (The published second version of the code samples by Gumbel top-k, which is
        not the distribution of its marginals; this samples the distribution itself.)

    Example:
        >>> import torch, difflayers as dl
        >>> from difflayers import subsets
        >>> logits = torch.zeros(4, requires_grad=True)
        >>> z = subsets.simple(logits, 2)
        >>> (z * torch.tensor([1.0, 0.0, 0.0, 0.0])).sum().backward()
        >>> z.sum().item(), logits.grad  # Cov(z): 1/4 and -1/12
        (2.0, tensor([ 0.2500, -0.0833, -0.0833, -0.0833]))
    """
    choice = Subset("difflayers.subsets.simple", logits, k, temperature, hard=hard, dim=dim, generator=generator)
    soft = kernels.marginals_gradient if hard else kernels.marginals
    return choice.finish(lambda: soft(choice.standardised(), choice.k), lambda: draw(choice, 1)[:, 0])


class Simple(SubsetModule):
    """`difflayers.subsets.simple` as a module.

    Args:
        k, hard, dim: see `difflayers.subsets.simple`.
        temperature: a number, a tensor (kept as a buffer) or a schedule of `difflayers.schedules`.

    Returns:
        The module. Called as `module(logits, *, generator=None)`: the membership.

    Raises:
        As the function, at construction where the input is not needed.

    Cost, transforms, references: see the function.

    Example:
        >>> import torch, difflayers as dl
        >>> from difflayers import subsets
        >>> subsets.Simple(2)(torch.zeros(3, 5)).sum(-1)
        tensor([2., 2., 2.])
    """

    function = "difflayers.subsets.Simple"

    def __init__(self, k: int, temperature: Temperature | Schedule = 1.0, *, hard: bool = True, dim: int = -1) -> None:
        super().__init__(k, temperature, hard=hard, dim=dim)

    def forward(self, logits: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        return simple(logits, self.k, self.temperature, hard=self.hard, dim=self.dim, generator=generator)
