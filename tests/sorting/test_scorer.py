"""The equivariant scorer: a score sees its own set, all of it, and nothing else."""

import copy

import pytest
import torch
from torch import nn

import difflayers as dl

FEATURES = 3


def scorer(**settings):
    torch.manual_seed(0)
    settings = {"width": 16, "heads": 4, "layers": 2, **settings}
    return dl.sorting.EquivariantScorer(FEATURES, **settings)


def items(*shape, seed=0):
    return torch.randn(*shape, FEATURES, generator=torch.Generator().manual_seed(seed))


MODES = pytest.mark.parametrize("mode", ["train", "eval", "no_grad"])  # PyTorch takes another path in each


def run(model, mode, *arguments):
    model.train(mode == "train")
    with torch.set_grad_enabled(mode != "no_grad"):
        return model(*arguments)


@MODES
def test_equals_the_written_out_network(mode):
    """Attention, residuals and normalisation by hand, from the module's own weights."""
    model, x = scorer(layers=1, feedforward=7), items(4, 5)
    layer = model.encoder.layers[0]
    h = x @ model.embed.weight.T + model.embed.bias
    q, k, v = (h @ layer.self_attn.in_proj_weight.T + layer.self_attn.in_proj_bias).chunk(3, dim=-1)
    heads = [t.unflatten(-1, (4, 4)).transpose(-2, -3) for t in (q, k, v)]  # [4 sets, 4 heads, 5 items, 4]
    weights = (heads[0] @ heads[1].mT / 2.0).softmax(-1)
    mixed = (weights @ heads[2]).transpose(-2, -3).flatten(-2)
    h = nn.functional.layer_norm(h + layer.self_attn.out_proj(mixed), (16,))
    hidden = (h @ layer.linear1.weight.T + layer.linear1.bias).clamp(min=0)
    assert hidden.shape[-1] == 7
    h = nn.functional.layer_norm(h + layer.linear2(hidden), (16,))
    expected = (h.clamp(min=0) @ model.score.weight.T + model.score.bias)[..., 0]
    torch.testing.assert_close(run(model, mode, x), expected, rtol=1e-4, atol=1e-5)


@MODES
def test_equivariant_and_not_constant(mode):
    model, x = scorer(), items(2, 7)
    p = torch.randperm(7, generator=torch.Generator().manual_seed(1))
    scores = run(model, mode, x)
    assert scores.std(dim=1).min() > 1e-3
    torch.testing.assert_close(run(model, mode, x[:, p]), scores[:, p], rtol=1e-4, atol=1e-5)


def test_sees_its_own_set_and_no_other():
    model, x = scorer(), items(4, 5)
    before = model(x)
    x[1, 2] += 1
    changed = (model(x) - before).abs() > 1e-4
    assert changed[1].all()
    assert not changed[[0, 2, 3]].any()


@MODES
@pytest.mark.parametrize("garbage", [float("nan"), 1e30, float("inf")])
def test_absent_items_change_nothing_whatever_they_hold(mode, garbage):
    model, x = scorer(), items(3, 6)
    mask = torch.tensor([[True] * 6, [True, False, True, True, False, False], [False] * 5 + [True]])
    spoiled = torch.where(mask[..., None], x, garbage)
    scores = run(model, mode, spoiled, mask)
    assert not scores[~mask].any()
    for row, present in enumerate(mask):  # a set with absent items is the smaller set
        torch.testing.assert_close(scores[row, present], run(model, mode, x[row, present]), rtol=1e-4, atol=1e-5)


def test_absent_items_get_no_gradient():
    model, mask = scorer(), torch.tensor([[True, False, True], [False, False, False]])
    x = torch.where(mask[..., None], items(2, 3), torch.nan).requires_grad_()
    model(x, mask).sum().backward()
    assert not x.grad[~mask].any()
    assert x.grad[mask].any(dim=-1).all()
    assert all(p.grad.isfinite().all() for p in model.parameters())


@MODES
def test_sets_with_nothing_present_score_zero(mode):
    mask = torch.tensor([[False] * 4, [True] * 4])
    model, x = scorer(), items(2, 4)
    scores = run(model, mode, x, mask)
    assert not scores[0].any()
    torch.testing.assert_close(scores[1], run(model, mode, x[1]), rtol=1e-4, atol=1e-5)
    assert not run(model, mode, x, torch.tensor(False)).any()


@MODES
@pytest.mark.parametrize("shape", [(5,), (2, 5), (2, 3, 5), (0, 5), (0,), (2, 0), (1,), (2, 1)])
@pytest.mark.parametrize("masked", [False, True])
def test_shapes(mode, shape, masked):
    arguments = (torch.ones(shape[-1:], dtype=torch.bool),) if masked else ()
    scores = run(scorer(), mode, items(*shape), *arguments)
    assert scores.shape == shape
    assert scores.isfinite().all()


def test_batch_dimensions_are_independent():
    model, x = scorer(), items(2, 3, 5)
    expected = torch.stack([torch.stack([model(x[i, j]) for j in range(3)]) for i in range(2)])
    torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model(x.transpose(0, 1).contiguous().transpose(0, 1)), expected, rtol=1e-4, atol=1e-5)


def test_float64_gradcheck():
    model, x = scorer(layers=1, width=4, heads=2).double(), items(2, 3).double().requires_grad_()
    mask = torch.tensor([[True, True, True], [True, False, True]])
    assert torch.autograd.gradcheck(lambda x: model(x, mask), x)


def test_learns_to_sort_relative_to_the_set():
    """The target, the distance from the set's mean, cannot be scored item by item."""
    model, x = scorer(), items(64, 5)
    target = -(x[..., 0] - x[..., 0].mean(-1, keepdim=True)).abs()
    order, loss = target.argsort(-1), dl.losses.PermutationCrossEntropy()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    values = []
    for _ in range(60):
        optimizer.zero_grad()
        values.append(loss(model(x), order))
        values[-1].backward()
        optimizer.step()
    assert values[-1] < 0.75 * values[0]


def test_state_dict_and_deepcopy():
    model, other = scorer(), dl.sorting.EquivariantScorer(FEATURES, width=16, heads=4, layers=2)
    x = items(2, 4)
    assert not torch.allclose(model(x), other(x))
    other.load_state_dict(model.state_dict())
    torch.testing.assert_close(other(x), model(x))
    torch.testing.assert_close(copy.deepcopy(model)(x), model(x))


BAD = [
    (TypeError, "features", lambda: dl.sorting.EquivariantScorer(3.0)),
    (ValueError, "features", lambda: dl.sorting.EquivariantScorer(0)),
    (ValueError, "width", lambda: scorer(width=18)),
    (ValueError, "width", lambda: scorer(width=0)),
    (ValueError, "heads", lambda: scorer(heads=0)),
    (ValueError, "layers", lambda: scorer(layers=0)),
    (ValueError, "feedforward", lambda: scorer(feedforward=0)),
    (ValueError, "dropout", lambda: scorer(dropout=1.0)),
    (TypeError, "dropout", lambda: scorer(dropout="0")),
    (TypeError, "items", lambda: scorer()([[0.0] * FEATURES])),
    (TypeError, "items", lambda: scorer()(torch.ones(2, FEATURES).long())),
    (ValueError, "items", lambda: scorer()(torch.ones(FEATURES))),
    (ValueError, "items", lambda: scorer()(torch.ones(2, FEATURES + 1))),
    (TypeError, "mask", lambda: scorer()(items(2, 4), torch.ones(2, 4))),
    (ValueError, "mask", lambda: scorer()(items(2, 4), torch.ones(2, 3, dtype=torch.bool))),
]


@pytest.mark.parametrize(("error", "argument", "call"), BAD)
def test_bad_arguments_are_named(error, argument, call):
    with pytest.raises(error, match=rf"^difflayers\.sorting\.EquivariantScorer: argument '{argument}' must"):
        call()
