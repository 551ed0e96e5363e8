"""Selection by what masking does, area-constrained masks, and the report."""

import sys

import pytest
import torch
from torch import nn

from difflayers import gates

from .nets import gated_chain, resnet


def test_importance_is_what_cutting_the_unit_out_does():
    gated = gated_chain(4, 6, 5, 2)
    x, y = torch.randn(20, 4), torch.randn(20, 2)

    def metric(model):
        assert not model.training
        assert not torch.is_grad_enabled()
        return (model(x) - y).square().mean()

    gated.gates["2"].weight.data[1] = -1  # closed already
    gated.train()
    scores = gates.importance_by_masking(gated, metric)
    first, _, second, _, third = gated.model
    whole = None
    for group, layer, unit in [
        (None, None, None),
        *[("0", third, u) for u in range(6)],
        *[("2", third, u) for u in range(5)],
    ]:
        a = torch.relu(first(x))
        a = a * (torch.arange(6) != unit) if group == "0" else a
        b = torch.relu(second(a)) * (torch.arange(5) != 1)
        b = b * (torch.arange(5) != unit) if group == "2" else b
        value = float((layer or third)(b).sub(y).square().mean().detach())
        if group is None:
            whole = value
        else:
            assert float(scores[group][unit]) == pytest.approx(value - whole, abs=1e-6)
    assert scores["2"][1] == 0
    assert gated.training
    assert gated.frozen is None
    gates.project(gated, 0.5, scores=scores)
    kept = gated.opened()["0"]
    assert bool(kept.all()) or scores["0"][kept].min() >= scores["0"][~kept].max()


@pytest.mark.parametrize("norm", [1.0, 2.0])
def test_magnitude_is_that_of_the_weights_that_make_a_unit(norm):
    """Of a stream those of all its layers, of a head all its rows; of a transposed convolution those of its dim 1."""
    torch.manual_seed(0)
    net = resnet(4, 6)
    gated = gates.attach(net, torch.randn(1, 1, 8, 8))
    scores = gates.importance_by_magnitude(gated, norm=norm)
    weights = {name: p.detach().double() for name, p in net.named_parameters() if p.dim() == 4}
    assert scores.keys() == gated.groups.keys()
    for group, score in scores.items():
        made = [weights[name] for (name, dim) in gated.groups[group].units if dim == 0 and name in weights]
        assert made
        wanted = torch.cat([weight.flatten(1) for weight in made], 1).norm(norm, dim=1)
        torch.testing.assert_close(score, wanted)
        assert not score.requires_grad
    back = nn.Sequential(nn.ConvTranspose2d(2, 5, 3), nn.ReLU(), nn.Conv2d(5, 1, 3))
    found = gates.importance_by_magnitude(gates.attach(back, torch.randn(1, 2, 4, 4)), norm=norm)["0"]
    torch.testing.assert_close(found, back[0].weight.detach().double().movedim(1, 0).flatten(1).norm(norm, dim=1))
    with pytest.raises(ValueError, match="'norm' must be"):
        gates.importance_by_magnitude(gated, norm=0)


def test_chunks_take_fewer_calls():
    gated = gated_chain(3, 8, 6, 2)
    calls = []

    def metric(model):
        calls.append(sum(int((~mask).sum()) for mask in model.opened().values()))
        return float(calls[-1])  # worse by one for every closed unit

    scores = gates.importance_by_masking(gated, metric, chunks=3, generator=torch.Generator().manual_seed(0))
    assert sorted(calls) == [0, 2, 2, 2, 2, 3, 3]
    for score in scores.values():
        torch.testing.assert_close(score, torch.ones_like(score))
    scores = gates.importance_by_masking(gated, metric, groups=["0"])
    assert not bool(scores["2"].any())
    with pytest.raises(ValueError, match="is no group"):
        gates.importance_by_masking(gated, metric, groups=["1"])
    with pytest.raises(ValueError, match="finite number, got nan"):
        gates.importance_by_masking(gated, lambda model: float("nan"))
    assert gated.frozen is None


def test_area_loss():
    values = torch.tensor(
        [[0.9, 0.2, 0.6, 0.1, 1.0], [0.0, 1.0, 0.0, 0.0, 1.0]], dtype=torch.float64, requires_grad=True
    )
    expected = (0.1**2 + 0.2**2 + 0.6**2 + 0.1**2) / 10  # the two largest of five are to be 1
    assert float(gates.area_loss(values, 0.4).detach()) == pytest.approx(expected)
    assert float(gates.area_loss(values.T, 0.4, dim=0).detach()) == pytest.approx(expected)
    assert torch.autograd.gradcheck(lambda v: gates.area_loss(v, 0.4), values[:1].detach().requires_grad_())
    with pytest.raises(ValueError, match="'area'"):
        gates.area_loss(values, 1.5)
    with pytest.raises(TypeError, match="'values'"):
        gates.area_loss(torch.ones(3, dtype=torch.int64), 0.5)
    with pytest.raises(ValueError, match="must not be empty"):
        gates.area_loss(torch.ones(0), 0.5)


def test_area_loss_opens_the_share_that_is_asked_for():
    gate = gates.HardConcreteGate(40, initial=torch.randn(40)).eval()
    optimizer = torch.optim.Adam(gate.parameters(), lr=0.1)
    for _ in range(200):
        optimizer.zero_grad()
        gates.area_loss(gate(), 0.25).backward()
        optimizer.step()
    values = gate().detach()
    assert values.sort().values.round(decimals=2).tolist() == [0.0] * 30 + [1.0] * 10


def test_report():
    gated = gates.attach(resnet(4, 8, classes=3, blocks=1), torch.randn(2, 1, 8, 8))
    found = gates.project(gated, 0.4)
    small = gates.prune(gated)
    table = gates.report(gated, small, repeats=2)
    assert table.flops[1] / table.flops[0] == pytest.approx(found.share)
    assert table.parameters == tuple(sum(p.numel() for p in m.parameters()) for m in (gated.model, small))
    assert table.groups == {name: (int(mask.sum()), len(mask)) for name, mask in found.opened.items()}
    assert table.speedup > 0
    text = str(table)
    for name in gated.groups:
        assert name in text
    assert "FLOPs" in text
    assert "ms" in text
    assert gates.report(gated, measure=False).speedup is None
    with pytest.raises(TypeError, match="'pruned'"):
        gates.report(gated, "model")


def test_advice():
    table = gates.Report({"a": (12, 32), "b": (16, 32)}, (100.0, 40.0), (10, 4), (1.0, 0.99), "cpu", 1)
    assert "round_to=8" in table.advice
    assert table.advice in str(table)
    assert "latency" in table._replace(groups={"b": (16, 32)}).advice
    assert table._replace(seconds=(1.0, 0.5)).advice == ""


def test_plot(monkeypatch):
    gated = gated_chain(3, 8, 2)
    table = gates.report(gated, nn.Identity(), measure=False)
    pytest.importorskip("matplotlib")
    axes = table.plot()
    assert [label.get_text() for label in axes.get_yticklabels()] == ["0"]
    assert table.plot(axes=axes) is axes
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"pip install 'difflayers\[examples\]'"):
        table.plot()
