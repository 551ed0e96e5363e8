"""SPO+: the convex surrogate of the regret."""

from __future__ import annotations

from torch import Tensor

from ._loss import OracleLoss, companion, dot, mask_rows, on_host

__all__ = ["SPOPlus"]


class SPOPlus(OracleLoss):
    r"""Smart predict-then-optimise: a convex upper bound of the regret, for known true costs.

    With predicted costs $\hat c$, true costs c, their solution w and objective $z = c^\top w$,

    $$\ell(\hat c, c) = \max_x \left\{(c - 2 \hat c)^\top x\right\} + 2 \hat c^\top w - z, \qquad
    2 \left(w - x^*(2 \hat c - c)\right) \in \partial_{\hat c}\, \ell.$$

    It is never negative, is zero at $\hat c = c$, and bounds from above the regret of the worst of the solutions that
    the predictions leave open.

    Args:
        oracle: what is minimised; see `difflayers.oracles`. On its "nonnegative" cost domain, $2 \hat c - c$ is
            clamped at 0 before it is solved, and the loss is a lower bound of the formula's, still not negative.
        reduction: "mean", "sum", or "none" (one loss a row).

    Returns:
        Of a call with `(predicted_costs, true_costs, true_solutions=None, true_objective=None)`, shapes
        `[..., *cost_shape]` and `[...]` for the objective: the loss in the dtype of the predictions. True solutions
        that are not given are solved for once and remembered. Gradients flow to the predicted costs only. Rows that
        an oracle with on_failure="nan" could not solve are NaN without a gradient.

    Raises:
        TypeError: oracle is not an oracle, the costs are not floating-point tensors.
        ValueError: NaN or infinite costs, shapes that do not fit, unknown reduction.
        What the oracle raises.

    Cost:
        One solve a row forward, none backward; another the first time that true costs come without solutions.

    Transforms:
        backward, DDP, checkpointing. torch.compile breaks the graph, and refuses with fullgraph=True; torch.func and
        torch.export raise UnsupportedOperationError.

    References:
        Elmachtoub, Grigas, "Smart 'Predict, then Optimize'", Management Science 2022, arXiv 1710.08005, Definition 3
        and Proposition 3.

    Example:
        >>> import torch, difflayers as dl
        >>> loss = dl.surrogates.SPOPlus(dl.oracles.TopK(3, 1))
        >>> predicted = torch.tensor([[2.0, 1.0, 3.0]], requires_grad=True)
        >>> loss(predicted, torch.tensor([[1.0, 2.0, 3.0]])).backward()  # item 0 is the cheapest in truth
        >>> predicted.grad
        tensor([[ 2., -2.,  0.]])
    """

    @on_host
    def forward(
        self,
        predicted_costs: Tensor,
        true_costs: Tensor,
        true_solutions: Tensor | None = None,
        true_objective: Tensor | None = None,
    ) -> Tensor:
        """The loss of predicted costs."""
        predicted, event = self._costs("predicted_costs", predicted_costs), self._event
        true = companion(self.name, "true_costs", true_costs, predicted)
        if true_solutions is None:
            best = self._true_solutions(true)
        else:
            best = companion(self.name, "true_solutions", true_solutions, predicted)
        moved = 2 * predicted - true
        found = self._solve_or(moved, best)
        # the formula's max - z, rearranged about w: fewer digits cancel
        rows = dot(moved, best.nan_to_num() - found.nan_to_num(), event)
        if true_objective is not None:
            objective = companion(self.name, "true_objective", true_objective, predicted, rows.shape)
            rows = rows + dot(true, best, event) - objective
        return self._reduce(mask_rows(rows, found + best, event), predicted_costs.dtype)
