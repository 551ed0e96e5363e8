"""A solver as a layer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..oracles import Oracle

__all__ = ["SolverLayer"]


class SolverLayer(nn.Module):
    """Costs in, the oracle's solutions out, gradients by the rule.

    Args:
        oracle: what to minimise over; see `difflayers.oracles`.
        rule: how gradients pass; see `difflayers.rules`. One that is a module, as `AdaptiveIMLE` is, brings its state
            into the layer's `state_dict`.

    Returns:
        Of a call with costs `[..., *cost_shape]`: solutions of that shape and dtype.

    Raises:
        As `oracle.solve_batch`.

    Cost:
        One solve a row forward, and what the rule needs backward.

    Transforms:
        backward, DDP, checkpointing. torch.compile breaks the graph; fullgraph=True, torch.export and torch.func raise
        UnsupportedOperationError.

    Example:
        >>> import torch, difflayers as dl
        >>> dl.SolverLayer(dl.oracles.TopK(3, 1), rule=dl.Blackbox(1.0))(torch.tensor([2.0, 1.0, 3.0]))
        tensor([0., 1., 0.])
    """

    def __init__(self, oracle: Oracle, *, rule: Any) -> None:
        super().__init__()
        if not hasattr(oracle, "solve_batch"):
            raise TypeError(
                f"difflayers.SolverLayer: argument 'oracle' must be an oracle, got {type(oracle).__name__}; "
                f"wrap a function with difflayers.oracles.FromCallable"
            )
        if not callable(rule):
            raise TypeError(
                f"difflayers.SolverLayer: argument 'rule' must be a rule of difflayers.rules, got {type(rule).__name__}"
            )
        self.oracle: Oracle = oracle
        self.rule: Any = rule

    def forward(self, costs: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """The solutions that minimise the costs."""
        return self.rule(self.oracle, costs, generator=generator)

    def extra_repr(self) -> str:
        """The settings, as repr shows them."""
        oracle = f"oracle={type(self.oracle).__name__}{self.oracle.cost_shape}"
        return oracle if isinstance(self.rule, nn.Module) else f"{oracle}, rule={self.rule!r}"  # modules are listed
