"""Perturbation gradient losses: the decision's true cost as a directional derivative of the optimum."""

from __future__ import annotations

from torch import Tensor

from .. import _checks
from ..oracles import Oracle
from ._loss import OracleLoss, companion, dot, mask_rows, on_host

__all__ = ["PerturbationGradient"]

SIDES = ("backward", "central")


class PerturbationGradient(OracleLoss):
    r"""The true cost of the predicted decision, as a difference quotient of the optimal value along the true costs.

    With $V(c) = \min_x c^\top x$ and its solution $x^*(c)$, whose derivative along c at $\hat c$ is
    $c^\top x^*(\hat c)$,

    $$\text{backward: } \frac{V(\hat c) - V(\hat c - h c)}{h} \ge c^\top x^*(\hat c), \qquad
    \text{central: } \frac{V(\hat c + h c) - V(\hat c - h c)}{2 h},$$

    with gradients $(x^*(\hat c) - x^*(\hat c - h c)) / h$ and $(x^*(\hat c + h c) - x^*(\hat c - h c)) / 2h$. Not
    convex, but close to the regret (up to the constant V(c)) as h goes to 0, even for misspecified models.

    Args:
        oracle: what is minimised; see `difflayers.oracles`. Costs are clamped at 0 on a "nonnegative" cost domain.
        width: the step h > 0; smaller is less biased, with a rougher gradient.
        side: "backward" or "central".
        reduction: "mean", "sum", or "none" (one loss a row).

    Returns:
        Of a call with `(predicted_costs, true_costs)`, both `[..., *cost_shape]`: the loss in the dtype of the
        predictions; true solutions are not needed. Rows that an oracle with on_failure="nan" could not solve are NaN
        without a gradient.

    Raises:
        TypeError: oracle is not an oracle, the costs are not floating-point tensors.
        ValueError: NaN or infinite costs, shapes that do not fit, settings out of range.
        What the oracle raises.

    Cost:
        Two solves a row forward, none backward.

    Transforms:
        backward, DDP, checkpointing. torch.compile breaks the graph, and refuses with fullgraph=True; torch.func and
        torch.export raise UnsupportedOperationError.

    References:
        Huang, Gupta, "Decision-Focused Learning with Directional Gradients", NeurIPS 2024, arXiv 2402.03256,
        Section 3.

    Example:
        >>> import torch, difflayers as dl
        >>> loss = dl.surrogates.PerturbationGradient(dl.oracles.TopK(3, 1), width=1.0, side="central")
        >>> predicted = torch.tensor([[1.5, 1.0, 3.0]], requires_grad=True)
        >>> loss(predicted, torch.tensor([[1.0, 2.0, 3.0]])).backward()  # item 0 is the cheapest in truth
        >>> predicted.grad
        tensor([[ 0.5000, -0.5000,  0.0000]])
    """

    def __init__(self, oracle: Oracle, *, width: float = 0.1, side: str = "backward", reduction: str = "mean") -> None:
        super().__init__(oracle, reduction=reduction)
        self.width = _checks.number(self.name, "width", width, above=0.0)
        self.side = _checks.choice(self.name, "side", side, SIDES)

    @on_host
    def forward(self, predicted_costs: Tensor, true_costs: Tensor) -> Tensor:
        """The loss of predicted costs."""
        predicted, event = self._costs("predicted_costs", predicted_costs), self._event
        step = self.width * companion(self.name, "true_costs", true_costs, predicted)
        after, before = predicted + step if self.side == "central" else predicted, predicted - step
        found_after, found_before = self._solve(after), self._solve(before)
        difference = dot(after, found_after.nan_to_num(), event) - dot(before, found_before.nan_to_num(), event)
        rows = difference / (2 * self.width if self.side == "central" else self.width)
        return self._reduce(mask_rows(rows, found_after + found_before, event), predicted_costs.dtype)
