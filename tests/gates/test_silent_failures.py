"""What the best pruning package gets wrong without a word (research/estimators.md 3b): here it is right, or refused."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import difflayers as dl

from .test_zoo import assert_as_before, assert_equal, close, other, snapshot
from .zoo import made


def pruned(name, closed):
    model, example = made(name)
    gated = dl.gates.attach(model, example)
    for group, units in closed.items():
        gated.gates[group].weight.data[units] = -1
    small = dl.gates.prune(gated)
    x = other(example, 9)
    with torch.no_grad():
        assert_equal(small(*x), gated(*x))
    return model, gated, small


def test_1_channel_shuffle():
    # units of the first convolution alternate over the groups of the second: shuffled channels 0 4 1 5 | 2 6 3 7
    model, _, small = pruned("channel_shuffled", {"a": [0]})
    assert small.a.out_channels == 4
    assert small.b.in_channels == 4
    assert torch.equal(small.a.weight, model.a.weight[[1, 3, 5, 7]])


def test_2_heads_of_fused_attention_are_rewritten():
    _, _, small = pruned("fused_attention", {"0_qkv": [0, 2]})
    assert small[0].h == 2
    assert small[0].d == 2
    assert small[0].qkv.weight.shape == (12, 8)


def test_3_heads_alone():
    """No other group is closed, and heads still go."""
    model, _, small = pruned("separate_attention", {"1_q": [1]})
    assert small[1].num_heads == 3
    assert small[1].q.out_features == 6
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in model.parameters())


def test_4_frozen_models_are_pruned():
    _, _, small = pruned("frozen", {"0_0": [0, 1, 2]})
    assert not any(p.requires_grad for p in small.parameters())
    assert small[0][0].out_channels == 2


def test_5_constants_of_closed_channels_reach_nothing():
    """sigmoid(0) is one half, also behind a border of zeros: a closed channel has neither."""
    model, gated, small = pruned("constant_at_border", {"0": [0, 1], "2": [4]})
    x = torch.zeros(1, 3, 8, 8, dtype=torch.float64)
    with torch.no_grad():
        first = torch.sigmoid(F.conv2d(x, model[0].weight[2:], model[0].bias[2:], padding=1))
        second = F.softplus(F.conv2d(first, model[2].weight[:4, 2:], model[2].bias[:4], padding=1))
        by_hand = F.conv2d(second, model[4].weight[:, :4], model[4].bias, padding=1)
        assert_equal(small(x), by_hand)
        assert_equal(gated(x), by_hand)


@pytest.mark.parametrize(("name", "group"), [("tied_embedding", "b"), ("tied_module", "0")])
def test_6_tied_weights_stay_tied(name, group):
    model, _, small = pruned(name, {group: [0, 5]})
    count = sum(p.numel() for p in small.parameters())
    assert count < sum(p.numel() for p in model.parameters())
    if name == "tied_module":
        assert small[0].weight is small[2].weight
        assert small[0].weight.shape == (11, 6)


@pytest.mark.parametrize("name", ["layer_norm_stream", "rms_norm_stream"])
def test_7_statistics(name):
    """Refused: the stream has no gate. Allowed: the gated model's statistics are those of what is left."""
    model, example = made(name)
    assert {group.size for group in dl.gates.attach(model, example).groups.values()} == {12}
    gated = dl.gates.attach(model, example, inexact="allow")
    assert sorted(group.size for group in gated.groups.values()) == [8, 12]
    stream = next(group.name for group in gated.groups.values() if group.size == 8)
    gated.gates[stream].weight.data[[1, 6]] = -1
    small = dl.gates.prune(gated)
    assert small.norm.normalized_shape == (6,)
    # by hand: every parameter without channels 1 and 6 of the stream
    left = [0, 2, 3, 4, 5, 7]
    hand = copy.deepcopy(model)
    norms = [m for m in hand.modules() if isinstance(m, (nn.LayerNorm, nn.RMSNorm))]
    for norm in norms:
        norm.normalized_shape = (6,)
        for parameter in norm.parameters():
            parameter.data = parameter.data[left]
    makers = [hand.embed, hand.b if name == "layer_norm_stream" else hand.down]
    readers = [hand.out, *([hand.a] if name == "layer_norm_stream" else [hand.gate, hand.up])]
    for layer in makers:
        layer.weight.data, layer.bias.data = layer.weight.data[left], layer.bias.data[left]
    for layer in readers:
        layer.weight.data = layer.weight.data[:, left]
    x = other(example, 4)
    with torch.no_grad():
        assert_equal(small(*x), hand(*x))
        assert_equal(gated(*x), hand(*x))


@pytest.mark.parametrize("name", ["transformer_encoder", "transformer_decoder", "attention_blocks", "einsum_attention"])
def test_7_whole_transformers(name):
    model, example = made(name)
    before = snapshot(model)
    exact, gated = dl.gates.attach(model, example), dl.gates.attach(model, example, inexact="allow")
    assert len(gated.groups) >= len(exact.groups)
    for pattern in (0, "one"):
        close(gated, pattern)
        small = dl.gates.prune(gated)
        x = other(example, 4)
        with torch.no_grad():
            assert_equal(small(*x), gated(*x))
        assert sum(p.numel() for p in small.parameters()) == round(gated.cost("parameters", gated.opened()).item())
    gated.train()
    gated(*example).square().sum().backward()
    assert all(torch.isfinite(gate.weight.grad).all() for gate in gated.gates.values())
    assert_as_before(model.eval(), before)


@pytest.mark.parametrize("training", [True, False])
def test_8_the_model_is_left_alone(training):
    model, example = made("plain_chain")
    model.train(training)
    model[1].eval()
    modes = [m.training for m in model.modules()]
    before = snapshot(model)
    gated = dl.gates.attach(model, example)
    close(gated, 0)
    small = dl.gates.prune(gated)
    assert_as_before(model, before)
    assert [m.training for m in model.modules()] == modes == [m.training for m in small.modules()]
    again = dl.gates.attach(model, example)
    assert all(gate.opened().all() for gate in again.gates.values())
    assert not {id(p) for p in small.parameters()} & {id(p) for p in model.parameters()}


def test_9_costs_count_what_is_no_module():
    model, example = made("raw_linear")
    gated = dl.gates.attach(model, example)
    assert gated.full_cost() == 2 * 3 * (4 * 6 + 6 * 5 + 5 * 2)
    gated.gates["first"].weight.data[:2] = -1
    assert gated.cost("flops", gated.opened()) == 2 * 3 * (4 * 4 + 4 * 5 + 5 * 2)
