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
    r"""The hypothesis with the largest score alone (of equal ones the first), as RANSAC does. No gradient by scores.

    With `of=k` the loss is that of the best of k of the draws, in the mean over all such choices from the H at hand:
    with the n draws that have a valid hypothesis in the order of their scores, the r-th has the weight

    $$w_r = \binom{n - r}{k - 1} \Big/ \binom{n}{k}, \qquad r = 1, \dots, n.$$

    k = 1 is the mean over the draws, k = H their best alone. In between lies what a search of k samples needs: one
    good draw of k. A problem where that is certain has hardly a gradient any more, and others get it; and the gradient
    of H draws has less noise than that of the best of k alone.

    Args:
        of: k, how many draws the best one is of, positive; more than there are means all of them. None: all.

    Raises:
        TypeError, ValueError: k that is not a positive integer.

    Cost, transforms:
        O(H S) and a sort of the draws; no gradient by the scores.

    References:
        The mean over all choices is a U-statistic: Hoeffding, "A Class of Statistics with Asymptotically Normal
        Distribution", Annals of Mathematical Statistics 1948.

    Example:
        >>> import torch, difflayers as dl
        >>> scores, valid = torch.tensor([[3.0], [1.0], [2.0]]), torch.tensor([[False], [True], [True]])
        >>> dl.ransac.Best().weights(scores, valid).squeeze(-1)
        tensor([0., 0., 1.])
        >>> dl.ransac.Best(of=2).weights(scores, torch.ones_like(valid)).squeeze(-1)  # best of 2 of the 3
        tensor([0.6667, 0.0000, 0.3333])
    """

    def __init__(self, of: int | None = None) -> None:
        self.of = None if of is None else _checks.integer("difflayers.ransac.Best", "of", of, minimum=1)

    def weights(self, scores: Tensor, valid: Tensor) -> Tensor:
        """`[..., H, S]`, of each draw one model at most."""
        result = torch.zeros_like(scores)
        if not scores.numel():
            return result
        slot, order, number = self._ranked(scores, valid)
        of_draws = torch.zeros_like(scores[..., 0]).scatter(-1, order, self._of_ranks(number, scores))
        return result.scatter(-1, slot, of_draws.unsqueeze(-1))

    def without_each(self, losses: Tensor, scores: Tensor, valid: Tensor) -> Tensor:
        """`[..., H]`, in O(H S): without the r-th, those after it move up by one."""
        if not scores.numel():
            return torch.zeros(scores.shape[:-1], dtype=losses.dtype, device=losses.device)
        slot, order, number = self._ranked(scores, valid)
        sorted_losses = losses.gather(-1, slot).squeeze(-1).gather(-1, order)
        ranks = torch.arange(order.shape[-1], device=order.device)
        counts = (ranks < number).to(losses.dtype) * sorted_losses
        fewer = self._of_ranks((number - 1).clamp(min=0), losses)
        stay, move = fewer * counts, torch.nn.functional.pad(fewer[..., :-1], (1, 0)) * counts
        before = stay.cumsum(-1) - stay
        after = move.flip(-1).cumsum(-1).flip(-1) - move
        whole = (self._of_ranks(number, losses) * counts).sum(-1, keepdim=True)
        of_ranks = torch.where(ranks < number, before + after, whole)
        return torch.zeros_like(of_ranks).scatter(-1, order, of_ranks)

    @staticmethod
    def _ranked(scores: Tensor, valid: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The best slot of each draw `[..., H, 1]`, the draws from the best to the worst and then those without any
        `[..., H]`, and how many have one, `[..., 1]`."""
        lowest = torch.finfo(scores.dtype).min
        known = torch.where(valid, scores.detach().clamp(min=lowest), -torch.inf)
        # stable: of equal ones the first, which max does not promise
        values, slots = known.sort(dim=-1, descending=True, stable=True)
        order = values[..., 0].sort(dim=-1, descending=True, stable=True).indices
        return slots[..., :1], order, valid.any(-1).sum(-1, keepdim=True)

    def _of_ranks(self, number: Tensor, like: Tensor) -> Tensor:
        """The weights `[..., H]` of the best, the second best, ... of so many draws `[..., 1]`."""
        number = number.to(like.dtype)
        chosen = number if self.of is None else number.clamp(max=self.of)
        ranks = torch.arange(1, like.shape[-2], dtype=like.dtype, device=like.device)
        left = number - ranks
        ratio = torch.where(left > 0, (left + 1 - chosen) / torch.where(left > 0, left, 1), 0)
        return torch.cat([chosen / number.clamp(min=1), ratio.clamp(min=0)], -1).cumprod(-1)

    def __repr__(self) -> str:
        return "Best()" if self.of is None else f"Best(of={self.of})"


def _mean_of_others(losses: Tensor, weights: Tensor) -> Tensor:
    """The weighted mean of the losses of all draws but each one: `[..., H, S]` twice -> `[..., H]`."""
    mass, total = weights.sum(-1), (weights * losses).sum(-1)
    left = mass.sum(-1, keepdim=True) - mass
    return torch.where(left > 0, (total.sum(-1, keepdim=True) - total) / torch.where(left > 0, left, 1), 0)
