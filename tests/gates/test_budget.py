"""The cost and the loss that is made of it."""

import pytest
import torch
from torch import nn

from difflayers import gates

from .nets import gated_chain, gated_resnet


def mixed(gated, dtype=torch.float64):
    generator = torch.Generator().manual_seed(3)
    return {name: torch.rand(group.size, dtype=dtype, generator=generator) for name, group in gated.groups.items()}


@pytest.mark.parametrize("kind", ["flops", "parameters"])
def test_the_cost_is_what_attach_wrote_down(kind):
    gated = gated_resnet()
    cost = gates.Cost(gated, kind)
    values = {name: value.requires_grad_() for name, value in mixed(gated).items()}
    expected = gated.cost(kind, values) / gated.full_cost(kind)
    share = cost(values)
    torch.testing.assert_close(share, expected, rtol=1e-12, atol=0)
    found = torch.autograd.grad(share, list(values.values()))
    for a, b in zip(found, torch.autograd.grad(expected, list(values.values())), strict=True):
        torch.testing.assert_close(a, b)


def test_parameters_are_those_of_the_pruned_model():
    gated = gated_chain(5, 8, 7, 3)
    found = gates.project(gated, 0.5, kind="parameters")
    small = gates.prune(gated)
    dense = sum(p.numel() for p in gated.model.parameters())
    assert sum(p.numel() for p in small.parameters()) == round(found.share * dense)


def test_gradient_by_finite_differences():
    gated = gated_chain(4, 6, 5, 3)
    cost = gates.Cost(gated)
    values = [value.requires_grad_() for value in mixed(gated).values()]

    def run(*values):
        return cost(dict(zip(gated.groups, values, strict=True)))

    assert torch.autograd.gradcheck(run, values)
    assert torch.autograd.gradgradcheck(run, values)


@pytest.mark.parametrize("penalty", ["squared", "linear"])
def test_the_loss(penalty):
    gated = gated_chain(5, 8, 10, 3)
    a, b = 6, 7
    gated.gates["0"].weight.data[a:] = -1
    gated.gates["2"].weight.data[b:] = -1
    budget = gates.BudgetLoss(gated, 0.4, weight=3.0, penalty=penalty, normalise="none")
    loss = budget()
    full = 5 * 8 + 8 * 10 + 10 * 3
    excess = (5 * a + a * b + b * 3) / full - 0.4
    assert float(loss.detach()) == pytest.approx(3 * (excess if penalty == "linear" else excess**2), rel=1e-5)
    loss.backward()
    outer = 3 * (1 if penalty == "linear" else 2 * excess)
    torch.testing.assert_close(gated.gates["0"].weight.grad, torch.full((8,), outer * (5 + b) / full))
    torch.testing.assert_close(gated.gates["2"].weight.grad, torch.full((10,), outer * (a + 3) / full))
    assert budget.share == pytest.approx(excess + 0.4)
    assert not list(budget.parameters())
    gates.project(gated, 0.4)
    assert float(budget().detach()) == 0.0


def test_every_group_is_pressed_equally():
    gated = gated_chain(40, 8, 10, 3)
    plain = gates.BudgetLoss(gated, 0.5, normalise="none", penalty="linear", weight=1.0)
    equal = gates.BudgetLoss(gated, 0.5, penalty="linear", weight=1.0)
    of_plain = torch.autograd.grad(plain(), [gate.weight for gate in gated.gates.values()])
    of_equal = torch.autograd.grad(equal(), [gate.weight for gate in gated.gates.values()])
    assert float(plain().detach()) == float(equal().detach())
    mean = torch.cat(of_plain).mean()
    assert float(of_plain[0].mean()) > 2 * float(of_plain[1].mean())
    for gradient in of_equal:
        torch.testing.assert_close(gradient, mean.expand_as(gradient))


def test_gradual():
    budget = gates.BudgetLoss(gated_chain(5, 8, 3), 0.2, schedule="gradual", steps=4)
    targets = []
    for _ in range(6):
        targets.append(budget.current_target)
        budget.step()
    assert targets == pytest.approx([1.0, 0.8, 0.6, 0.4, 0.2, 0.2])


def test_growing_and_its_state():
    gated = gated_chain(5, 10, 3)
    budget = gates.BudgetLoss(gated, 0.5, schedule="growing", steps=10, growth=2.0, weight=1.0)
    for _ in range(3):  # nothing falls
        budget()
        budget.step()
    assert budget.weight == 8.0
    gated.gates["0"].weight.data[:1] = -1  # faster than (1 - 0.5) / 10
    budget()
    budget.step()
    assert budget.weight == 4.0
    other = gates.BudgetLoss(gated, 0.5, schedule="growing", steps=10, growth=2.0, weight=1.0)
    other.load_state_dict(budget.state_dict())
    for each in (budget, other):
        each()
        each.step()
    assert other.weight == budget.weight == 8.0
    assert other.steps_done == 5


def test_progressive():
    """The weight rises only while the share is above a target that falls."""
    gated = gated_chain(5, 10, 3)
    budget = gates.BudgetLoss(gated, 0.6, schedule="progressive", steps=4, growth=2.0, weight=1.0)
    seen = []
    for closed in (0, 0, 2, 3, 3, 4, 4, 4):
        gated.gates["0"].weight.data = torch.where(torch.arange(10) < closed, -1.0, 1.0)
        budget()
        seen.append((round(budget.current_target, 9), round(budget.share, 9), budget.weight))
        budget.step()
    targets, shares, weights = zip(*seen, strict=True)
    assert targets == (1.0, 0.9, 0.8, 0.7, 0.6, 0.6, 0.6, 0.6)
    assert shares == (1.0, 1.0, 0.8, 0.7, 0.7, 0.6, 0.6, 0.6)
    assert weights == (1.0, 1.0, 2.0, 1.0, 1.0, 2.0, 1.0, 1.0)


def test_latency_of_a_given_table():
    gated = gated_chain(4, 8, 2)
    table = {"0": 3.0, "2": (1.0, 2.0)}
    half = {"0": torch.tensor([1.0] * 4 + [0.0] * 4)}
    assert float(gates.Cost(gated, "latency", table)(half)) == pytest.approx((1.5 + 1 + 1) / 6)
    assert gates.Cost(gated, "latency", table).full == 6.0
    found = gates.project(gated, 0.6, kind="latency", table=table)
    assert found.share == pytest.approx((1 + 5 * found.opened["0"].sum().item() / 8) / 6)
    assert found.share <= 0.6
    with pytest.raises(ValueError, match="'table' must have the seconds"):
        gates.Cost(gated, "latency", {"0": 1.0})
    with pytest.raises(ValueError, match="table"):
        gates.Cost(gated, "latency", {"0": 1.0, "2": -1.0})


def test_latency_that_is_measured():
    net = nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 4)
    )
    gated = gates.attach(net, torch.randn(1, 1, 8, 8))
    table = gates.measure_latency(gated, repeats=3)
    assert set(table) == {"0", "2", "5"}
    assert all(fixed >= 0 and variable >= 0 and fixed + variable > 0 for fixed, variable in table.values())
    cost = gates.Cost(gated, "latency", table)
    assert cost.full == pytest.approx(sum(map(sum, table.values())))
    assert float(cost().detach()) == pytest.approx(1.0)


def test_bad_settings():
    gated = gated_chain(3, 6, 2)
    for settings in ({"target": 0.0}, {"target": 1.1}, {"weight": 0.0}, {"growth": 1.0}, {"steps": 0}):
        with pytest.raises(ValueError, match=next(iter(settings))):
            gates.BudgetLoss(gated, **{"target": 0.5, **settings})
    for name in ("penalty", "normalise", "schedule", "kind"):
        with pytest.raises(ValueError, match=name):
            gates.BudgetLoss(gated, 0.5, **{name: "other"})
    with pytest.raises(TypeError, match="'gated'"):
        gates.BudgetLoss(gated.model, 0.5)
