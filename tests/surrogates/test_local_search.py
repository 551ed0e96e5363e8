"""LocalSearch as SurCo's polish: order, budgets, local optima, bad input."""

from __future__ import annotations

import pytest
import torch

from difflayers.oracles import TopK
from difflayers.surrogates import LocalSearch, SurCo
from tests.surrogates.problems import quadratic, subsets


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def exchanges(x):
    """All solutions that choose one item in another's place."""
    pairs = torch.cartesian_prod(x.nonzero().flatten(), (x == 0).nonzero().flatten())
    near, rows = x.repeat(len(pairs), 1), torch.arange(len(pairs))
    near[rows, pairs[:, 0]], near[rows, pairs[:, 1]] = 0.0, 1.0
    return near


class Evaluate:
    """What SurCo hands to a local search, written down plainly."""

    def __init__(self, f, slope):
        self.f, self.slope, self.generator, self.optima = f, slope, seeded(), {}
        self.seen, self.calls, self.best, self.lowest = [], [], torch.empty(0), float("inf")

    def __call__(self, candidates):
        values = self.f(candidates)
        self.calls.append(len(candidates))
        for x, value in zip(candidates, values.tolist(), strict=True):
            self.seen.append(x)
            if value < self.lowest:
                self.best, self.lowest = x.clone(), value
        return values


def test_the_most_promising_neighbour_comes_first():
    weights = torch.randn(8, generator=seeded(), dtype=torch.float64)
    evaluate = Evaluate(lambda x: x @ weights, lambda x: weights)
    start = torch.tensor([1.0, 1, 1, 0, 0, 0, 0, 0], dtype=torch.float64)
    evaluate(start[None])
    LocalSearch(exchanges, chunk=1, rounds=0)(start, evaluate)
    near = exchanges(start)
    first = evaluate.seen[2]  # the start comes twice: before the search, and to know its value
    assert torch.equal(first, near[(near @ weights).argmin()])
    assert torch.equal(evaluate.best, TopK(8, 3).solve(weights))  # each move is the steepest: no detour


@pytest.mark.parametrize("breadth", [None, 2])
@pytest.mark.parametrize("seed", range(3))
def test_it_ends_in_a_local_optimum_of_all_neighbours(breadth, seed):
    f = quadratic(10, seed, convex=True)
    evaluate = Evaluate(f, torch.zeros_like)  # no slope: random order
    start = torch.eye(2, 10, dtype=torch.float64).sum(0)
    evaluate(start[None])
    for _ in range(10):  # where the full look found something better, the next call goes on from there
        LocalSearch(exchanges, breadth=breadth, rounds=0)(evaluate.best, evaluate)
    assert float(f(exchanges(evaluate.best)).min()) >= evaluate.lowest - 1e-12
    known = len(evaluate.seen)
    LocalSearch(exchanges, breadth=breadth, rounds=0)(evaluate.best, evaluate)
    assert len(evaluate.seen) <= known + 3  # its own value each time: nobody descends from a known optimum again


@pytest.mark.parametrize("gradient", ["autograd", "score", "fitted"])
def test_surco_with_it_finds_the_best_and_keeps_the_budget(gradient):
    f, every, rows = quadratic(10, 4, convex=True), subsets(10, 4), [0]

    def counted(x):
        rows[0] += len(x)
        assert bool((x.sum(-1) == 4).all())
        return f(x)

    search = SurCo(TopK(10, 4), objective_gradient=gradient, polish=LocalSearch(exchanges))
    result = search.solve(counted, evaluations=120, generator=seeded(1), dtype=torch.float64)
    assert rows[0] == result.history[-1].evaluations <= 120
    torch.testing.assert_close(result.objective, f(every).min(), rtol=1e-12, atol=1e-12)
    rows[0] = 0
    search.solve(counted, evaluations=33, generator=seeded(1), dtype=torch.float64)
    assert rows[0] == 33


def test_nan_among_the_neighbours():
    weights = torch.arange(8, dtype=torch.float64)
    # undefined wherever item 7 is chosen, which is so at the start too; two more moves are needed from its neighbours
    evaluate = Evaluate(lambda x: torch.where(x[:, 7] > 0, torch.nan, x @ weights), torch.zeros_like)
    evaluate.best = start = torch.tensor([0.0, 0, 0, 0, 0, 1, 1, 1], dtype=torch.float64)
    LocalSearch(exchanges, rounds=0)(start, evaluate)
    assert evaluate.lowest == 0 + 1 + 2


def test_the_generator_decides():
    f = quadratic(14, 0, convex=True)

    def run(seed):
        search = SurCo(TopK(14, 6), polish=LocalSearch(exchanges, breadth=4))
        return search.solve(f, evaluations=90, generator=seeded(seed), dtype=torch.float64)

    first, again = run(2), run(2)
    assert torch.equal(first.solution, again.solution)
    assert [record.objective for record in first.history] == [record.objective for record in again.history]


def test_a_solution_without_neighbours():
    search = SurCo(TopK(4, 2), polish=LocalSearch(lambda x: x.new_zeros(0, 4)))
    result = search.solve(lambda x: x @ torch.arange(4.0), iterations=20, generator=seeded())
    assert float(result.objective) == 1.0


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"neighbors": 3}, TypeError, "LocalSearch: argument 'neighbors' must be callable, got int"),
        ({"breadth": 0}, ValueError, "argument 'breadth' must be at least 1"),
        ({"chunk": 0}, ValueError, "argument 'chunk'"),
        ({"kicks": 0.5}, TypeError, "argument 'kicks' must be an integer"),
        ({"rounds": -1}, ValueError, "argument 'rounds'"),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        LocalSearch(**{"neighbors": exchanges, **arguments})


@pytest.mark.parametrize("neighbors", [lambda x: x, lambda x: None, lambda x: x.new_zeros(2, 3)])
def test_neighbours_of_the_wrong_shape(neighbors):
    with pytest.raises(ValueError, match=r"'neighbors' must return solutions of shape \[B, 6\]"):
        SurCo(TopK(6, 2), polish=LocalSearch(neighbors)).solve(
            lambda x: x @ torch.arange(6.0), iterations=20, generator=seeded()
        )
