"""What only looks like an oracle, and inherits from nothing here, works with rules, losses and SurCo."""

import pytest
import torch

import difflayers as dl
from difflayers.oracles import OracleResult, TopK


class Cheapest:
    """One of four, in plain PyTorch."""

    cost_shape, cost_domain = (4,), "any"

    def solve(self, costs):
        return self.solve_batch(costs).solutions

    def solve_batch(self, costs):
        costs = costs.detach()
        solutions = torch.zeros_like(costs).scatter_(-1, costs.argmin(-1, keepdim=True), 1.0)
        return OracleResult(solutions, costs.amin(-1), costs.argmin(-1) * 0, costs.amin(-1))


@pytest.mark.parametrize("rule", [dl.Blackbox(1.0), dl.rules.Identity(), dl.rules.Perturbed(), dl.rules.LPGD(1.0)])
def test_rules(rule):
    assert isinstance(rule, dl.protocols.GradientRule)
    gradients = []
    for oracle in (Cheapest(), TopK(4, 1)):
        costs = torch.tensor([[3.0, 1.0, 2.0, 5.0], [0.1, 0.2, 0.0, 1.0]], requires_grad=True)
        solutions = dl.SolverLayer(oracle, rule=rule)(costs, generator=torch.Generator().manual_seed(0))
        (solutions * torch.arange(4.0)).sum().backward()
        gradients.append(costs.grad)
    torch.testing.assert_close(*gradients)
    assert gradients[0].any()


def test_losses_and_surco():
    oracle = Cheapest()
    assert isinstance(oracle, dl.protocols.LinearOracle)
    costs = torch.tensor([1.0, 2.0, 0.5, 4.0])
    assert dl.losses.SPOPlus(oracle)(costs, costs.flip(0)) == dl.losses.SPOPlus(TopK(4, 1))(costs, costs.flip(0))
    found = dl.SurCo(oracle).solve(lambda x: (x @ torch.arange(4.0) - 1).square(), iterations=10)
    assert found.solution.tolist() == [0.0, 1.0, 0.0, 0.0]
