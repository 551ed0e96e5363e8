"""Training to a budget: on budget, no layer lost, and still able to do its task."""

import sys

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from difflayers import errors, gates

from .nets import gated_chain, resnet


def pictures(n, seed):
    """Four classes: bars at four angles, with noise."""
    generator = torch.Generator().manual_seed(seed)
    label = torch.randint(4, (n,), generator=generator)
    at = torch.randint(1, 7, (n,), generator=generator)
    x = 0.3 * torch.randn(n, 1, 8, 8, generator=generator)
    row, column = torch.meshgrid(torch.arange(8), torch.arange(8), indexing="ij")
    lines = torch.stack([row, column, (row + column) // 2, (row - column + 8) // 2])
    return x + (lines[label] == at[:, None, None]).float().unsqueeze(1), label


def cross_entropy(model, batch):
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def flops(model, x):
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(x)
    return counter.get_total_flops()


def accuracy(model, data):
    model.eval()
    with torch.no_grad():
        return float((model(data[0]).argmax(1) == data[1]).float().mean())


@pytest.mark.parametrize("target", [0.25, 0.1])
def test_strong_targets_keep_every_layer_and_the_task(target):
    torch.manual_seed(1)
    x, y = pictures(512, 0)
    batches = [(x[i : i + 64], y[i : i + 64]) for i in range(0, 512, 64)]
    held_out = pictures(512, 1)
    net = resnet(16, 32, classes=4, blocks=1)
    gated = gates.attach(net, x[:1])
    result = gates.fit(
        gated, cross_entropy, batches, target=target, epochs=20, learning_rate=1e-2, floors=2, progress=False
    )
    assert result.status == "done"
    assert len(result.history) == 160
    assert result.projection.met
    shares = [record.share for record in result.history if not record.frozen]
    assert shares[0] == 1.0
    assert shares[-1] < target + 0.15
    assert sum(record.frozen for record in result.history) == 64
    sizes = {name: int(mask.sum()) for name, mask in gated.opened().items()}
    assert min(sizes.values()) >= 2
    small = gates.prune(gated)
    assert target * 0.995 <= flops(small, x[:1]) / flops(net, x[:1]) <= target
    assert accuracy(small, held_out) > 0.9


def test_ctrl_c_returns_what_there_is_on_budget():
    gated = gated_chain(4, 16, 12, 2)
    x = torch.randn(32, 4)

    def stop(record):
        if record.step == 3:
            raise KeyboardInterrupt

    result = gates.fit(
        gated, lambda m, b: m(b).square().mean(), [x], target=0.5, steps=100, callback=stop, progress=False
    )
    assert result.status == "interrupted"
    assert [record.step for record in result.history] == [0, 1, 2, 3]
    assert result.projection.share <= 0.5
    small = gates.prune(gated)
    assert small[0].out_features + small[2].out_features < 28


@pytest.mark.parametrize("make", [gates.HardConcreteGate, gates.BernoulliGate])
def test_stochastic_gates(make):
    net = nn.Sequential(nn.Linear(4, 24), nn.ReLU(), nn.Linear(24, 1))
    x = torch.randn(64, 4)
    gated = gates.attach(net, x[:1], gate=make)
    result = gates.fit(
        gated, lambda m, b: (m(b) - b[:, :1]).square().mean(), [x], target=0.5, steps=150, learning_rate=1e-2,
        gate_learning_rate=5e-2, progress=False,
    )  # fmt: skip
    assert result.projection.share == 0.5
    gated.train()
    assert torch.equal(gated(x), gated(x))  # frozen: no noise any more
    assert result.history[-1].loss < 0.5 * result.history[0].loss


def test_an_optimizer_of_ones_own_with_the_gates_in_it():
    gated = gated_chain(4, 16, 2)
    optimizer = torch.optim.SGD(gated.parameters(), lr=0.1)
    before = gated.model[0].weight.detach().clone()
    gates.fit(gated, lambda m, b: m(b).square().mean(), [torch.randn(8, 4)], target=0.5, steps=4, freeze_at=0.5,
              optimizer=optimizer, progress=False)  # fmt: skip
    assert not torch.equal(before, gated.model[0].weight)
    assert not optimizer.state  # plain SGD: nobody else stepped the gates with a state
    closed = ~gated.opened()["0"]
    gated.zero_grad()
    gated(torch.randn(3, 4)).sum().backward()
    assert not bool(gated.model[2].weight.grad[:, closed].any())


def test_the_floor_holds_in_training():
    gated = gated_chain(4, 10, 2)
    seen = []
    gates.fit(
        gated, lambda m, b: m(b).mean() * 0, [torch.randn(4, 4)], target=0.5, steps=60, freeze_at=1.0, floors=3,
        gate_learning_rate=0.5, budget_weight=100.0, callback=lambda r: seen.append(int(gated.opened()["0"].sum())),
        progress=False,
    )  # fmt: skip
    assert min(seen) >= 3
    assert int(gated.opened()["0"].sum()) == 5


def test_batch_norm_is_estimated_anew():
    net = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.ReLU(), nn.Linear(8, 1))
    gated = gates.attach(net, torch.randn(2, 3))
    x = [torch.randn(50, 3, dtype=torch.float32) for _ in range(4)]
    gated.train()
    gates.recalibrate_batch_norm(gated, x, lambda model, batch: model(batch))
    inner = [net[0](batch) for batch in x]
    torch.testing.assert_close(net[1].running_mean, torch.stack([i.mean(0) for i in inner]).mean(0))
    torch.testing.assert_close(net[1].running_var, torch.stack([i.var(0) for i in inner]).mean(0))
    assert net[1].momentum == 0.1
    assert net[1].training
    assert net[2].training


def test_refusals_leave_the_model_as_it_is(monkeypatch):
    gated = gated_chain(4, 8, 2)
    state = {name: value.clone() for name, value in gated.state_dict().items()}
    loss, x = (lambda m, b: m(b).mean()), [torch.randn(2, 4)]
    with pytest.raises(errors.InfeasibleError):
        gates.fit(gated, loss, x, target=0.1, steps=3, floors=4, progress=False)
    with pytest.raises(ValueError, match="exactly one"):
        gates.fit(gated, loss, x, target=0.5, progress=False)
    with pytest.raises(ValueError, match="exactly one"):
        gates.fit(gated, loss, x, target=0.5, steps=1, epochs=1, progress=False)
    with pytest.raises(TypeError, match="got an iterator"):
        gates.fit(gated, loss, iter(x), target=0.5, steps=3, progress=False)
    with pytest.raises(ValueError, match="must have batches"):
        gates.fit(gated, loss, [], target=0.5, steps=3, progress=False)
    with pytest.raises(ValueError, match="finite scalar tensor, got nan at step 0"):
        gates.fit(gated, lambda m, b: m(b).mean() * float("nan"), x, target=0.5, steps=3, progress=False)
    with pytest.raises(ValueError, match="finite scalar tensor"):
        gates.fit(gated, lambda m, b: m(b), x, target=0.5, steps=3, progress=False)
    monkeypatch.setitem(sys.modules, "tqdm", None)
    with pytest.raises(ImportError, match=r"pip install 'difflayers\[examples\]'"):
        gates.fit(gated, loss, x, target=0.5, steps=3)
    assert all(torch.equal(value, state[name]) for name, value in gated.state_dict().items())
    assert bool(gated.opened()["0"].all())


def test_the_bar(capsys):
    pytest.importorskip("tqdm")
    gated = gated_chain(4, 8, 2)
    gates.fit(gated, lambda m, b: m(b).square().mean(), [torch.randn(2, 4)], target=0.5, steps=3)
    assert "gates:" in capsys.readouterr().err


def test_a_weight_that_need_not_be_tuned():
    """Under a loss a thousand times the budget's, the gradual schedule stays dense, the progressive one does not."""
    torch.manual_seed(0)
    x = torch.randn(64, 4)
    shares = {}
    for schedule in ("gradual", "progressive"):
        gated = gated_chain(4, 16, 1)
        for gate in gated.gates.values():
            gate.weight.data.fill_(0.1)
        with torch.no_grad():
            wanted = gated.model(x)
        gated.requires_grad_(False)
        gated.gates.requires_grad_(True)
        result = gates.fit(
            gated, lambda m, b, y=wanted: 1e3 * (m(b) - y).square().mean(), [x], target=0.5, steps=120, freeze_at=1.0,
            schedule=schedule, budget_weight=1e-3, progress=False,
        )  # fmt: skip
        shares[schedule] = result.history[-1].share
        assert result.projection.share == 0.5
    assert shares["gradual"] > 0.8
    assert shares["progressive"] < 0.7
    with pytest.raises(ValueError, match="schedule"):
        gates.fit(gated, lambda m, b: m(b).mean(), [x], target=0.5, steps=1, schedule="none", progress=False)


def test_a_frozen_model():
    """Only the gates learn; once they are frozen, nothing does, and nothing fails."""
    gated = gated_chain(4, 8, 2)
    gated.model.requires_grad_(False)
    x = torch.randn(16, 4)
    before = {name: value.clone() for name, value in gated.model.state_dict().items()}
    result = gates.fit(gated, lambda m, b: m(b).square().mean(), [x], target=0.5, steps=10, progress=False)
    assert len(result.history) == 10
    assert all(torch.equal(value, before[name]) for name, value in gated.model.state_dict().items())
