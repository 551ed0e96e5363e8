"""How graphs are found, how a removal is tried without arithmetic, and how weights are masked in few passes."""

import pytest
import torch
from torch import nn

import difflayers as dl
from difflayers.gates import _masking, _record, _shapes, _trial
from difflayers.gates._analysis import analysed
from difflayers.gates._masking import masked_along

from .zoo import ZOO, made
from .zoo_images import Applied

MODELS = ["residual_post_activation", "tied_embedding", "fused_attention", "recurrent_gated", "einsum_weights", "unet"]


def operators(graph):
    names = [str(node.target) for node in graph.nodes if node.op == "call_function"]
    return [name for name in names if "getitem" not in name and "detach" not in name]


@pytest.mark.parametrize("name", MODELS)
def test_as_exported(name):
    model, example = made(name)
    found, expected = _record.recorded(model, example, {}), _record.exported(model, example, {})
    assert operators(found.graph) == operators(expected.graph)
    assert set(found.names.values()) == set(expected.names.values())


def test_the_zoo_needs_no_export(monkeypatch):
    monkeypatch.setattr(_record, "exported", lambda *_: pytest.fail("exported"))
    for name in ZOO:
        model, example = made(name)
        _record.traced(model, example, {})


def test_what_asks_for_values_is_named():
    model = nn.Sequential(nn.Linear(4, 6), Applied(lambda m, x: x if x.sum() > 0 else -x), nn.Linear(6, 2))
    with pytest.raises(dl.UnsupportedOperationError, match=r"'gt' \(module '1'\) asks for values; control flow"):
        dl.gates.attach(model, torch.randn(3, 4))


def test_training_models_are_left_alone():
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(), nn.Linear(6, 2)).train()
    model[1].momentum = 0.9
    before = {name: value.clone() for name, value in model.state_dict().items()}
    gated = dl.gates.attach(model, torch.randn(3, 4))
    assert all(module.training for module in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())
    assert [group.size for group in gated.groups.values()] == [6]


def tried(model, example):
    analysis, trace = analysed(model, example, {})
    gated = dl.gates.Gated(model, analysis, dl.TrainableGate, (example, {}))
    opened = _trial._opened(gated, list(gated.groups))
    return _shapes.shrinks(gated, trace, opened), _trial._failure(gated, list(gated.groups))


def test_sizes_that_are_right_mean_outputs_that_are_right():
    certain = 0
    for name in ZOO:
        by_shapes, by_numbers = tried(*made(name))
        assert by_numbers is None
        certain += by_shapes
    assert certain > 20


WRONG = {
    "literal": lambda m, x: m.c(m.b(m.a(x).view(-1, 2, 3).transpose(1, 2).flatten(1)).relu()),
    "scale": lambda m, x: m.c(m.b(m.a(x) / m.a(x).shape[1]).relu()),
    "branch": lambda m, x: m.c(m.b(m.a(x).relu() if m.a(x).shape[1] == 6 else m.a(x)).relu()),
    "slice": lambda m, x: m.c(torch.cat([m.b(m.a(x))[:, :2].relu(), m.b(m.a(x))[:, 2:].tanh()], 1)),
    "place": lambda m, x: m.c(m.b(m.a(x))) * m.a(x)[:, 2:3],
}


@pytest.mark.parametrize("name", WRONG)
def test_code_that_counts_channels_is_found_without_numbers(name):
    model = Applied(WRONG[name], a=nn.Linear(4, 6), b=nn.Linear(6, 5), c=nn.Linear(5, 2))
    by_shapes, by_numbers = tried(model, (torch.randn(3, 4),))
    assert not by_shapes
    assert by_numbers is not None


@pytest.mark.parametrize("opened", ["all", "some"])
@pytest.mark.parametrize(("shape", "dim"), [((7, 5), 1), ((7, 5), 0), ((6, 4, 3, 3), 1), ((4,), 0)])
def test_masks_and_their_gradients(monkeypatch, shape, dim, opened):
    monkeypatch.setattr(_masking, "PIECE", 24)  # several pieces
    torch.manual_seed(0)
    weight = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    mask = torch.ones(shape[dim], dtype=torch.float64) if opened == "all" else torch.rand(shape[dim]).double()
    mask.requires_grad_()
    view = [-1 if d == dim else 1 for d in range(len(shape))]
    cotangent = torch.randn(shape, dtype=torch.float64)
    found, expected = masked_along(weight, mask, dim), weight * mask.view(view)
    torch.testing.assert_close(found, expected)
    for a, b in zip(
        torch.autograd.grad(found, (weight, mask), cotangent),
        torch.autograd.grad(expected, (weight, mask), cotangent),
        strict=True,
    ):
        torch.testing.assert_close(a, b)
    assert torch.autograd.gradgradcheck(lambda w, m: masked_along(w, m, dim), (weight, mask))
    constant = mask.detach()
    torch.testing.assert_close(masked_along(weight, constant, dim), weight * constant.view(view))
    found, expected = (
        torch.func.grad(lambda m, product=product: (product(weight.detach(), m) * cotangent).sum())(constant)
        for product in (lambda w, m: masked_along(w, m, dim), lambda w, m: w * m.view(view))
    )
    torch.testing.assert_close(found, expected)
