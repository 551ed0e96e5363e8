"""The expected loss of a robust estimate, with an unbiased gradient to what guides the sampling."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ... import _checks
from ..result import Hypotheses
from ..selection import Mean, Selection

__all__ = ["ExpectedLoss", "expected_loss"]


def expected_loss(hypotheses: Hypotheses, losses: Tensor, selection: Selection | None = None) -> Tensor:
    r"""The loss of all hypotheses of a problem, weighed by a selection rule, with the gradient of its expectation.

    The value is $L = \sum_{h, s} w_{hs} \ell_{hs}$, $w$ the weights of the selection. H sets of points are drawn
    independently, $S_h \sim p_\theta$, so

    $$\nabla\, \mathbb{E}\,L = \mathbb{E}\Bigl[\nabla L\big|_{S}
    + \sum_h (L - L_{-h})\, \nabla_\theta \log p_\theta(S_h)\Bigr]:$$

    the pathwise gradient, through losses and scores to points, threshold and whatever losses depend on, plus the
    score function of each draw times what it changed. $L_{-h}$ is the loss of the whole selection without draw h. It
    does not depend on $S_h$, and $\mathbb{E}\,\nabla_\theta \log p_\theta(S_h) = 0$, so it may be subtracted from
    $L$ for any selection without bias; $L - L_{-h}$ is of order 1 / H where L is of order 1. For `Mean` it is the
    usual leave-one-out baseline, $(\ell_h - \text{mean of the others}) / H$.

    Args:
        hypotheses: of `RansacResult`, from a layer in training mode (or with its hypotheses kept). Without a
            log_prob (no logits, or a sampler without score function) the gradient is the pathwise one.
        losses: `[..., H, S]` floating point, of every model, differentiable by whatever should be trained besides the
            logits. What stands where a hypothesis is not valid is not looked at.
        selection: `Mean()` (default; the loss of a random hypothesis), `Softmax(temperature)` or `Best()`, or a
            user's own.

    Returns:
        `[...]`, one loss a problem; 0 with zero gradient where no hypothesis is valid.

    Raises:
        TypeError: losses is not a floating-point tensor, selection not a `Selection`.
        ValueError: losses have another shape than hypotheses.valid, or are not finite where valid (contents are
            checked on the CPU).

    Cost:
        O(H S), for a selection that does not define `without_each` O(H^2 S).

    Transforms:
        backward. The gradient's own gradient is not that of the expectation.

    References:
        Williams, "Simple statistical gradient-following algorithms for connectionist reinforcement learning", Machine
        Learning 1992; Kool, van Hoof, Welling, "Buy 4 REINFORCE Samples, Get a Baseline for Free!", 2019; Brachmann,
        Rother, "Neural-Guided RANSAC", ICCV 2019, arXiv 1905.04132, equation 6.

    Example:
        >>> import torch, difflayers as dl
        >>> points = torch.tensor([[0.0, 0.0], [1.0, 1.0], [2.0, 2.0], [0.0, 5.0]])
        >>> logits = torch.zeros(4, requires_grad=True)
        >>> layer = dl.ransac.RANSAC(dl.ransac.Line2D(), threshold=0.1, sampler=dl.ransac.GumbelTopK())
        >>> hypotheses = layer(points, logits, generator=torch.Generator().manual_seed(0)).hypotheses
        >>> true = torch.tensor([1.0, -1.0, 0.0]) / 2**0.5
        >>> losses = 1 - (hypotheses.models @ true).square()
        >>> dl.ransac.expected_loss(hypotheses, losses).mean().backward()
        >>> logits.grad.argmax()  # drawing the last point less often makes the loss smaller
        tensor(3)
    """
    function = "difflayers.ransac.expected_loss"
    rule = Mean() if selection is None else selection
    if not isinstance(rule, Selection):
        raise TypeError(
            f"{function}: argument 'selection' must be a difflayers.ransac.Selection such as Mean() or "
            f"Softmax(temperature), got {rule if isinstance(rule, type) else type(rule).__name__}"
        )
    losses = _checks.tensor(function, "losses", losses)
    valid, scores, log_prob = hypotheses.valid, hypotheses.scores, hypotheses.log_prob
    if losses.shape != valid.shape:
        raise ValueError(
            f"{function}: argument 'losses' must have the shape of hypotheses.valid, {tuple(valid.shape)}, one loss "
            f"a model, got {tuple(losses.shape)}"
        )
    losses = torch.where(valid, losses, 0)
    scores = torch.where(valid, scores, 0)  # not -inf, of which a rule that is not careful makes NaN gradients
    if _checks.contents_are_checked(losses):
        finite = losses.isfinite()
        if not bool(finite.all()):
            raise ValueError(
                f"{function}: argument 'losses' must be finite where hypotheses.valid, got "
                f"{losses.detach()[~finite][0].item()}; bound the loss of bad models, or mark them as not valid"
            )
    loss = (rule.weights(scores, valid) * losses).sum((-2, -1))
    if log_prob is None or not log_prob.requires_grad:
        return loss
    with torch.no_grad():
        # the differences are of order 1 / H: in float64, so that not much is lost of them
        exact = losses.double(), scores.double(), valid
        whole = (rule.weights(exact[1], valid) * exact[0]).sum((-2, -1))
        change = (whole.unsqueeze(-1) - rule.without_each(*exact)).to(log_prob.dtype)
    # zero, with the gradient sum_h change_h * grad log p_h
    score_function = (change * (log_prob - log_prob.detach()).nan_to_num(nan=0)).sum(-1)
    return loss + score_function.to(loss.dtype)


class ExpectedLoss(nn.Module):
    """`expected_loss` as a module.

    Args:
        selection: as there.

    Returns:
        Of a call with hypotheses and losses `[..., H, S]`: one loss a problem, `[...]`.

    Raises:
        As `expected_loss`.

    Cost, transforms:
        As `expected_loss`.

    Example:
        >>> import torch, difflayers as dl
        >>> points = torch.tensor([[0.0, 0.0], [1.0, 1.0], [2.0, 2.0]])
        >>> hypotheses = dl.ransac.RANSAC(dl.ransac.Line2D(), threshold=0.1)(points).hypotheses
        >>> dl.losses.ExpectedLoss(dl.ransac.Softmax())(hypotheses, torch.ones_like(hypotheses.scores))
        tensor(1.)
    """

    def __init__(self, selection: Selection | None = None) -> None:
        super().__init__()
        self.selection = Mean() if selection is None else selection

    def forward(self, hypotheses: Hypotheses, losses: Tensor) -> Tensor:
        """One loss a problem."""
        return expected_loss(hypotheses, losses, self.selection)

    def extra_repr(self) -> str:
        return repr(self.selection)
