"""SurCo-prior: learns without solutions, keeps the best weights, refines without ever getting worse."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from difflayers.oracles import TopK
from difflayers.rules import Identity
from difflayers.surrogates import SurCoPrior
from difflayers.surrogates.tied import TiedCosts
from tests.surrogates.problems import GridRoutes


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def family(count=24, n=8):
    """Instances: targets of a weighted sum that a choice of three is to hit; and the objective."""
    generator = seeded(5)
    weights = torch.rand(n, generator=generator) + 0.5
    values = torch.randn(count, n, generator=generator)

    def objective(x, y):
        return -(x * y.exp()).sum(-1).sqrt() + 0.2 * (x @ weights).square()

    return values, objective


def network(n=8):
    torch.manual_seed(0)
    return nn.Linear(n, n)


@pytest.mark.parametrize("gradient", ["autograd", "score", "callable"])
def test_training_lowers_the_mean_objective(gradient):
    instances, objective = family()

    def slope(x, y):
        x = x.clone().requires_grad_()
        with torch.enable_grad():
            return torch.autograd.grad(objective(x, y).sum(), x)[0]

    prior = SurCoPrior(network(), TopK(8, 3), objective_gradient=slope if gradient == "callable" else gradient)
    untrained = prior.measure(instances, objective)
    history = prior.fit(instances, objective, epochs=12, learning_rate=0.05, generator=seeded())
    trained = prior.measure(instances, objective)
    assert history[0].objective == untrained
    assert history[-1].best == trained == min(record.objective for record in history)
    best = torch.stack([objective(every(8, 3), y).min() for y in instances]).mean().item()
    assert trained < untrained - 0.5 * (untrained - best)  # more than half of what can be gained
    assert len(history) == 13
    again = SurCoPrior(network(), TopK(8, 3), objective_gradient=prior.objective_gradient)
    repeated = again.fit(instances, objective, epochs=3, learning_rate=0.05, generator=seeded())
    assert [record.objective for record in repeated] == [record.objective for record in history[:4]]


def test_penalty_is_equation_5():
    """Two epochs, against the formula: costs of every instance by Adam, the network by the penalty alone."""
    instances, objective = family(count=5)
    prior = SurCoPrior(network(), TopK(8, 3), rule=Identity(), penalty=0.3)
    optimizer = torch.optim.SGD(prior.network.parameters(), 1e-4)  # too slow to change a solution
    weights = []  # as fit ends with the best
    keep = lambda record: weights.append({k: v.clone() for k, v in prior.network.state_dict().items()})  # noqa: E731
    prior.fit(instances, objective, epochs=2, batch_size=5, optimizer=optimizer, callback=keep)
    expected = network()
    scaled = lambda c: c / c.square().mean(1, keepdim=True).sqrt()  # noqa: E731
    own = scaled(expected(instances)).detach().requires_grad_()
    adam = torch.optim.Adam([own], 0.1)
    for _ in range(2):
        distance = (scaled(own) - scaled(expected(instances))).square().sum(1)
        penalty = 0.3 * torch.where(distance > 1e-9, distance.clamp(min=1e-9).sqrt(), 0.0).mean()
        x = TopK(8, 3).solve(own.detach()).requires_grad_()
        (slope,) = torch.autograd.grad(
            torch.stack([objective(a, y) for a, y in zip(x, instances, strict=True)]).sum(), x
        )
        slope = slope / slope.square().mean().sqrt() / 5
        through = Identity()(TopK(8, 3), scaled(own))
        (penalty + (through * slope).sum()).backward()
        adam.step()
        adam.zero_grad()
        with torch.no_grad():
            for parameter in expected.parameters():
                parameter -= 1e-4 * parameter.grad
                parameter.grad = None
    torch.testing.assert_close(weights[-1], dict(expected.state_dict()))
    assert not torch.equal(weights[-1]["weight"], network().weight)


def test_costs_of_their_own_stay_in_the_domain():
    costs = torch.tensor([[1.0, 0.5], [0.05, 1.0]])
    tied = TiedCosts(list(costs), [True, False], 0.0)
    for _ in range(3):
        tied.of([0, 1], costs)
        for cost in tied.costs:
            cost.grad = torch.ones(2)
        tied.step([0, 1])
    torch.testing.assert_close(tied.costs[0], torch.tensor([0.7, 0.2]))  # three steps of Adam
    for _ in range(7):
        tied.costs[0].grad = tied.costs[1].grad = torch.ones(2)
        tied.step([0, 1])
    assert tied.costs[0].min() == 0
    assert tied.costs[1].min() < 0


@pytest.mark.parametrize("gradient", ["autograd", "score"])
def test_costs_of_their_own_train_the_network(gradient):
    instances, objective = family()
    prior = SurCoPrior(network(), TopK(8, 3), objective_gradient=gradient, penalty=0.1)
    history = prior.fit(instances, objective, epochs=25, learning_rate=0.05, generator=seeded())
    best = torch.stack([objective(every(8, 3), y).min() for y in instances]).mean().item()
    assert history[-1].best < history[0].objective - 0.5 * (history[0].objective - best)


def every(n, k):
    from tests.surrogates.problems import subsets

    return subsets(n, k).float()


def test_refinement_never_makes_it_worse():
    instances, objective = family()
    prior = SurCoPrior(network(), TopK(8, 3))
    improved = 0
    for y in instances[:8]:
        plain = prior.solve(y, objective)
        assert plain.status == "prior"
        assert torch.equal(plain.solution, TopK(8, 3).solve(prior.network(y).detach()))
        assert float(plain.objective) == pytest.approx(float(objective(plain.solution, y)), abs=1e-6)
        refined = prior.solve(y, objective, refine_steps=4, starts=2, generator=seeded())
        assert float(refined.objective) <= float(plain.objective) + 1e-7
        assert refined.history[-1].iteration == 4
        improved += float(refined.objective) < float(plain.objective) - 1e-4
    assert improved > 0


@pytest.mark.parametrize("penalty", [None, 0.1])
def test_oracles_by_instance_and_nonnegative_costs(penalty):
    grid = GridRoutes(3)
    instances = [(2, torch.tensor([0.5, 0.1])), (3, torch.tensor([0.2, 0.4]))]
    oracles = {2: GridRoutes(2).oracle(), 3: grid.oracle()}

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(2, 12)

        def forward(self, instance):
            size, y = instance
            return nn.functional.softplus(self.layer(y))[: oracles[size].cost_shape[0]]

    def objective(x, instance):
        return (x @ torch.linspace(1, 2, x.shape[-1])).square() * instance[1].sum()

    torch.manual_seed(1)
    prior = SurCoPrior(Network(), lambda instance: oracles[instance[0]], penalty=penalty)
    history = prior.fit(instances, objective, epochs=15, batch_size=1, learning_rate=0.05, generator=seeded())
    assert history[-1].best <= history[0].objective
    with pytest.raises(ValueError, match="batch_size=1"):
        prior.fit(instances, objective, epochs=1, batch_size=2)
    assert prior.solve(instances[1], objective, refine_steps=2, generator=seeded()).solution.sum() == 4


def test_interrupt_callback_and_validation():
    instances, objective = family()
    calls = [0]

    def interrupted(x, y):
        calls[0] += 1
        if calls[0] > 24 * 5:
            raise KeyboardInterrupt
        return objective(x, y)

    prior = SurCoPrior(network(), TopK(8, 3))
    history = prior.fit(instances, interrupted, epochs=50, learning_rate=0.05, generator=seeded())
    assert 2 <= len(history) <= 4
    assert prior.measure(instances, objective) == history[-1].best
    history = prior.fit(
        instances, objective, validation=instances[:3], callback=lambda r: r.epoch == 2, generator=seeded()
    )
    assert [record.epoch for record in history] == [0, 1, 2]
    assert prior.measure(instances[:3], objective) == history[-1].best
    assert math.isnan(history[0].training)


def test_bad_arguments():
    with pytest.raises(ValueError, match="penalty"):
        SurCoPrior(network(), TopK(8, 3), penalty=-1.0)
    instances, objective = family()
    with pytest.raises(TypeError, match=r"argument 'network' must be a torch\.nn\.Module"):
        SurCoPrior(lambda y: y, TopK(8, 3))
    with pytest.raises(TypeError, match="argument 'oracle' must be an oracle or a function"):
        SurCoPrior(network(), 3)
    with pytest.raises(ValueError, match="argument 'objective_gradient' must be one of 'autograd', 'score'"):
        SurCoPrior(network(), TopK(8, 3), objective_gradient="fitted")
    prior = SurCoPrior(network(), TopK(8, 3))
    with pytest.raises(ValueError, match="must not be empty"):
        prior.fit([], objective)
    with pytest.raises(ValueError, match="argument 'epochs'"):
        prior.fit(instances, objective, epochs=-1)
    with pytest.raises(ValueError, match=r"network must return costs of the oracle's shape \(7,\), got \(8,\)"):
        SurCoPrior(network(), TopK(7, 3)).fit(instances, objective)
    with pytest.raises(ValueError, match="objective is NaN"):
        prior.fit(instances, lambda x, y: x.sum(-1) * torch.nan)
    with pytest.raises(TypeError, match="arguments starts need refine_steps > 0"):
        prior.solve(instances[0], objective, starts=3)
    with pytest.raises(ValueError, match="argument 'refine_steps' must be at least 0"):
        prior.solve(instances[0], objective, refine_steps=-1)
