"""The structured support vector machine: imitation of observed decisions with a margin."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _checks
from ..oracles import Oracle
from ._loss import OracleLoss, companion, dot, mask_rows, on_host

__all__ = ["StructuredSVM"]


class StructuredSVM(OracleLoss):
    r"""Imitation: an observed 0-1 solution w must be cheaper than any other by a margin that grows with the distance.

    With the Hamming distance $\Delta(x, w) = \sum_i |x_i - w_i|$, linear in x because w is 0-1, and margin m,

    $$\ell(\hat c, w) = \max_x \left\{m\,\Delta(x, w) + \hat c^\top (w - x)\right\} \ge 0, \qquad
    w - \hat x \in \partial_{\hat c}\, \ell, \qquad \hat x = x^*\left(\hat c + m (2 w - 1)\right).$$

    Convex in $\hat c$, zero iff every x costs at least $m\,\Delta(x, w)$ more than w.

    Args:
        oracle: what is minimised, over 0-1 solutions; see `difflayers.oracles`. On its "nonnegative" cost domain,
            $\hat c + m (2 w - 1)$ is clamped at 0 before it is solved, and the loss is a lower bound of the formula's,
            still not negative.
        margin: m > 0, in the units of the costs.
        reduction: "mean", "sum", or "none" (one loss a row).

    Returns:
        Of a call with `(predicted_costs, true_solutions)`, both `[..., *cost_shape]`: the loss in the dtype of the
        predictions. Rows that an oracle with on_failure="nan" could not solve are NaN without a gradient.

    Raises:
        TypeError: oracle is not an oracle, the costs are not floating-point tensors.
        ValueError: NaN or infinite costs, solutions that are not 0-1, shapes that do not fit, settings out of range.
        What the oracle raises.

    Cost:
        One solve a row forward, none backward.

    Transforms:
        backward, DDP, checkpointing. torch.compile breaks the graph, and refuses with fullgraph=True; torch.func and
        torch.export raise UnsupportedOperationError.

    References:
        Tsochantaridis, Joachims, Hofmann, Altun, "Large Margin Methods for Structured and Interdependent Output
        Variables", JMLR 2005, eq. 11 (margin rescaling); Nowozin, Lampert, "Structured Learning and Prediction in
        Computer Vision", 2011, Section 6.1.

    Example:
        >>> import torch, difflayers as dl
        >>> loss = dl.surrogates.StructuredSVM(dl.oracles.TopK(3, 1))
        >>> loss(torch.tensor([2.0, 1.0, 3.0]), torch.tensor([1.0, 0.0, 0.0]))  # 1 too dear, and 2 of margin
        tensor(3.)
    """

    def __init__(self, oracle: Oracle, *, margin: float = 1.0, reduction: str = "mean") -> None:
        super().__init__(oracle, reduction=reduction)
        self.margin = _checks.number(self.name, "margin", margin, above=0.0)

    @on_host
    def forward(self, predicted_costs: Tensor, true_solutions: Tensor) -> Tensor:
        """The loss of predicted costs."""
        predicted, event = self._costs("predicted_costs", predicted_costs), self._event
        best = companion(self.name, "true_solutions", true_solutions, predicted)
        if _checks.contents_are_checked(best) and not bool(((best - best.round()).abs().lt(1e-4) & _unit(best)).all()):
            raise ValueError(
                f"{self.name}: argument 'true_solutions' must be 0-1, got values in "
                f"[{best.min().item():g}, {best.max().item():g}]; use FenchelYoung for others"
            )
        best = best.round()  # solvers return 0.9999999
        moved = predicted + self.margin * (2 * best - 1)
        found = self._solve_or(moved, best)
        rows = dot(moved, best - found.nan_to_num(), event)
        return self._reduce(mask_rows(rows, found, event), predicted_costs.dtype)


def _unit(x: Tensor) -> Tensor:
    return torch.logical_and(x > -0.5, x < 1.5)
