"""Pruned models against references written by hand: which weights meet which channels is said here, not found."""

import pytest
import torch

import difflayers as dl

from .test_zoo import assert_equal, other
from .zoo import made

# model: (closed units of which group) -> what to zero by hand: parameter, dimension, indices
CASES = {
    "perceptron": ({"0": [1, 4]}, [("2.weight", 1, [1, 4])]),
    "plain_chain": ({"0_0": [0, 5]}, [("3.0.weight", 1, [0, 5])]),
    "flatten_to_linear": ({"0": [2]}, [("3.weight", 1, list(range(32, 48)))]),
    "constant_at_border": ({"0": [3]}, [("2.weight", 1, [3])]),
    "residual_post_activation": (
        {"stem_0": [6, 7]},
        [("a1.0.weight", 1, [6, 7]), ("a2.0.weight", 1, [6, 7]), ("head.2.weight", 1, [6, 7])],
    ),
    "residual_option_a": (
        # channel 1 of the stem is channel 3 of what comes out: two are padded in front
        {"stem_0": [1]},
        [("a.0.weight", 1, [1]), ("head.2.weight", 1, [3])],
    ),
    "concatenated": (
        # b's six come first: the stem's four are at 6, a's five at 10
        {"stem": [1], "a": [0], "b": [5]},
        [("a.weight", 1, [1]), ("b.weight", 1, [1, 4]), ("head.2.weight", 1, [7, 10, 5])],
    ),
    "squeeze_excite": ({"conv": [2]}, [("down.weight", 1, [2]), ("head.2.weight", 1, [2])]),
    "shuffled_halves": (
        # unit 1 is channel 1 of both halves: interleaved at 2 and 3
        {"stem": [1]},
        [("b.weight", 1, [1]), ("head.2.weight", 1, [2, 3])],
    ),
    "pixel_shuffled": ({"2": [1]}, [("5.weight", 1, [1])]),
    "gated_by_chunk": ({"up": [4]}, [("down.weight", 1, [4])]),
    "raw_product": ({"first": [2]}, [("a", 0, [2])]),
    "fused_attention": ({"0_qkv": [3]}, [("0.out.weight", 1, [6, 7])]),
    "grouped_query_native": ({"1_q": [0]}, [("1.o.weight", 1, list(range(6)))]),
    "multihead_attention": ({"attention": [1]}, [("attention.out_proj.weight", 1, [2, 3])]),
    "tied_embedding": ({"b": [7]}, [("embed.weight", 1, [7]), ("a.weight", 1, [7])]),
    "recurrent_plain": ({"a": [3]}, [("a.weight_hh_l0", 1, [3]), ("b.weight_ih_l0", 1, [3])]),
    "recurrent": ({"lstm": [0]}, [("lstm.weight_hh_l0", 1, [0]), ("out.weight", 1, [0])]),
}


@pytest.mark.parametrize("name", CASES)
def test_by_hand(name):
    closed, zeroed = CASES[name]
    model, example = made(name)
    gated = dl.gates.attach(model, example)
    for group, units in closed.items():
        gated.gates[group].weight.data[units] = -1
    small = dl.gates.prune(gated)
    dense, _ = made(name)
    parameters = dict(dense.named_parameters())
    for parameter, dim, indices in zeroed:
        parameters[parameter].data.index_fill_(dim, torch.tensor(indices), 0)
    x = other(example, 5)
    with torch.no_grad():
        assert_equal(small(*x), dense(*x))
        reference, _ = made(name)
        assert any(float((a - b).abs().max()) > 1e-6 for a, b in zip([small(*x)], [reference(*x)], strict=True))
