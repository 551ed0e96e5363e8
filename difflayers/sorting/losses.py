"""Losses for ranking supervision: of a permutation matrix, of ranks, of graded relevance."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .. import _checks
from .layers import NetworkModule
from .networks import Network
from .rows import Rows, Steepness
from .swaps import Swap

__all__ = ["NDCGLoss", "PermutationCrossEntropy", "SpearmanLoss", "permutation_cross_entropy"]

_REDUCTIONS = ("mean", "sum", "none")


def _reduce(rows: Tensor, reduction: str, dtype: torch.dtype) -> Tensor:
    """One loss per row -> the reduced loss, rounded to dtype at the end."""
    if reduction == "mean":
        rows = rows.mean()
    elif reduction == "sum":
        rows = rows.sum()
    return rows.to(dtype)


def checked_labels(function: str, name: str, labels: object, shape: torch.Size, *, indices: bool = False) -> Tensor:
    """A label tensor of this shape: int64 when it holds indices, else of any real dtype."""
    if not isinstance(labels, Tensor):
        raise TypeError(
            f"{function}: argument '{name}' must be a torch.Tensor, got {type(labels).__name__}; "
            f"convert it with torch.as_tensor({name})"
        )
    if indices and labels.dtype != torch.int64:
        raise TypeError(
            f"{function}: argument '{name}' must have dtype int64, got {labels.dtype}; convert it with {name}.long()"
        )
    if labels.dtype == torch.bool or labels.is_complex():
        raise TypeError(
            f"{function}: argument '{name}' must have a floating-point or integer dtype, got {labels.dtype}; "
            f"convert it with {name}.float()"
        )
    if labels.shape != shape:
        raise ValueError(
            f"{function}: argument '{name}' must have shape {tuple(shape)}, got {tuple(labels.shape)}; "
            f"reshape or expand it"
        )
    return labels


def broadcast_mask(function: str, mask: object, shape: torch.Size) -> Tensor:
    """A mask in the full shape."""
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        got = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
        raise TypeError(f"{function}: argument 'mask' must be a bool tensor (True = present), got {got}")
    try:
        return mask.expand(shape)
    except RuntimeError:
        raise ValueError(
            f"{function}: argument 'mask' must be broadcastable to {tuple(shape)}, got {tuple(mask.shape)}"
        ) from None


def permutation_cross_entropy(
    P: Tensor, order: Tensor, *, kind: str = "binary", mask: Tensor | None = None, reduction: str = "mean"
) -> Tensor:
    r"""Cross-entropy between a relaxed permutation matrix and the true order.

    With T the 0/1 matrix of the order, $T_{ij} = [\,\text{order}_i = j\,]$, and logs of $\max(p, 10^{-7})$,

    $$\text{binary: } -\frac{1}{n^2} \sum_{ij} T_{ij} \log P_{ij} + (1 - T_{ij}) \log (1 - P_{ij}), \qquad
    \text{categorical: } -\frac{1}{n} \sum_i \log P_{i,\text{order}_i}.$$

    Args:
        P: `[..., n, n]`, entries in [0, 1], `P[..., i, j]` = weight of input j at output i.
        order: `[..., n]` int64, `argsort(target)`: order[i] is the input that belongs at output i.
        kind: "binary" (all entries) or "categorical" (the right entries only).
        mask: bool, broadcastable to order, True = present. The first count positions of order are the present
            elements in order (`argsort(where(mask, target, inf))` puts them there); what follows is ignored,
            as are the rows and columns of P that belong to absent elements.
        reduction: "mean" of the rows' losses, their "sum", or "none": one number per row. Each row's loss is
            the average over its present positions or entries; a row with none present contributes 0.

    Returns:
        A scalar, or with "none" P's batch shape, in the dtype of P; logs are taken in float32 or float64. An
        entry below 1e-7 gets no gradient, so with an exact 0/1 matrix (hard=True) only right entries do.

    Raises:
        TypeError: P is not a floating-point tensor, order is not int64, mask is not bool.
        ValueError: the shapes do not fit; on the CPU in eager mode also when a row of order is not a
            permutation of the present elements (where that goes unchecked, the row's loss is NaN).

    Cost:
        O(n^2) time and memory per row, O(n log n) for "categorical".

    Transforms:
        All that autograd knows: it is made of plain torch operations.

    References:
        Petersen et al., ICML 2021, arXiv 2105.04019 (binary); Grover et al., "Stochastic Optimization of Sorting
        Networks via Continuous Relaxations", ICLR 2019, arXiv 1903.08850 (categorical).

    Example:
        >>> import torch, difflayers as dl
        >>> P, order = torch.tensor([[0.75, 0.25], [0.25, 0.75]]), torch.tensor([0, 1])
        >>> dl.losses.permutation_cross_entropy(P, order)  # -log 0.75
        tensor(0.2877)
    """
    function = "difflayers.losses.permutation_cross_entropy"
    kind = _checks.choice(function, "kind", kind, ("binary", "categorical"))
    reduction = _checks.choice(function, "reduction", reduction, _REDUCTIONS)
    P = _checks.tensor(function, "P", P)
    if P.dim() < 2 or P.shape[-1] != P.shape[-2]:
        raise ValueError(f"{function}: argument 'P' must have shape [..., n, n], got {tuple(P.shape)}")
    order = checked_labels(function, "order", order, P.shape[:-1], indices=True)
    n = P.shape[-1]
    elements = torch.arange(n, device=P.device)
    if mask is None:
        present = occupied = torch.ones_like(order, dtype=torch.bool)
    else:
        present = broadcast_mask(function, mask, order.shape)
        occupied = elements < present.sum(-1, keepdim=True)
    claimed = torch.where(occupied, order, n).sort(-1).values
    valid = (claimed == torch.where(present, elements, n).sort(-1).values).all(-1)
    if _checks.contents_are_checked(order, present) and not bool(valid.all()):
        raise ValueError(
            f"{function}: argument 'order' must hold a permutation of the present elements in every row, "
            f"got {order[~valid][0].tolist()}; pass torch.argsort(target)"
        )
    matrix = P.float() if P.dtype in (torch.float16, torch.bfloat16) else P
    count = present.sum(-1).clamp(min=1)
    if kind == "binary":
        right = order[..., None] == elements
        likelihood = torch.where(right, matrix, 1 - matrix)
        counted = occupied[..., None] & present[..., None, :]
        count = count**2
    else:
        likelihood = matrix.gather(-1, order.clamp(0, max(n - 1, 0))[..., None])
        counted = occupied[..., None]
    if mask is not None:  # before the logarithm: a NaN in an ignored place must not reach the gradient
        likelihood = torch.where(counted, likelihood, 1.0)
    rows = -likelihood.clamp(min=1e-7).log().sum((-2, -1)) / count  # 1e-7: P is exactly 0 where swaps saturate
    return _reduce(rows * torch.where(valid, 1.0, torch.nan), reduction, P.dtype)


class RankingLoss(NetworkModule):
    """Base of the losses that own a relaxed network: its settings, a reduction, and the scores as rows."""

    def __init__(
        self,
        *,
        reduction: str = "mean",
        network: str | Network = "odd_even_merge",
        swap: str | Swap = "cauchy",
        steepness: Steepness = 10.0,
        hard: bool = False,
        mask: Tensor | None = None,
        dim: int = -1,
    ) -> None:
        super().__init__(network=network, swap=swap, steepness=steepness, hard=hard, mask=mask, dim=dim)
        self.reduction = _checks.choice(self.function, "reduction", reduction, _REDUCTIONS)

    def rows(self, scores: Tensor, mask: Tensor | None) -> Rows:
        """The scores as rows of n in the dtype that is computed in."""
        _checks.dimension(self.function, "scores", scores, self.dim)
        return Rows(self.function, scores, **self.settings(mask))

    def aligned(self, name: str, labels: Tensor, scores: Tensor, *, indices: bool = False) -> Tensor:
        """Labels of the scores' shape as rows: [B, n]."""
        labels = checked_labels(self.function, name, labels, scores.shape, indices=indices).movedim(self.dim, -1)
        return labels.reshape(math.prod(labels.shape[:-1]), labels.shape[-1])

    def reduced(self, losses: Tensor, rows: Rows) -> Tensor:
        """One loss per row, [B] -> the result."""
        return _reduce(losses.reshape(rows.lead), self.reduction, rows.dtype)

    def extra_repr(self) -> str:
        return f"reduction={self.reduction!r}, {super().extra_repr()}"


class PermutationCrossEntropy(RankingLoss):
    """`permutation_cross_entropy` of the relaxed permutation that sorts the scores, ascending.

    Args:
        kind: "binary" (the published training loss of relaxed sorting networks) or "categorical".
        reduction: "mean", "sum" or "none" of the rows' losses.
        network, swap, steepness, hard, mask, dim: see `difflayers.sort`. With hard=True wrong entries get
            no gradient (see `permutation_cross_entropy`); train with the relaxed matrix.

    Returns:
        The module. Called as `module(scores, order, mask=None)` with scores `[..., n]` and order =
        `argsort(target, dim)`, int64, of the same shape; the result has the dtype of scores.

    Raises:
        As `permutation_cross_entropy` and `difflayers.sort`.

    Cost:
        That of `difflayers.permutation`.

    Transforms:
        As `difflayers.sort`.

    References:
        As `permutation_cross_entropy`.

    Example:
        >>> import torch, difflayers as dl
        >>> loss = dl.losses.PermutationCrossEntropy(steepness=100.0)
        >>> target = torch.tensor([7, 2, 5])
        >>> right, wrong = torch.tensor([0.7, 0.2, 0.5]), torch.tensor([0.2, 0.7, 0.5])
        >>> bool(loss(right, target.argsort()) < loss(wrong, target.argsort()))
        True
    """

    function = "difflayers.losses.PermutationCrossEntropy"

    def __init__(
        self,
        *,
        kind: str = "binary",
        reduction: str = "mean",
        network: str | Network = "odd_even_merge",
        swap: str | Swap = "cauchy",
        steepness: Steepness = 10.0,
        hard: bool = False,
        mask: Tensor | None = None,
        dim: int = -1,
    ) -> None:
        super().__init__(
            reduction=reduction, network=network, swap=swap, steepness=steepness, hard=hard, mask=mask, dim=dim
        )
        self.kind = _checks.choice(self.function, "kind", kind, ("binary", "categorical"))

    def forward(self, scores: Tensor, order: Tensor, mask: Tensor | None = None) -> Tensor:
        scores = _checks.tensor(self.function, "scores", scores)
        rows = self.rows(scores, mask)
        order = self.aligned("order", order, scores, indices=True)
        losses = permutation_cross_entropy(
            rows.transport("matrix"), order, kind=self.kind, mask=rows.present, reduction="none"
        )
        return self.reduced(losses, rows)

    def extra_repr(self) -> str:
        return f"kind={self.kind!r}, {super().extra_repr()}"


class SpearmanLoss(RankingLoss):
    r"""One minus Spearman's rank correlation, the ranks of the scores being relaxed.

    $$1 - \frac{\sum_i (r_i - \bar r)(t_i - \bar t)}{\sqrt{\sum_i (r_i - \bar r)^2 \sum_i (t_i - \bar t)^2}},
    \qquad r = \text{rank(scores)}, \quad t = \text{target ranks}.$$

    Args:
        reduction: "mean", "sum" or "none" of the rows' losses.
        network, swap, steepness, hard, mask, dim: see `difflayers.sort`.

    Returns:
        The module. Called as `module(scores, target_ranks, mask=None)`, both `[..., n]`, target_ranks
        floating or integer (any increasing affine function of the ranks will do), averages over the present
        elements; the result lies in [0, 2] and has the dtype of scores. A row whose targets are constant, or
        with fewer than two elements, has loss 1 and zero gradient. Where the relaxed ranks (nearly) coincide,
        their standard deviation is taken as 1/1000 of that of distinct ranks: equal scores have a finite
        gradient that pulls them apart the right way.

    Raises:
        TypeError, ValueError: as `difflayers.sort`; target_ranks is not a real tensor of the scores' shape.

    Cost:
        That of `difflayers.rank`; P is not formed.

    Transforms:
        As `difflayers.sort`.

    References:
        Spearman, "The Proof and Measurement of Association between Two Things", 1904; with relaxed ranks:
        Blondel et al., "Fast Differentiable Sorting and Ranking", ICML 2020, arXiv 2002.08871.

    Example:
        >>> import torch, difflayers as dl
        >>> loss = dl.losses.SpearmanLoss(hard=True)
        >>> loss(torch.tensor([0.3, 0.1, 0.2]), torch.tensor([1, 3, 2]))
        tensor(2.)
    """

    function = "difflayers.losses.SpearmanLoss"

    def forward(self, scores: Tensor, target_ranks: Tensor, mask: Tensor | None = None) -> Tensor:
        scores = _checks.tensor(self.function, "scores", scores)
        rows = self.rows(scores, mask)
        targets = self.aligned("target_ranks", target_ranks, scores).to(rows.scores.dtype)
        positions = torch.arange(1, rows.n + 1, device=scores.device, dtype=targets.dtype)
        ranks = rows.transport("carry_transposed", positions[None, :, None])[..., 0]
        if rows.n < 2:
            return self.reduced(1 + 0 * ranks.sum(1), rows)
        present = torch.ones_like(targets, dtype=torch.bool) if rows.present is None else rows.present
        count = present.sum(1, keepdim=True)
        # the correlation does not change with the targets' origin and unit; [0, 1] keeps squares in range
        low = torch.where(present, targets, torch.inf).amin(1, keepdim=True).detach()
        high = torch.where(present, targets, -torch.inf).amax(1, keepdim=True).detach()
        constant = high <= low
        targets = torch.where(constant, targets, (targets - low) / torch.where(constant, 1.0, high - low))

        def centred(values: Tensor) -> Tensor:
            mean = torch.where(present, values, 0.0).sum(1, keepdim=True) / count.clamp(min=1)
            return torch.where(present, values - mean, 0.0)

        ranks, targets = centred(ranks), centred(targets)
        # below a millionth of the variance of 1..count the spread drowns in rounding; >= 2 keeps it positive
        several = count[:, 0].clamp(min=2).to(ranks.dtype)
        floor = 1e-6 * several * (several**2 - 1) / 12
        spread = torch.maximum(ranks.square().sum(1), floor).sqrt()
        target_spread = torch.where(constant[:, 0], 1.0, targets.square().sum(1)).sqrt()
        correlation = (ranks * targets).sum(1) / (spread * target_spread)
        return self.reduced(1 - torch.where(constant[:, 0], 0.0, correlation), rows)


class NDCGLoss(RankingLoss):
    r"""One minus the normalised discounted cumulative gain, the order being relaxed; higher scores come first.

    $$1 - \frac{\text{DCG}(P g)}{\text{DCG}(\text{sorted } g)}, \qquad g = 2^{\text{relevance}} - 1, \qquad
    \text{DCG}(v) = \sum_{i=1}^{k} \frac{v_i}{\log_2 (1 + i)},$$

    with P the relaxed permutation that puts the best score first.

    Args:
        k: cutoff, at least 1; None or more than n counts every position.
        reduction: "mean", "sum" or "none" of the rows' losses.
        network, swap, steepness, hard, mask, dim: see `difflayers.sort`.

    Returns:
        The module. Called as `module(scores, relevance, mask=None)`, both `[..., n]`, relevance floating or
        integer, finite and >= 0; the result lies in [0, 1] and has the dtype of scores. A row without any relevant
        element has loss 0 and zero gradient. Gains are taken relative to 2^max: no relevance overflows.

    Raises:
        TypeError, ValueError: as `difflayers.sort`; relevance is not a real tensor of the scores' shape, or
            (on the CPU in eager mode; elsewhere the row is NaN) is negative or not finite.

    Cost:
        O(n log^2 n) per row; P is not formed. Comparators that the first k positions do not depend on are left out.

    Transforms:
        As `difflayers.sort`.

    References:
        Jarvelin and Kekalainen, "Cumulated gain-based evaluation of IR techniques", 2002; relaxed: Pobrotyn and
        Bialobrzeski, "NeuralNDCG", 2021, arXiv 2102.07831.

    Example:
        >>> import torch, difflayers as dl
        >>> loss = dl.losses.NDCGLoss(k=2, hard=True)
        >>> loss(torch.tensor([0.1, 0.9, 0.5]), torch.tensor([0, 2, 1]))
        tensor(0.)
    """

    function = "difflayers.losses.NDCGLoss"

    def __init__(
        self,
        k: int | None = None,
        *,
        reduction: str = "mean",
        network: str | Network = "odd_even_merge",
        swap: str | Swap = "cauchy",
        steepness: Steepness = 10.0,
        hard: bool = False,
        mask: Tensor | None = None,
        dim: int = -1,
    ) -> None:
        super().__init__(
            reduction=reduction, network=network, swap=swap, steepness=steepness, hard=hard, mask=mask, dim=dim
        )
        self.k = None if k is None else _checks.integer(self.function, "k", k, minimum=1)

    def forward(self, scores: Tensor, relevance: Tensor, mask: Tensor | None = None) -> Tensor:
        scores = _checks.tensor(self.function, "scores", scores)
        rows = self.rows(-scores, mask)  # negated, not flipped: absent elements must come last
        relevance = self.aligned("relevance", relevance, scores).to(rows.scores.dtype)
        if rows.present is not None:
            relevance = torch.where(rows.present, relevance, 0.0)
        allowed = (relevance >= 0) & relevance.isfinite()
        if _checks.contents_are_checked(relevance) and not bool(allowed.all()):
            bad = relevance.detach()[~allowed][0].item()
            raise ValueError(f"{self.function}: argument 'relevance' must be finite and >= 0, got {bad}")
        relevance = torch.where(allowed, relevance, torch.nan)
        largest = relevance.amax(1, keepdim=True).detach() if rows.n else 0.0
        # 2^(rel - max) - 2^(-max), without cancellation at small rel
        gains = torch.exp2(relevance - largest) * -torch.expm1(-math.log(2) * relevance)
        cutoff = rows.n if self.k is None else min(self.k, rows.n)
        discounts = 1 / torch.arange(2, cutoff + 2, device=scores.device, dtype=gains.dtype).log2()
        found = (rows.transport("carry", gains[..., None], 0, cutoff)[..., 0] * discounts).sum(1)
        ideal = (gains.sort(1, descending=True).values[:, :cutoff] * discounts).sum(1)
        nothing = ideal == 0
        return self.reduced(torch.where(nothing, 0.0, 1 - found / torch.where(nothing, 1.0, ideal)), rows)

    def extra_repr(self) -> str:
        return f"k={self.k}, {super().extra_repr()}"
