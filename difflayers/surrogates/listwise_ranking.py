"""Learning to rank a pool of solutions as a list."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .. import _checks
from ._ranking import RankingLoss

__all__ = ["ListwiseRanking"]


class ListwiseRanking(RankingLoss):
    r"""The predicted distribution over a pool's solutions must be the true one.

    With $p_x(c) \propto \exp(-c^\top x / \tau)$ over the pool S,

    $$\ell(\hat c, c) = -\sum_{x \in S} p_x(c) \log p_x(\hat c) \ge H(p(c)),$$

    the ListNet cross-entropy, whose gradient vanishes where the predictions differ from the truth by what all
    solutions share. Convex in $\hat c$.

    Args:
        source: the solutions to rank: a tensor `[P, *cost_shape]`, a pool with `add`, `solutions` and `len`, or an
            oracle, whose solutions for the predictions then make a pool that grows while the module is in training
            mode.
        pool: with an oracle, the pool to let grow; a tensor is what it begins with (those for the true costs, say).
        solve_ratio: with an oracle, the share of the batches for which it solves, in [0, 1].
        temperature: $\tau > 0$, in the units of the costs; small ones look at the best solutions alone.
        reduction: "mean", "sum", or "none" (one loss a row).

    Returns:
        Of a call with `(predicted_costs, true_costs)`, both `[..., *cost_shape]`: the loss in the dtype of the
        predictions.

    Raises:
        TypeError: source is none of these, the costs are not floating-point tensors.
        ValueError: NaN or infinite costs, an empty pool, shapes that do not fit, settings out of range.

    Cost:
        Two matrix products with the pool, P n a row; the oracle's solves, without a gradient.

    Transforms:
        backward, double backward, DDP, checkpointing. With a tensor as the source, torch.func and torch.compile too;
        with an oracle, torch.compile breaks the graph.

    References:
        Mandi, Bucarey, Mulamba, Guns, "Decision-Focused Learning: Through the Lens of Learning to Rank", ICML 2022,
        arXiv 2112.03609, Section 4.4; Cao et al., "Learning to Rank: From Pairwise Approach to Listwise Approach",
        ICML 2007.

    Example:
        >>> import torch, difflayers as dl
        >>> dl.surrogates.ListwiseRanking(torch.eye(2))(torch.tensor([1.0, 1.0]), torch.tensor([1.0, 2.0]))
        tensor(0.6931)
    """

    def __init__(
        self,
        source: Any,
        *,
        pool: Any = None,
        solve_ratio: float = 1.0,
        temperature: float = 1.0,
        reduction: str = "mean",
    ) -> None:
        super().__init__(source, pool=pool, solve_ratio=solve_ratio, reduction=reduction)
        self.temperature = _checks.number(self.name, "temperature", temperature, above=0.0)

    def forward(self, predicted_costs: Tensor, true_costs: Tensor) -> Tensor:
        """The loss of predicted costs."""
        predicted, true = self._objectives(predicted_costs, true_costs)
        log_predicted = (-predicted / self.temperature).log_softmax(-1)
        rows = -((-true / self.temperature).softmax(-1) * log_predicted).sum(-1)
        return self._reduce(rows, predicted_costs.dtype)
