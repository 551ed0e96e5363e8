"""Learning to rank a pool of solutions, point by point."""

from __future__ import annotations

from torch import Tensor

from ._ranking import RankingLoss

__all__ = ["PointwiseRanking"]


class PointwiseRanking(RankingLoss):
    r"""Regression of the objectives of a pool's solutions, in the place of the costs themselves.

    $$\ell(\hat c, c) = \frac{1}{P} \sum_{x \in S} \left((\hat c - c)^\top x\right)^2$$

    Args:
        source: the solutions to rank: a tensor `[P, *cost_shape]`, a pool with `add`, `solutions` and `len`, or an
            oracle, whose solutions for the predictions then make a pool that grows while the module is in training
            mode.
        pool: with an oracle, the pool to let grow; a tensor is what it begins with (those for the true costs, say).
        solve_ratio: with an oracle, the share of the batches for which it solves, in [0, 1].
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
        arXiv 2112.03609, Section 4.1.

    Example:
        >>> import torch, difflayers as dl
        >>> dl.surrogates.PointwiseRanking(torch.eye(2))(torch.tensor([1.0, 4.0]), torch.tensor([1.0, 2.0]))
        tensor(2.)
    """

    def forward(self, predicted_costs: Tensor, true_costs: Tensor) -> Tensor:
        """The loss of predicted costs."""
        predicted, true = self._objectives(predicted_costs, true_costs)
        return self._reduce((predicted - true).square().mean(-1), predicted_costs.dtype)
