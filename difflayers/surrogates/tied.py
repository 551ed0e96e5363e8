"""Costs of the training instances' own, tied to what a network says: the penalised form of SurCo-prior."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .search import unit

__all__ = ["TiedCosts"]

LEARNING_RATE = 0.1  # that of `SurCo`, of which each instance runs its own


class TiedCosts:
    r"""Costs $c_i$ that follow the objective of instance i, and a penalty $\lambda \|c_i - c_\theta(y_i)\|$.

    Both sides of the penalty move: the costs are held near what the network can express, and the network, which
    does not see the objective, learns from the costs.

    Args:
        costs: of every instance, of unit scale; where they begin.
        nonnegative: whether the oracle of each instance takes no others.
        penalty: lambda.
    """

    def __init__(self, costs: Sequence[Tensor], nonnegative: Sequence[bool], penalty: float) -> None:
        self.costs = [cost.detach().clone().requires_grad_() for cost in costs]
        self.nonnegative, self.penalty = nonnegative, penalty
        self.optimizer = torch.optim.Adam(self.costs, LEARNING_RATE)

    def of(self, rows: Sequence[int], predicted: Tensor) -> Tensor:
        """The costs of these instances, of unit scale; adds the gradient of the penalty to both sides.

        Args:
            rows: which instances.
            predicted: the network's costs for them, of unit scale, with its gradient.
        """
        self.optimizer.zero_grad()
        own = unit(torch.stack([self.costs[row] for row in rows]))
        distances = torch.linalg.vector_norm((own - predicted).flatten(1), dim=1)
        (self.penalty * distances.mean()).backward(retain_graph=True)
        return own

    def step(self, rows: Sequence[int]) -> None:
        """Moves the costs of these instances along the gradients that have come together."""
        self.optimizer.step()
        with torch.no_grad():
            for row in rows:
                if self.nonnegative[row]:
                    self.costs[row].clamp_(min=0.0)
