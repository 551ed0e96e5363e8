"""What gradient rules share."""

from __future__ import annotations

import torch
from torch import Tensor

from ..oracles import Oracle


class Rule:
    """Base of the gradient rules: solves with an oracle and says what the gradient by the costs is.

    A rule is called as `rule(oracle, costs, generator=None)` and returns solutions `[..., *cost_shape]` through
    which gradients flow to the costs. Costs that a rule invents go through `solve_invented`, so that they lie in
    the oracle's domain.
    """

    def __call__(self, oracle: Oracle, costs: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """The solutions, with this rule's gradient."""
        raise NotImplementedError


def solve_invented(oracle: Oracle, costs: Tensor) -> Tensor:
    """Solves for costs that a rule made up: projected onto the oracle's `cost_domain` first."""
    return oracle.solve(costs.clamp(min=0.0) if oracle.cost_domain == "nonnegative" else costs)
