"""A permutation-equivariant scorer: the score of an item sees the other items of its set."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from .. import _checks

__all__ = ["EquivariantScorer"]


class EquivariantScorer(nn.Module):
    r"""Scores the items of a set in the light of each other, equivariantly: scores(items[p]) = scores(items)[p].

    $$\text{score}_i = w^\top \text{ReLU}(\text{Encoder}(W x_1 + b, \dots, W x_n + b)_i) + c,$$

    with a Transformer encoder whose attention runs over the n items, without positional encoding. (In the
    published code the encoder is built without `batch_first`, so its attention runs over the batch instead:
    for SVHN over the items at one place of each set, for MNIST over all items of the batch as one
    sequence. A score then depends on which other sets happen to be in the batch. Here it never does.)

    Args:
        features: size of an item's feature vector.
        width: size inside the encoder; a multiple of heads. Published: 16 to 64.
        heads: attention heads.
        layers: encoder layers.
        feedforward: hidden size of each layer's feed-forward part; None is 4 width. Published: 2048.
        dropout: in [0, 1), in training only. Published: 0.1.

    Returns:
        The module. Called as `module(items, mask=None)` with items `[..., n, features]` and mask bool,
        broadcastable to `[..., n]`, True = present: scores `[..., n]`. An absent item scores 0, gets no
        gradient, and changes no other score, whatever it holds. n may be 0 or 1.

    Raises:
        TypeError: a setting or items has the wrong type; mask is not bool.
        ValueError: a setting is out of range, width is not a multiple of heads, or a shape does not fit.

    Cost:
        O(layers (n^2 width + n width (width + feedforward))) time per set.

    Transforms:
        As `torch.nn.TransformerEncoder`.

    References:
        Kim, Yoon, Cho, "Generalized Neural Sorting Networks with Error-Free Differentiable Swap Functions",
        ICLR 2024, arXiv 2310.07174.

    Example:
        >>> import torch, difflayers as dl
        >>> scorer = dl.sorting.EquivariantScorer(5, width=16, heads=4, layers=1).eval()
        >>> items, p = torch.randn(7, 5), torch.randperm(7)
        >>> torch.allclose(scorer(items[p]), scorer(items)[p], atol=1e-5)
        True
    """

    def __init__(
        self,
        features: int,
        *,
        width: int = 64,
        heads: int = 8,
        layers: int = 6,
        feedforward: int | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        function = "difflayers.sorting.EquivariantScorer"
        self.features = _checks.integer(function, "features", features, minimum=1)
        heads = _checks.integer(function, "heads", heads, minimum=1)
        width = _checks.integer(function, "width", width, minimum=1)
        if width % heads:
            raise ValueError(
                f"{function}: argument 'width' must be a multiple of heads = {heads}, got {width}; "
                f"use {width + heads - width % heads}"
            )
        layers = _checks.integer(function, "layers", layers, minimum=1)
        hidden = 4 * width if feedforward is None else _checks.integer(function, "feedforward", feedforward, minimum=1)
        dropout = _checks.number(function, "dropout", dropout, minimum=0.0, below=1.0)
        self.embed = nn.Linear(features, width)
        layer = nn.TransformerEncoderLayer(width, heads, hidden, dropout, batch_first=True)
        # nested tensors would cut the output to the longest set present
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.score = nn.Linear(width, 1)

    def forward(self, items: Tensor, mask: Tensor | None = None) -> Tensor:
        function = "difflayers.sorting.EquivariantScorer"
        items = _checks.tensor(function, "items", items)
        if items.dim() < 2 or items.shape[-1] != self.features:
            raise ValueError(
                f"{function}: argument 'items' must have shape [..., n, {self.features}], got {tuple(items.shape)}"
            )
        lead, n = items.shape[:-2], items.shape[-2]
        present = ignored = None
        if mask is not None:
            if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
                got = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
                raise TypeError(f"{function}: argument 'mask' must be a bool tensor (True = present), got {got}")
            try:
                present = mask.expand(*lead, n)
            except RuntimeError:
                raise ValueError(
                    f"{function}: argument 'mask' must be broadcastable to {(*lead, n)}, got {tuple(mask.shape)}"
                ) from None
            items = torch.where(present[..., None], items, 0.0)
            # attention over nothing is 0/0: in a set without items, all (zeroed) items stay visible
            ignored = (~present & present.any(-1, keepdim=True)).reshape(math.prod(lead), n)
        hidden = self.embed(items.reshape(math.prod(lead), n, self.features))
        if hidden.numel() > 0:  # masked attention does not run on empty sets and batches
            hidden = self.encoder(hidden, src_key_padding_mask=ignored)
        scores = self.score(hidden.relu())[..., 0].reshape(*lead, n)
        return scores if present is None else torch.where(present, scores, 0.0)
