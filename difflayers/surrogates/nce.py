"""Noise-contrastive estimation over a pool of solutions."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .. import _checks
from ._loss import companion
from ._pool import PoolLoss

__all__ = ["NCE"]

COMPARE = ("predicted", "difference", "spo")


class Contrastive(PoolLoss):
    """Base of the contrastive losses: the margins between true solutions and the pool's, by which costs."""

    def __init__(
        self,
        source: Any,
        *,
        pool: Any = None,
        solve_ratio: float = 1.0,
        compare: str = "predicted",
        reduction: str = "mean",
    ) -> None:
        super().__init__(source, pool=pool, solve_ratio=solve_ratio, reduction=reduction)
        self.compare = _checks.choice(self.name, "compare", compare, COMPARE)

    def _margins(self, predicted_costs: Tensor, true_solutions: Tensor, true_costs: Tensor | None) -> Tensor:
        """`[..., P]`: how much dearer the true solution is than each of the pool's."""
        predicted = self._costs("predicted_costs", predicted_costs)
        best = companion(self.name, "true_solutions", true_solutions, predicted)
        costs = predicted
        if self.compare != "predicted":
            if true_costs is None:
                raise ValueError(
                    f"{self.name}: argument 'true_costs' must be given with compare={self.compare!r}, got None"
                )
            true = companion(self.name, "true_costs", true_costs, predicted)
            costs = predicted - true if self.compare == "difference" else 2 * predicted - true
        pool = self._grown(predicted, best)
        costs = self._rows(costs)
        return (costs * self._rows(best)).sum(-1, keepdim=True) - costs @ pool.T


class NCE(Contrastive):
    r"""Noise-contrastive estimation: true solutions must be cheaper than the pool's on average.

    With predicted costs $\hat c$, the true solution w and a pool S of P solutions,

    $$\ell(\hat c, w) = \frac{1}{P} \sum_{x \in S} \tilde c^\top (w - x), \qquad
    \tilde c = \hat c,\ \hat c - c \text{ or } 2 \hat c - c,$$

    for `compare` "predicted", "difference" or "spo", which differ by a constant and a factor of 2. Linear in $\hat c$,
    with no solve needed; it falls without bound as the costs grow, so regularise the predictor or stop early.

    Args:
        source: the solutions to compare with: a tensor `[P, *cost_shape]`, a pool with `add`, `solutions` and `len`,
            or an oracle, whose solutions for the predictions, and the true ones, then make a pool that grows while the
            module is in training mode.
        pool: with an oracle, the pool to let grow; a tensor is what it begins with.
        solve_ratio: with an oracle, the share of the batches for which it solves, in [0, 1].
        compare: which costs.
        reduction: "mean", "sum", or "none" (one loss a row).

    Returns:
        Of a call with `(predicted_costs, true_solutions, true_costs=None)`, each `[..., *cost_shape]` (the last is
        needed unless compare is "predicted"): the loss in the dtype of the predictions.

    Raises:
        TypeError: source is none of these, the costs are not floating-point tensors.
        ValueError: NaN or infinite costs, an empty pool, shapes that do not fit, settings out of range.

    Cost:
        One matrix product with the pool, P n a row; the oracle's solves, without a gradient.

    Transforms:
        backward, double backward, DDP, checkpointing. With a tensor as the source, torch.func and torch.compile too;
        with an oracle, torch.compile breaks the graph.

    References:
        Mulamba, Mandi, Diligenti, Lombardi, Bucarey, Guns, "Contrastive Losses and Solution Caching for
        Predict-and-Optimize", IJCAI 2021, arXiv 2011.05354, Section 4.

    Example:
        >>> import torch, difflayers as dl
        >>> loss = dl.surrogates.NCE(torch.eye(3))
        >>> loss(torch.tensor([3.0, 1.0, 2.0]), torch.tensor([1.0, 0.0, 0.0]))
        tensor(1.)
    """

    def forward(self, predicted_costs: Tensor, true_solutions: Tensor, true_costs: Tensor | None = None) -> Tensor:
        """The loss of predicted costs."""
        rows = self._margins(predicted_costs, true_solutions, true_costs).mean(-1)
        return self._reduce(rows, predicted_costs.dtype)
