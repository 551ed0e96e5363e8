"""Learning to rank a pool of solutions, pair by pair."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import _checks
from ._ranking import RankingLoss

__all__ = ["PairwiseRanking"]

PAIRS = ("best", "all")
KINDS = ("hinge", "difference")


class PairwiseRanking(RankingLoss):
    r"""Better solutions of a pool must be predicted to be cheaper than worse ones.

    Over the ordered pairs (b, x) of the pool with $c^\top b \le c^\top x$ (b the best one and x the others, or all
    pairs), the mean of

    $$\text{hinge: } \left[m + \hat c^\top (b - x)\right]_+, \qquad
    \text{difference: } \left((\hat c - c)^\top (b - x)\right)^2.$$

    Args:
        source: the solutions to rank: a tensor `[P, *cost_shape]`, a pool with `add`, `solutions` and `len`, or an
            oracle, whose solutions for the predictions then make a pool that grows while the module is in training
            mode.
        pool: with an oracle, the pool to let grow; a tensor is what it begins with (those for the true costs, say).
        solve_ratio: with an oracle, the share of the batches for which it solves, in [0, 1].
        kind: "hinge" or "difference".
        pairs: "best" (the best one with each other) or "all"; of pairs that tie in truth, none counts.
        margin: m >= 0, of the hinge.
        reduction: "mean", "sum", or "none" (one loss a row).

    Returns:
        Of a call with `(predicted_costs, true_costs)`, both `[..., *cost_shape]`: the loss in the dtype of the
        predictions; 0 for a pool without pairs.

    Raises:
        TypeError: source is none of these, the costs are not floating-point tensors.
        ValueError: NaN or infinite costs, an empty pool, shapes that do not fit, settings out of range.

    Cost:
        Two matrix products with the pool, P n a row; P^2 time and memory a row for all pairs; the oracle's solves,
        without a gradient.

    Transforms:
        backward, DDP, checkpointing. With a tensor as the source, torch.func and torch.compile too;
        with an oracle, torch.compile breaks the graph.

    References:
        Mandi, Bucarey, Mulamba, Guns, "Decision-Focused Learning: Through the Lens of Learning to Rank", ICML 2022,
        arXiv 2112.03609, Sections 4.2 and 4.3.

    Example:
        >>> import torch, difflayers as dl
        >>> dl.surrogates.PairwiseRanking(torch.eye(2))(torch.tensor([4.0, 1.0]), torch.tensor([1.0, 2.0]))
        tensor(3.)
    """

    def __init__(
        self,
        source: Any,
        *,
        pool: Any = None,
        solve_ratio: float = 1.0,
        kind: str = "hinge",
        pairs: str = "best",
        margin: float = 0.0,
        reduction: str = "mean",
    ) -> None:
        super().__init__(source, pool=pool, solve_ratio=solve_ratio, reduction=reduction)
        self.kind = _checks.choice(self.name, "kind", kind, KINDS)
        self.pairs = _checks.choice(self.name, "pairs", pairs, PAIRS)
        self.margin = _checks.number(self.name, "margin", margin, minimum=0.0)

    def forward(self, predicted_costs: Tensor, true_costs: Tensor) -> Tensor:
        """The loss of predicted costs."""
        predicted, true = self._objectives(predicted_costs, true_costs)
        if self.pairs == "best":
            best = true.argmin(-1, keepdim=True)
            gap, true_gap = predicted.gather(-1, best) - predicted, true.gather(-1, best) - true
        else:
            gap = predicted.unsqueeze(-1) - predicted.unsqueeze(-2)
            true_gap = true.unsqueeze(-1) - true.unsqueeze(-2)
            gap, true_gap = gap.flatten(-2), true_gap.flatten(-2)
        worse = true_gap < 0
        each = (self.margin + gap).clamp(min=0.0) if self.kind == "hinge" else (gap - true_gap).square()
        rows = torch.where(worse, each, 0.0).sum(-1) / worse.sum(-1).clamp(min=1)
        return self._reduce(rows, predicted_costs.dtype)
