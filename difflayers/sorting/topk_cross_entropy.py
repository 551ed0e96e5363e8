"""Top-k cross-entropy: classification where the true class need only be among the best k."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .. import _checks
from . import networks
from .losses import RankingLoss, broadcast_mask, checked_labels
from .networks import Network
from .rows import Rows, Steepness
from .swaps import Swap

__all__ = ["TopKCrossEntropy"]


class TopKCrossEntropy(RankingLoss):
    r"""Cross-entropy of "the true class is among the best k", for a distribution over k.

    $$-\log\big(p_1 \, \text{softmax}(z)_y + \sum_{k \ge 2} p_k \sum_{i \text{ among the best } k} P_{iy}\big)$$

    with P the relaxed permutation that sorts the logits z; the logarithm is of $t (1 - 2 \cdot 10^{-7}) + 10^{-7}$.

    Args:
        k_distribution: p_1, p_2, ..., p_K: non-negative, summing to 1, K at most the number of classes.
        top1: what stands for "the best is y" in the first term: "softmax" (as published) or "network" (P).
        candidates: keeps only the true class and this many less one of the best others, at least K: a hard
            choice without gradient of its own. None keeps every class.
        reduction: "mean", "sum" or "none" of the rows' losses.
        network, swap, steepness, hard, mask, dim: see `difflayers.sort`; absent classes act as -inf.

    Returns:
        The module. Called as `module(logits, class_index, mask=None)` with logits `[..., n]` and class_index
        `[...]`, int64; the result has the dtype of logits. A row without any class present has loss 0.

    Raises:
        TypeError, ValueError: as `difflayers.sort`; K or candidates do not fit n; class_index has the wrong
            dtype or shape or (on the CPU in eager mode; elsewhere the row is NaN) names no present class.

    Cost:
        O(n log n log K) per row; P is not formed: the distribution's tail sums are carried back from the
        best K positions once. Nothing is sorted when only p_1 is positive and top1="softmax".

    Transforms:
        As `difflayers.sort`.

    References:
        Petersen, Kuehne, Borgelt, Deussen, "Differentiable Top-k Classification Learning", ICML 2022,
        arXiv 2206.07290.

    Example:
        >>> import torch, difflayers as dl
        >>> loss = dl.losses.TopKCrossEntropy([0.5, 0.5], steepness=100.0)
        >>> logits = torch.tensor([2.0, 1.0, -1.0, -2.0])
        >>> loss(logits, torch.tensor(0)) < loss(logits, torch.tensor(1)) < loss(logits, torch.tensor(2))
        tensor(True)
    """

    function = "difflayers.losses.TopKCrossEntropy"

    def __init__(
        self,
        k_distribution: Sequence[float],
        *,
        top1: str = "softmax",
        candidates: int | None = None,
        reduction: str = "mean",
        network: str | Network = "odd_even_merge",
        swap: str | Swap = "cauchy",
        steepness: Steepness = 10.0,
        hard: bool = False,
        mask: Tensor | None = None,
        dim: int = -1,
    ) -> None:
        given = k_distribution.tolist() if isinstance(k_distribution, Tensor) else k_distribution
        if isinstance(given, str) or not hasattr(given, "__len__") or not hasattr(given, "__iter__"):
            raise TypeError(
                f"{self.function}: argument 'k_distribution' must be a sequence of numbers [p_1, ..., p_K], "
                f"got {type(given).__name__}"
            )
        weights = [_checks.number(self.function, f"k_distribution[{i}]", p, minimum=0.0) for i, p in enumerate(given)]
        if abs(math.fsum(weights) - 1) > 1e-6:
            raise ValueError(
                f"{self.function}: argument 'k_distribution' must sum to 1, got {weights}, which sums to "
                f"{math.fsum(weights):g}; divide it by its sum"
            )
        if candidates is not None:
            candidates = _checks.integer(self.function, "candidates", candidates, minimum=len(weights))
            networks.resolve(self.function, network, candidates)  # the network sorts the candidates only
        super().__init__(
            reduction=reduction, network=network, swap=swap, steepness=steepness, hard=hard, mask=mask, dim=dim
        )
        self.k_distribution = tuple(weights)
        self.top1 = _checks.choice(self.function, "top1", top1, ("softmax", "network"))
        self.candidates = candidates

    def forward(self, logits: Tensor, class_index: Tensor, mask: Tensor | None = None) -> Tensor:
        logits = _checks.tensor(self.function, "logits", logits)
        dim = _checks.dimension(self.function, "logits", logits, self.dim)
        n = logits.shape[dim]
        if max(len(self.k_distribution), self.candidates or 0) > n:
            raise ValueError(
                f"{self.function}: argument 'logits' must have at least as many classes along dim as k_distribution "
                f"has entries ({len(self.k_distribution)}) and candidates asks for ({self.candidates}), got {n}"
            )
        batch = logits.movedim(dim, -1).shape[:-1]
        index = checked_labels(self.function, "class_index", class_index, batch, indices=True).unsqueeze(dim)
        settings = self.settings(mask)
        logits, index, usable, empty = self._present(logits, index, settings.pop("mask"), dim)
        if self.candidates is not None:
            logits, index = self._kept(logits, index, dim)
            n = self.candidates
        rows = Rows(self.function, logits, mask=None, **settings)
        index = index.movedim(dim, -1).reshape(rows.size, 1)
        total = rows.scores.new_zeros(rows.size, 1)
        tails = self._tail_sums()
        if tails:
            # the best position is the last wire
            payload = torch.tensor(tails[::-1], device=logits.device, dtype=rows.scores.dtype)[None, :, None]
            total = rows.transport("carry_transposed", payload, n - len(tails), n)[..., 0].gather(1, index)
        if self.top1 == "softmax":
            total = total + self.k_distribution[0] * torch.softmax(rows.filled, dim=1).gather(1, index)
        losses = -torch.log(total * (1 - 2e-7) + 1e-7)[:, 0]  # the published guard for t = 0
        losses = torch.where(empty.reshape(-1), 0.0, losses)
        return self.reduced(losses * torch.where(usable.reshape(-1), 1.0, torch.nan), rows)

    def _present(
        self, logits: Tensor, index: Tensor, mask: Tensor | None, dim: int
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Logits with -inf where absent, a safe index, and per row: was it safe before, is no class present."""
        inside = index.clamp(0, logits.shape[dim] - 1)
        usable = index == inside
        empty = torch.zeros_like(usable)
        if mask is not None:
            mask = broadcast_mask(self.function, mask, logits.shape)
            empty = ~mask.any(dim, keepdim=True)
            usable = (usable & mask.gather(dim, inside)) | empty
            logits = torch.where(mask, logits, -torch.inf)
            logits = torch.where(empty, 0.0, logits)  # a softmax of nothing but -inf is NaN
        if _checks.contents_are_checked(index, usable) and not bool(usable.all()):
            raise ValueError(
                f"{self.function}: argument 'class_index' must name a present class in [0, {logits.shape[dim] - 1}], "
                f"got {index[~usable][0].item()}"
            )
        return logits, inside, usable, empty

    def _kept(self, logits: Tensor, index: Tensor, dim: int) -> tuple[Tensor, Tensor]:
        """The true class first, then the best others in descending order, and the true class's new index."""
        assert self.candidates is not None
        shape = [1] * logits.dim()
        shape[dim] = -1
        others = torch.arange(logits.shape[dim] - 1, device=logits.device).reshape(shape)
        others = others + (others >= index).long()  # every class but the true one
        best = logits.detach().gather(dim, others).topk(self.candidates - 1, dim=dim).indices
        kept = torch.cat([index, others.gather(dim, best)], dim=dim)
        return logits.gather(dim, kept), torch.zeros_like(index)

    def _tail_sums(self) -> list[float]:
        """What position j (best first) weighs in the network's part: the sum of its p_k over k >= j."""
        weights = [0.0, *self.k_distribution[1:]] if self.top1 == "softmax" else list(self.k_distribution)
        while weights and weights[-1] == 0:
            weights.pop()
        return [math.fsum(weights[j:]) for j in range(len(weights))]

    def extra_repr(self) -> str:
        return f"{self.k_distribution}, top1={self.top1!r}, candidates={self.candidates}, {super().extra_repr()}"
