"""The k-of-n methods and what each of them claims. A method added to METHODS goes through all of test_methods."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from difflayers import subsets


@dataclass(frozen=True)
class Method:
    """A k-of-n function with its module.

    Attributes:
        function: the public function.
        module: the public module.
        options: of its own, for the modules' test.
        random: whether it draws noise (also when relaxed).
        samples: whether hard=True draws noise.
        unit: whether relaxed entries lie in [0, 1].
        equivariant: whether permuting the logits permutes the relaxed result.
        smooth: whether the relaxed result is a function with these derivatives (given the noise).
        same_when_masked: whether masking an element is the same as leaving it out.
        increasing: whether larger logits have larger membership.
        smallest_temperature: whose relaxed result is the exact one to 1e-4 on integer logits.
    """

    function: Callable[..., Tensor]
    module: type[torch.nn.Module]
    options: dict[str, Any] = field(default_factory=dict)
    random: bool = False
    samples: bool = False
    unit: bool = True
    equivariant: bool = True
    smooth: bool = True
    same_when_masked: bool = True
    increasing: bool = True
    smallest_temperature: float = 1e-3

    @property
    def name(self) -> str:
        return self.function.__name__

    def __call__(self, logits: Tensor, k: Any, *arguments: Any, seed: int | None = 0, **settings: Any) -> Tensor:
        """The function with the same noise at every call; seed=None where no generator can be had."""
        settings.setdefault("hard", False)
        if seed is not None:
            settings["generator"] = torch.Generator().manual_seed(seed)
        return self.function(logits, k, *arguments, **settings)


METHODS = (
    Method(subsets.network_topk, subsets.NetworkTopK, {"network": "bitonic", "swap": "logistic"}, equivariant=False,
           same_when_masked=False, increasing=False, smallest_temperature=1e-6),
    Method(subsets.gumbel_topk, subsets.GumbelTopK, random=True, samples=True, unit=False),
    Method(subsets.simple, subsets.Simple, samples=True, smallest_temperature=1e-2),
    Method(subsets.perturbed_topk, subsets.PerturbedTopK, {"samples": 7}, random=True, smooth=False),
    Method(subsets.optimal_transport_topk, subsets.OptimalTransportTopK),
    Method(subsets.lapsum_topk, subsets.LapSumTopK),
    Method(subsets.projection_topk, subsets.ProjectionTopK, {"regularization": "kl"}),
    Method(subsets.softsort_topk, subsets.SoftSortTopK, unit=False, increasing=False),
    Method(subsets.neuralsort_topk, subsets.NeuralSortTopK, unit=False, increasing=False),
)  # fmt: skip


def exact(logits: Tensor, k: int) -> Tensor:
    """The k largest along the last dimension, by sorting."""
    order = logits.argsort(dim=-1, descending=True, stable=True)
    return torch.zeros_like(logits).scatter(-1, order[..., :k], 1.0)
