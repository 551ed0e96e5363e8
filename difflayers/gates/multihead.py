"""Attention with heads of any number and size: what nn.MultiheadAttention becomes when heads are removed."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import UnsupportedOperationError

__all__ = ["SlimMultiheadAttention"]


class SlimMultiheadAttention(nn.Module):
    """`torch.nn.MultiheadAttention` with any number of heads, whose size is not tied to the stream's width.

    Has the parameters of the module that it was made from, under the same names, and its forward's arguments and
    results; works inside `torch.nn.TransformerEncoderLayer` and `TransformerDecoderLayer`.

    Args:
        attention: a `torch.nn.MultiheadAttention`, whose parameters are taken as they are; the weights may have been
            cut to fewer heads of the same size.

    Returns:
        Of a call: (outputs, weights), as `torch.nn.MultiheadAttention`; the average of the weights is over the heads
        left.

    Raises:
        UnsupportedOperationError: masks that are not of torch's shapes reach torch's own errors; `is_causal` without a
            mask.

    Cost, transforms:
        As `torch.nn.functional.scaled_dot_product_attention`.

    Example:
        >>> import torch, difflayers as dl
        >>> dense = torch.nn.MultiheadAttention(8, 4, batch_first=True)
        >>> slim = dl.gates.SlimMultiheadAttention(dense)
        >>> x = torch.randn(2, 5, 8)
        >>> torch.allclose(slim(x, x, x)[0], dense(x, x, x)[0], atol=1e-6)
        True
    """

    def __init__(self, attention: nn.MultiheadAttention) -> None:
        super().__init__()
        self.head_dim, self.batch_first = attention.head_dim, attention.batch_first
        self.dropout, self.add_zero_attn = attention.dropout, attention.add_zero_attn
        self.in_proj_weight: nn.Parameter | None
        self.q_proj_weight: nn.Parameter
        self.k_proj_weight: nn.Parameter
        self.v_proj_weight: nn.Parameter
        self.in_proj_bias: nn.Parameter | None
        self.bias_k: nn.Parameter | None
        self.bias_v: nn.Parameter | None
        for name in (
            "in_proj_weight",
            "q_proj_weight",
            "k_proj_weight",
            "v_proj_weight",
            "in_proj_bias",
            "bias_k",
            "bias_v",
        ):
            self.register_parameter(name, getattr(attention, name))
        self.out_proj = attention.out_proj
        self.num_heads = attention.out_proj.weight.shape[1] // self.head_dim
        self.embed_dim = attention.out_proj.weight.shape[0]
        self._qkv_same_embed_dim = False  # keeps torch's fused encoder layer, which assumes whole heads, away
        self.train(attention.training)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Outputs and weights, as `torch.nn.MultiheadAttention`."""
        if is_causal and attn_mask is None:
            raise UnsupportedOperationError(
                "difflayers.gates.SlimMultiheadAttention: argument 'attn_mask' must be given with is_causal=True, got "
                "None; pass the mask, as for torch.nn.MultiheadAttention"
            )
        alone = query.dim() == 2
        if alone:
            query, key, value = (x.unsqueeze(0) for x in (query, key, value))
            key_padding_mask = None if key_padding_mask is None else key_padding_mask.unsqueeze(0)
        elif not self.batch_first:
            query, key, value = (x.transpose(0, 1) for x in (query, key, value))
        q, k, v = self._projected(query, key, value)
        mask = self._mask(q, k, key_padding_mask, attn_mask)
        dropout = self.dropout if self.training else 0.0
        weights = None
        if need_weights:
            weights = q @ k.transpose(-2, -1) / self.head_dim**0.5
            weights = F.dropout(torch.softmax(weights if mask is None else weights + mask, -1), dropout, self.training)
            y = weights @ v
            weights = weights.mean(1) if average_attn_weights else weights
            weights = weights.squeeze(0) if alone else weights
        else:
            y = F.scaled_dot_product_attention(q, k, v, mask, dropout)
        y = self.out_proj(y.transpose(1, 2).flatten(2))
        return y.squeeze(0) if alone else (y if self.batch_first else y.transpose(0, 1)), weights

    def _projected(self, *inputs: Tensor) -> list[Tensor]:
        """Queries, keys and values, `[batch, heads, length, head_dim]`."""
        if self.in_proj_weight is not None:
            matrices = self.in_proj_weight.chunk(3)
        else:
            matrices = (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
        biases = (None, None, None) if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
        results = [F.linear(x, w, b) for x, w, b in zip(inputs, matrices, biases, strict=True)]
        for i, extra in ((1, self.bias_k), (2, self.bias_v)):
            if extra is not None:
                results[i] = torch.cat([results[i], extra.expand(results[i].shape[0], -1, -1)], 1)
            if self.add_zero_attn:
                results[i] = F.pad(results[i], (0, 0, 0, 1))
        return [x.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2) for x in results]

    def _mask(self, q: Tensor, k: Tensor, padding: Tensor | None, mask: Tensor | None) -> Tensor | None:
        """Both masks in one, to be added to the weights' logarithms; nothing masks what was put behind the keys."""

        def added(x: Tensor) -> Tensor:
            x = torch.zeros_like(x, dtype=q.dtype).masked_fill(x, float("-inf")) if x.dtype == torch.bool else x
            return F.pad(x, (0, k.shape[-2] - x.shape[-1]))

        result = None
        if mask is not None:
            result = added(mask.unflatten(0, (-1, self.num_heads)) if mask.dim() == 3 else mask)
        if padding is not None:
            padding = added(padding)[:, None, None, :]
            result = padding if result is None else result + padding
        return result
