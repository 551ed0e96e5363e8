"""Top-k of a relaxed sorting network."""

from __future__ import annotations

import torch
from torch import Tensor

from .._choice import Temperature
from ..schedules import Schedule
from ..sorting import networks, swaps
from ..sorting.networks import Network
from ..sorting.rows import Rows
from ..sorting.swaps import Swap
from ._base import Subset, SubsetModule

__all__ = ["NetworkTopK", "network_topk"]


def network_topk(
    logits: Tensor,
    k: int,
    temperature: Temperature = 1.0,
    *,
    network: str | Network = "odd_even_merge",
    swap: str | Swap = "cauchy",
    hard: bool = False,
    dim: int = -1,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""The membership of `difflayers.topk`, with the temperature as one over its steepness.

    $m_j = \sum_{i \in \text{best } k} P_{ij}$ with the doubly stochastic P of a relaxed sorting network.

    Args:
        logits: `[..., n]`, any floating dtype; -inf = masked, never a member.
        k: in [0, n]; at most the number of elements that are not masked.
        temperature: 1 / steepness, larger is softer; a positive number or a tensor broadcastable to logits with size
            1 at `dim` (it gets a gradient).
        network, swap: see `difflayers.sort`.
        hard: the exact k largest forward, the gradient of the relaxation backward. (The error-free swaps of
            `difflayers.topk(hard=True)` take the gradient at the exact wire values instead.)
        dim: the dimension to choose along.
        generator: unused, there is no noise; all k-of-n functions take it.

    Returns:
        The shape and dtype of logits, in [0, 1], summing to k.

    Raises:
        TypeError: logits or a tensor temperature is not a floating-point tensor; an argument has the wrong type.
        ValueError: unknown network or swap; k, temperature or dim out of range; NaN or +inf logits; fewer than k
            elements present.

    Cost:
        At most O(n log^2 n) time per row: only the comparators that the k wanted outputs depend on are run; n floats
        per row are kept for backward.

    Transforms:
        backward, double backward, torch.func.grad/vmap/jacrev, torch.compile(fullgraph=True). Forward mode (jvp)
        raises.

    References:
        Petersen, Kuehne, Borgelt, Deussen, "Differentiable Top-k Classification Learning", ICML 2022,
        arXiv 2206.07290, section 3.

    Example:
        >>> import torch, difflayers as dl
        >>> from difflayers import subsets
        >>> subsets.network_topk(torch.tensor([1.0, 3.0, 0.0, 2.0]), 2, 1e-6).round(decimals=3)
        tensor([0., 1., 0., 1.])
    """
    function = "difflayers.subsets.network_topk"
    choice = Subset(function, logits, k, temperature, hard=hard, dim=dim, generator=generator)
    _check(function, network, swap)

    def relaxed() -> Tensor:
        limit = torch.finfo(choice.rows.dtype).max
        if isinstance(choice.temperature, Tensor):
            steepness = (1 / choice.temperature).clamp(max=limit)
        else:
            steepness = min(1 / max(choice.temperature, 1 / limit), limit)
        # -inf needs no mask: a comparator with an infinite operand is exact, and at least k others are present
        rows = Rows(
            function, choice.rows, network=network, swap=swap, steepness=steepness, hard=False, mask=None, dim=-1
        )
        indicator = rows.scores.new_ones(1, choice.k, 1)
        membership = rows.transport("carry_transposed", indicator, choice.n - choice.k, choice.n)[..., 0]
        return membership.clamp(0.0, 1.0)  # rounding

    return choice.finish(relaxed)


def _check(function: str, network: str | Network, swap: str | Swap) -> None:
    """Checks what the rows check only where there is something to choose."""
    networks.resolve(function, network, getattr(network, "n", 0))
    swaps.resolve(function, swap)


class NetworkTopK(SubsetModule):
    """`difflayers.subsets.network_topk` as a module.

    Args:
        k, network, swap, hard, dim: see `difflayers.subsets.network_topk`.
        temperature: a number, a tensor (kept as a buffer) or a schedule of `difflayers.schedules`.

    Returns:
        The module. Called as `module(logits, *, generator=None)`: the membership.

    Raises:
        As the function, at construction where the input is not needed.

    Cost, transforms, references: see the function.

    Example:
        >>> import torch, difflayers as dl
        >>> from difflayers import subsets
        >>> subsets.NetworkTopK(2, hard=True)(torch.tensor([1.0, 3.0, 0.0, 2.0]))
        tensor([0., 1., 0., 1.])
    """

    function = "difflayers.subsets.NetworkTopK"

    def __init__(
        self,
        k: int,
        temperature: Temperature | Schedule = 1.0,
        *,
        network: str | Network = "odd_even_merge",
        swap: str | Swap = "cauchy",
        hard: bool = False,
        dim: int = -1,
    ) -> None:
        super().__init__(k, temperature, hard=hard, dim=dim)
        _check(self.function, network, swap)
        self.network, self.swap = network, swap

    def forward(self, logits: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        return network_topk(
            logits,
            self.k,
            self.temperature,
            network=self.network,
            swap=self.swap,
            hard=self.hard,
            dim=self.dim,
            generator=generator,
        )
