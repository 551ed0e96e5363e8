"""The exact projection to a budget, against enumeration."""

import itertools
import sys

import pytest
import torch
from torch import nn

from difflayers import errors, gates

from .nets import gated_chain, gated_resnet


def share(gated, opened, kind="flops"):
    """By the sum over terms as attach wrote it down."""
    return float(gated.cost(kind, {name: mask.double() for name, mask in opened.items()})) / gated.full_cost(kind)


def random_scores(gated, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.rand(group.size, generator=generator) ** 3 for name, group in gated.groups.items()}


def selections(gated, scores):
    """Every choice of the groups' sizes, of the best units of each."""
    orders = {name: scores[name].argsort(descending=True) for name in gated.groups}
    for counts in itertools.product(*(range(1, group.size + 1) for group in gated.groups.values())):
        opened = {}
        for (name, group), count in zip(gated.groups.items(), counts, strict=True):
            opened[name] = torch.zeros(group.size, dtype=torch.bool)
            opened[name][orders[name][:count]] = True
        yield opened


@pytest.mark.parametrize("kind", ["flops", "parameters"])
@pytest.mark.parametrize("search", ["enumerated", "searched"])
@pytest.mark.parametrize("target", [0.9, 0.63, 0.5, 0.31])
def test_against_enumeration(kind, search, target, monkeypatch):
    sizes = (20, 18, 16)
    gated = gated_chain(5, *sizes, 3)
    scores = {name: value / value.mean() for name, value in random_scores(gated).items()}

    def size(a, b, c):  # of Linear(5, a), Linear(a, b), Linear(b, c), Linear(c, 3)
        return 5 * a + a * b + b * c + c * 3 + (a + b + c + 3 if kind == "parameters" else 0)

    best = [score.double().sort(descending=True).values.cumsum(0).tolist() for score in scores.values()]
    every = [
        (size(*counts) / size(*sizes), sum(sums[count - 1] for sums, count in zip(best, counts, strict=True)))
        for counts in itertools.product(*(range(1, n + 1) for n in sizes))
    ]
    within = [gain for cost, gain in every if target * 0.995 <= cost <= target * (1 + 1e-12)]
    assert within  # else the test tests nothing
    if search == "searched":
        monkeypatch.setattr(sys.modules["difflayers.gates.project"], "ENUMERATED", 0)
    found = gates.project(gated, target, kind=kind, scores=scores, floors=1)
    assert found.share == pytest.approx(share(gated, found.opened, kind), rel=1e-12)
    assert found.met
    assert target * 0.995 <= found.share <= target
    gain = sum(float(scores[name][mask].sum()) for name, mask in found.opened.items())
    if search == "enumerated":
        assert gain == pytest.approx(max(within), rel=1e-6)
    else:  # a heuristic, but no bad one
        assert gain >= 0.9 * max(within)


@pytest.mark.parametrize("search", ["enumerated", "searched"])
def test_the_nearest_below_where_nothing_is_within_the_tolerance(search, monkeypatch):
    gated = gated_chain(3, 4, 5, 2)
    scores = random_scores(gated)
    missed = 0
    if search == "searched":
        monkeypatch.setattr(sys.modules["difflayers.gates.project"], "ENUMERATED", 0)
    costs = [share(gated, opened) for opened in selections(gated, scores)]
    for target in (0.2, 0.33, 0.47, 0.58, 0.71, 0.97):
        found = gates.project(gated, target, scores=scores, floors=1, apply=False)
        best = max(cost for cost in costs if cost <= target * (1 + 1e-12))
        if best < target * 0.995:
            missed += 1
            assert found.share == pytest.approx(best)
            assert not found.met
            larger = []
            for name, mask in found.opened.items():
                closed = scores[name].masked_fill(mask, -1)
                if not bool(mask.all()):
                    more = mask.clone()
                    more[closed.argmax()] = True
                    larger.append(share(gated, {**found.opened, name: more}) - found.share)
            assert found.granularity == pytest.approx(min(larger))
            assert found.share + found.granularity > target
    assert missed >= 3


@pytest.mark.parametrize("kind", ["flops", "parameters"])
@pytest.mark.parametrize("target", [0.75, 0.5, 0.25, 0.1])
@pytest.mark.parametrize("seed", [None, 0, 1])
def test_budgets_of_a_residual_network_are_met(target, kind, seed):
    gated = gated_resnet()
    scores = None if seed is None else random_scores(gated, seed)
    found = gates.project(gated, target, kind=kind, scores=scores, apply=False)
    assert target * 0.995 <= share(gated, found.opened, kind) <= target * (1 + 1e-12)
    for name, mask in found.opened.items():
        assert int(mask.sum()) >= max(1, -(-gated.groups[name].size // 16))
        if scores is not None:  # the best of each group
            assert int(mask.sum()) == mask.numel() or float(scores[name][mask].min()) >= float(
                scores[name][~mask].max()
            )


@pytest.mark.parametrize("round_to", [4, 8])
def test_rounding_and_floors(round_to):
    gated = gated_resnet()
    scores = random_scores(gated)
    found = gates.project(gated, 0.3, scores=scores, round_to=round_to, floors=0.3, apply=False)
    assert found.met
    for name, mask in found.opened.items():
        assert int(mask.sum()) % round_to == 0
        assert int(mask.sum()) >= 0.3 * gated.groups[name].size
    name = next(iter(gated.groups))
    found = gates.project(gated, 0.3, scores=scores, floors={name: 15}, round_to={name: 2}, apply=False)
    assert int(found.opened[name].sum()) == 16
    dense = gates.project(gated, 1.0, apply=False)
    assert dense.share == 1
    assert dense.granularity == float("inf")
    assert all(bool(mask.all()) for mask in dense.opened.values())


def test_infeasible_says_what_can_be_had():
    gated = gated_resnet()
    before = {name: gate.weight.detach().clone() for name, gate in gated.gates.items()}
    with pytest.raises(errors.InfeasibleError, match=r"must be at least 0\.1") as caught:
        gates.project(gated, 0.05, round_to=8)
    least = float(str(caught.value).split("at least ")[1].split(",")[0])
    found = gates.project(gated, least, round_to=8, apply=False)
    assert found.share <= least
    assert all(torch.equal(gate.weight, before[name]) for name, gate in gated.gates.items())


@pytest.mark.parametrize("gate", [gates.TrainableGate, gates.HardConcreteGate, gates.BernoulliGate])
def test_the_selection_is_written_into_the_gates_and_pruned(gate):
    net = nn.Sequential(nn.Linear(4, 20), nn.ReLU(), nn.Linear(20, 2))
    gated = gates.attach(net, torch.randn(1, 4), gate=gate)
    found = gates.project(gated, 0.4, scores={"0": torch.arange(20.0)})
    assert gated.opened()["0"].tolist() == [False] * 12 + [True] * 8
    small = gates.prune(gated)
    gated.freeze()
    x = torch.randn(3, 4)
    torch.testing.assert_close(gated(x), small(x))
    assert small[0].out_features == 8
    assert found.share == pytest.approx(0.4)
    assert float(gates.Cost(gated)()) == pytest.approx(0.4)


def test_gates_that_are_frozen():
    gated = gated_chain(3, 6, 2)
    mask = torch.tensor([True, False, True, True, False, True])
    gated.freeze({"0": mask})
    assert torch.equal(gated.opened()["0"], mask)
    assert not gated.values()["0"].requires_grad
    with pytest.raises(ValueError, match="'opened'"):
        gated.freeze({"0": mask[:3]})
    with pytest.raises(ValueError, match="no such group"):
        gated.freeze({"1": mask})
    gated.unfreeze()
    assert bool(gated.opened()["0"].all())
    gated.freeze()
    gates.project(gated, 0.5)
    assert int(gated.opened()["0"].sum()) == int(gated.values()["0"].sum()) == 3


def test_bad_arguments():
    gated = gated_chain(3, 6, 2)
    for target in (0.0, 1.5, float("nan")):
        with pytest.raises(ValueError, match="'target'"):
            gates.project(gated, target)
    with pytest.raises(TypeError, match="'gated'"):
        gates.project(nn.Linear(2, 2), 0.5)
    with pytest.raises(ValueError, match="'kind'"):
        gates.project(gated, 0.5, kind="seconds")
    for scores in ({}, {"0": torch.zeros(3)}, {"0": torch.full((6,), float("nan"))}):
        with pytest.raises(ValueError, match="'scores'"):
            gates.project(gated, 0.5, scores=scores)
    with pytest.raises(ValueError, match="'round_to'"):
        gates.project(gated, 0.5, round_to=0)
    with pytest.raises(ValueError, match="is no group"):
        gates.project(gated, 0.5, floors={"layer": 2})
    with pytest.raises(ValueError, match="'floors'"):
        gates.project(gated, 0.5, floors=1.5)
    gated.gates["0"].weight.data[0] = float("nan")
    with pytest.raises(ValueError, match="weights must be finite"):
        gates.project(gated, 0.5)
