"""Top-k as entropic optimal transport onto the two anchors 0 and 1."""

from __future__ import annotations

import torch
from torch import Tensor

from .._choice import Temperature
from ._base import Subset, SubsetModule, precise
from .threshold import near, newton, split, threshold

__all__ = ["OptimalTransportTopK", "optimal_transport_topk"]


def optimal_transport_topk(
    logits: Tensor,
    k: int,
    temperature: Temperature = 1.0,
    *,
    hard: bool = False,
    dim: int = -1,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""Membership as the entropic transport plan from the scores to the anchors 0 (mass n - k) and 1 (mass k).

    $$\min_{\Gamma} \sum_{ij} \Gamma_{ij} (x_i - y_j)^2 + \epsilon\, \Gamma_{ij} \log \Gamma_{ij}, \qquad
    y = (0, 1), \quad \Gamma 1 = 1/n, \quad \Gamma^\top 1 = ((n - k)/n,\, k/n), \qquad m_i = n \Gamma_{i1}.$$

    With two anchors the plan is $m_i = \sigma((2 x_i + \nu) / \epsilon)$ with the one $\nu$ that makes the entries sum
    to k: a root per row instead of Sinkhorn's iterations, so nothing is left unconverged, and the derivatives
    are those of the root (implicit differentiation), to all orders up to the third.

    Args:
        logits: `[..., n]`, any floating dtype, the scores x; -inf = masked, never a member.
        k: in [0, n]; at most the number of elements that are not masked.
        temperature: epsilon, larger is softer; a positive number or a tensor broadcastable to logits with size 1 at
            `dim` (it gets a gradient).
        hard: the exact k largest forward, the gradient of the relaxation backward.
        dim: the dimension to choose along.
        generator: unused, there is no noise; all k-of-n functions take it.

    Returns:
        The shape and dtype of logits, in [0, 1], summing to k, increasing with the logits.

    Raises:
        TypeError: logits or a tensor temperature is not a floating-point tensor; an argument has the wrong type.
        ValueError: k, temperature or dim out of range; NaN or +inf logits; fewer than k elements present.

    Cost:
        O(n) per row for each of about 8 steps to the root, in float64; a few times n floats are kept for backward.

    Transforms:
        backward, double and third backward, torch.func.grad/vmap/jacrev, torch.compile(fullgraph=True).

    References:
        Xie, Dai, Chen, Dai, Zhao, Zha, Wei, Pfister, "Differentiable Top-k with Optimal Transport", NeurIPS 2020,
        arXiv 2002.06504. The solution in closed form but for one root is a property of two anchors.

    Example:
        >>> import torch, difflayers as dl
        >>> from difflayers import subsets
        >>> subsets.optimal_transport_topk(torch.tensor([1.0, 3.0, 0.0, 2.0]), 2, 0.5).round(decimals=3)
        tensor([0.1190, 0.9980, 0.0020, 0.8810])
    """
    function = "difflayers.subsets.optimal_transport_topk"
    choice = Subset(function, logits, k, temperature, hard=hard, dim=dim, generator=generator)

    def relaxed() -> Tensor:
        # the cost's difference between the anchors is 2 x - 1
        theta = 2 * choice.standardised(dtype=precise(choice.rows.device))
        inside, outside, best = split(theta, choice.k)
        theta = near(theta, inside, outside)
        root = threshold(theta, choice.k)
        for _ in range(2):  # right to the first, then to the third derivative
            root = newton(theta, best, root)
        return torch.sigmoid(theta - root)

    return choice.finish(relaxed)


class OptimalTransportTopK(SubsetModule):
    """`difflayers.subsets.optimal_transport_topk` as a module.

    Args:
        k, hard, dim: see `difflayers.subsets.optimal_transport_topk`.
        temperature: a number, a tensor (kept as a buffer) or a schedule of `difflayers.schedules`.

    Returns:
        The module. Called as `module(logits, *, generator=None)`: the membership.

    Raises:
        As the function, at construction where the input is not needed.

    Cost, transforms, references: see the function.

    Example:
        >>> import torch, difflayers as dl
        >>> from difflayers import subsets
        >>> subsets.OptimalTransportTopK(2, hard=True)(torch.tensor([1.0, 3.0, 0.0, 2.0]))
        tensor([0., 1., 0., 1.])
    """

    function = "difflayers.subsets.OptimalTransportTopK"

    def forward(self, logits: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        return optimal_transport_topk(
            logits, self.k, self.temperature, hard=self.hard, dim=self.dim, generator=generator
        )
