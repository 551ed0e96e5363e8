"""The attention that replaces nn.MultiheadAttention: the same numbers, whatever is asked of it."""

import pytest
import torch
from torch import nn

import difflayers as dl

from .test_zoo import assert_equal

MASKS = {
    "none": lambda heads: {},
    "padding": lambda heads: {"key_padding_mask": torch.tensor([[False] * 4, [False, False, True, True]])},
    "mask": lambda heads: {"attn_mask": torch.ones(3, 4).triu(2).bool()},
    "causal": lambda heads: {"attn_mask": torch.full((3, 4), float("-inf")).triu(1).double(), "is_causal": True},
    "of heads": lambda heads: {"attn_mask": torch.randn(2 * heads, 3, 4).double()},
    "both": lambda heads: {
        "attn_mask": torch.randn(3, 4).double(),
        "key_padding_mask": torch.tensor([[0.0, 0, 0, 1], [0, -1, 0, 0]]).double(),
    },
}


@pytest.mark.parametrize("options", [{}, {"bias": False}, {"add_bias_kv": True, "add_zero_attn": True}, {"kdim": 5}])
@pytest.mark.parametrize("mask", MASKS)
def test_as_torch(options, mask):
    for batch_first, weights in ((True, True), (False, False), (False, True)):
        if mask == "causal" and "add_zero_attn" in options and not weights:
            continue  # there torch hides the keys it has added itself, which it does not when weights are asked for
        dense = nn.MultiheadAttention(8, 4, batch_first=batch_first, **options).double().eval()
        slim = dl.gates.SlimMultiheadAttention(dense)
        assert not slim.training
        q, k, v = torch.randn(2, 3, 8), torch.randn(2, 4, options.get("kdim", 8)), torch.randn(2, 4, 8)
        q, k, v = (x.double() if batch_first else x.double().transpose(0, 1) for x in (q, k, v))
        given = MASKS[mask](4) | {"need_weights": weights, "average_attn_weights": batch_first}
        assert_equal(slim(q, k, v, **given), dense(q, k, v, **given))


def test_without_batch():
    dense = nn.MultiheadAttention(8, 2).double().eval()
    x = torch.randn(3, 8).double()
    assert_equal(dl.gates.SlimMultiheadAttention(dense)(x, x, x), dense(x, x, x))


def test_causal_without_mask_raises():
    slim = dl.gates.SlimMultiheadAttention(nn.MultiheadAttention(8, 2))
    x = torch.randn(3, 2, 8)
    with pytest.raises(dl.UnsupportedOperationError, match="argument 'attn_mask'"):
        slim(x, x, x, is_causal=True)
