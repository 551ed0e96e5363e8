"""The contrastive loss against the best of a pool of solutions."""

from __future__ import annotations

from torch import Tensor

from .nce import Contrastive

__all__ = ["ContrastiveMAP"]


class ContrastiveMAP(Contrastive):
    r"""Contrastive maximum a posteriori: true solutions must be as cheap as the cheapest of the pool.

    With predicted costs $\hat c$, the true solution w and a pool S, to which w counts,

    $$\ell(\hat c, w) = \max_{x \in S \cup \{w\}} \tilde c^\top (w - x) \ge 0, \qquad
    \tilde c = \hat c,\ \hat c - c \text{ or } 2 \hat c - c,$$

    for `compare` "predicted", "difference" or "spo". Convex in $\hat c$. With a pool of all solutions, "spo" is SPO+.
    "predicted" is zero at $\hat c = 0$ as well, so the scale of the predictions must be held up by other means.

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
        backward, DDP, checkpointing. With a tensor as the source, torch.func and torch.compile too;
        with an oracle, torch.compile breaks the graph.

    References:
        Mulamba, Mandi, Diligenti, Lombardi, Bucarey, Guns, "Contrastive Losses and Solution Caching for
        Predict-and-Optimize", IJCAI 2021, arXiv 2011.05354, Section 4.

    Example:
        >>> import torch, difflayers as dl
        >>> loss = dl.surrogates.ContrastiveMAP(torch.eye(3))
        >>> loss(torch.tensor([3.0, 1.0, 2.0]), torch.tensor([1.0, 0.0, 0.0]))
        tensor(2.)
    """

    def forward(self, predicted_costs: Tensor, true_solutions: Tensor, true_costs: Tensor | None = None) -> Tensor:
        """The loss of predicted costs."""
        margins = self._margins(predicted_costs, true_solutions, true_costs)
        return self._reduce(margins.max(-1).values.clamp(min=0.0), predicted_costs.dtype)
