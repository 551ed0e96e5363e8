"""How the losses of all hypotheses become one: a rule that weighs them by their scores."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from .. import _checks

__all__ = ["Best", "Mean", "Selection", "Softmax"]


class Selection(ABC):
    """A rule that weighs the hypotheses of a problem: the base of those that are ready, and of a user's own."""

    @abstractmethod
    def weights(self, scores: Tensor, valid: Tensor) -> Tensor:
        """Weights of all hypotheses.

        Args:
            scores: `[..., H, S]`, of H draws with up to S models each.
            valid: `[..., H, S]` bool.

        Returns:
            `[..., H, S]`, zero where not valid, else summing to one where any is valid; differentiable by scores as
            far as the rule is.
        """

    def without_each(self, losses: Tensor, scores: Tensor, valid: Tensor) -> Tensor:
        """What the weighted loss would be without each of the draws, `[..., H]`; 0 where no hypothesis is left.

        The definition, in O(H^2 S) time and memory; a rule overrides it where there is a shorter way. Losses
        are finite, 0 where not valid; no gradient is asked for."""
        count = valid.shape[-2]
        others = ~torch.eye(count, dtype=torch.bool, device=valid.device).unsqueeze(-1)
        kept = valid.unsqueeze(-3) & others
        weights = self.weights(scores.unsqueeze(-3).expand(kept.shape), kept)
        return (weights * losses.unsqueeze(-3)).sum((-2, -1))

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


class Mean(Selection):
    r"""All valid hypotheses alike: $w = 1 / \text{number of valid}$. The loss is that of a random hypothesis.

    Cost, transforms:
        O(H S); no gradient by the scores.

    Example:
        >>> import torch, difflayers as dl
        >>> scores, valid = torch.tensor([[3.0], [1.0], [2.0]]), torch.tensor([[True], [False], [True]])
        >>> dl.ransac.Mean().weights(scores, valid).squeeze(-1)
        tensor([0.5000, 0.0000, 0.5000])
    """

    def weights(self, scores: Tensor, valid: Tensor) -> Tensor:
        """`[..., H, S]`."""
        number = valid.sum((-2, -1), keepdim=True)
        return valid.to(scores.dtype) / number.clamp(min=1)

    def without_each(self, losses: Tensor, scores: Tensor, valid: Tensor) -> Tensor:
        """`[..., H]`, in O(H S)."""
        return _mean_of_others(losses, valid.to(losses.dtype))


class Softmax(Selection):
    r"""Hypotheses in proportion to $e^{\text{score} / \tau}$, as a differentiable RANSAC (DSAC) chooses one.

    Args:
        temperature: in units of the score, which is about the number of inliers; large: `Mean`, small: `Best`.

    Raises:
        TypeError, ValueError: a temperature that is not a positive number.

    Cost, transforms:
        O(H S); backward by the scores.

    References:
        Brachmann, Krull, Nowozin, Shotton, Michel, Gumhold, Rother, "DSAC - Differentiable RANSAC for Camera
        Localization", CVPR 2017, arXiv 1611.05705, equations 7-8.

    Example:
        >>> import torch, difflayers as dl
        >>> scores, valid = torch.tensor([[3.0], [1.0], [2.0]]), torch.tensor([[True], [False], [True]])
        >>> dl.ransac.Softmax(temperature=1.0).weights(scores, valid).squeeze(-1)
        tensor([0.7311, 0.0000, 0.2689])
    """

    def __init__(self, temperature: float = 1.0) -> None:
        self.temperature = _checks.number("difflayers.ransac.Softmax", "temperature", temperature, above=0)

    def weights(self, scores: Tensor, valid: Tensor) -> Tensor:
        """`[..., H, S]`, differentiable by scores."""
        return self._softmax(scores, valid)

    def _softmax(self, scores: Tensor, valid: Tensor) -> Tensor:
        # finite where there is none: the softmax of nothing but -inf, and its gradient, would be NaN
        lowest = torch.finfo(scores.dtype).min
        exponent = torch.where(valid, scores / self.temperature, lowest)
        weights = exponent.flatten(-2).softmax(-1).view_as(scores)
        return torch.where(valid, weights, 0)

    def without_each(self, losses: Tensor, scores: Tensor, valid: Tensor) -> Tensor:
        """`[..., H]`, in O(H S)."""
        weights = self._softmax(scores, valid)
        result = _mean_of_others(losses, weights)
        if not weights.shape[-2]:
            return result
        # of a draw that has most of the weight, too little may be left to subtract from: without it, afresh
        heaviest = weights.sum(-1, keepdim=True).argmax(-2, keepdim=True)
        left = valid.scatter(-2, heaviest.expand(*heaviest.shape[:-1], valid.shape[-1]), False)
        afresh = (self._softmax(scores, left) * losses).sum((-2, -1))
        return result.scatter(-1, heaviest.squeeze(-1), afresh.unsqueeze(-1))

    def __repr__(self) -> str:
        return f"Softmax(temperature={self.temperature})"


class Best(Selection):
    """The hypothesis with the largest score alone (of equal ones the first), as RANSAC does. No gradient by scores.

    Cost, transforms:
        O(H S); no gradient by the scores.

    Example:
        >>> import torch, difflayers as dl
        >>> scores, valid = torch.tensor([[3.0], [1.0], [2.0]]), torch.tensor([[False], [True], [True]])
        >>> dl.ransac.Best().weights(scores, valid).squeeze(-1)
        tensor([0., 0., 1.])
    """

    def weights(self, scores: Tensor, valid: Tensor) -> Tensor:
        """`[..., H, S]`, one 1 a problem."""
        flat = torch.where(valid, scores.detach(), -torch.inf).flatten(-2)
        if not flat.shape[-1]:
            return torch.zeros_like(scores)
        # the first of equal ones; argmax does not promise that
        first = ((flat == flat.amax(-1, keepdim=True)) & valid.flatten(-2)).byte().cumsum(-1)
        only = (first == 1) & (first.diff(dim=-1, prepend=torch.zeros_like(first[..., :1])) == 1)
        return only.view_as(scores).to(scores.dtype)

    def without_each(self, losses: Tensor, scores: Tensor, valid: Tensor) -> Tensor:
        """`[..., H]`, in O(H S): the loss of the best, but of the best of the others without its draw."""
        chosen = self.weights(scores, valid)
        draw = chosen.bool().any(-1)
        second = self.weights(scores, valid & ~draw.unsqueeze(-1))
        loss, other = ((w * losses).sum((-2, -1)).unsqueeze(-1) for w in (chosen, second))
        return torch.where(draw, other, loss)


def _mean_of_others(losses: Tensor, weights: Tensor) -> Tensor:
    """The weighted mean of the losses of all draws but each one: `[..., H, S]` twice -> `[..., H]`."""
    mass, total = weights.sum(-1), (weights * losses).sum(-1)
    left = mass.sum(-1, keepdim=True) - mass
    return torch.where(left > 0, (total.sum(-1, keepdim=True) - total) / torch.where(left > 0, left, 1), 0)
