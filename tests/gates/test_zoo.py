"""Attach and prune on the zoo: what is found, that it is removed, and that nothing else changes."""

import copy

import pytest
import torch

import difflayers as dl
from difflayers.gates._analysis import analyse

from .zoo import ZOO, made


def leaves(value):
    return [leaf for leaf in torch.utils._pytree.tree_leaves(value) if isinstance(leaf, torch.Tensor)]


def other(example, seed):
    """Other inputs of the same shapes; indices stay."""
    generator = torch.Generator().manual_seed(seed)
    return tuple(
        torch.randn(x.shape, generator=generator, dtype=x.dtype) if x.is_floating_point() else x for x in example
    )


def close(gated, pattern):
    """Closes units: "one" leaves one of each group open, a number closes about half by that seed."""
    generator = torch.Generator().manual_seed(7 if pattern == "one" else pattern)
    for gate in gated.gates.values():
        closed = torch.rand(gate.n, generator=generator) < (2 if pattern == "one" else 0.5)
        closed[torch.randint(gate.n, (1,), generator=generator)] = False
        gate.weight.data = torch.where(closed, -1.0, 1.0)


def snapshot(model):
    """All that a model remembers."""
    return (
        [(name, tensor, tensor.clone()) for name, tensor in model.state_dict(keep_vars=True).items()],
        [{k: v for k, v in vars(m).items() if isinstance(v, (int, str, tuple))} for m in model.modules()],
    )


def assert_as_before(model, before):
    for (name, tensor, value), (now_name, now) in zip(before[0], model.state_dict(keep_vars=True).items(), strict=True):
        assert name == now_name
        assert tensor is now
        assert torch.equal(value, now), name
    assert snapshot(model)[1] == before[1]


def assert_equal(found, expected):
    found, expected = leaves(found), leaves(expected)
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def without(gated, opened):
    """The dense model in which weights that meet closed channels are 0 and all else of closed channels is garbage: what
    does not exist can hold anything."""
    model = copy.deepcopy(gated.model)
    tensors = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))
    met = set()
    for group in gated.groups.values():
        for (name, dim), units in group.units.items():
            gone = ((units >= 0) & ~opened[group.name][units.clamp(min=0)]).nonzero().squeeze(-1)
            if (name, dim) not in group.consumers:
                index = (slice(None),) * dim + (gone,)
                tensors[name].data[index] = torch.rand_like(tensors[name].data[index]) + 1
            else:
                met.add((name, dim, gone))
    for name, dim, gone in met:
        tensors[name].data[(slice(None),) * dim + (gone,)] = 0
    return model


@pytest.mark.parametrize("name", ZOO)
def test_pruned_is_gated(name):
    model, example = made(name)
    before = snapshot(model)
    gated = dl.gates.attach(model, example)
    assert sorted(group.size for group in gated.groups.values()) == ZOO[name].groups
    for pattern in (0, 1, "one"):
        close(gated, pattern)
        opened = gated.opened()
        small = dl.gates.prune(gated, verify=True)
        assert_as_before(model, before)
        x = other(example, 3)
        with torch.no_grad():
            found = small(*x)
            assert_equal(found, gated(*x))
            if name != "tied_module":  # where the meeting weight is the made one as well
                assert_equal(found, without(gated, opened)(*x))
        assert sum(p.numel() for p in small.parameters()) == round(gated.cost("parameters", opened).item())
    again = analyse(small, x, {}, skip_unknown=False, allow_inexact=False)
    left = sum(term.amount for term in again.flops)
    assert left == pytest.approx(gated.cost("flops", opened).item())
    assert left < gated.full_cost()
    assert all(torch.isfinite(leaf).all() for leaf in leaves(small.train()(*x)))


@pytest.mark.parametrize("name", ["residual_post_activation", "transformer_encoder", "recurrent_deep", "class_token"])
def test_gradients_reach_gates_and_weights(name):
    """The gradient at an open gate is the derivative by a factor on the channel's weights."""
    model, example = made(name)
    gated = dl.gates.attach(model, example)
    gated.train()
    torch.manual_seed(0)
    sum(leaf.square().sum() for leaf in leaves(gated(*example))).backward()
    for gate in gated.gates.values():
        assert torch.isfinite(gate.weight.grad).all()
        assert gate.weight.grad.abs().max() > 0
    assert all(p.grad is not None for p in model.parameters())


def test_nothing_closed_is_the_model():
    for name in ("unet", "transformer_decoder", "recurrent_gated"):
        model, example = made(name)
        gated = dl.gates.attach(model, example)
        with torch.no_grad():
            assert_equal(gated(*example), model(*example))
            assert_equal(dl.gates.prune(gated)(*example), model(*example))


def test_pruned_again_and_exported():
    model, example = made("transformer_encoder")
    small = model
    for _ in range(2):
        gated = dl.gates.attach(small, example)
        close(gated, 0)
        small = dl.gates.prune(gated)
    program = torch.export.export(small, example, strict=False)
    with torch.no_grad():
        assert_equal(program.module()(*example), small(*example))
        assert_equal(small(*example), gated(*example))
