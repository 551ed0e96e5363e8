"""The pool of solutions against a plain set and argmin."""

import pytest
import torch

from difflayers.oracles import Assignment, SolutionPool, TopK

EYE = torch.eye(4)


def test_distinct_solutions_are_remembered_once():
    pool = SolutionPool(TopK(4, 1), 10)
    assert pool.solutions.shape == (0, 4)
    assert pool.add(EYE[[0, 1, 0]]) == 2
    assert pool.add(EYE[:2].reshape(1, 2, 4) + 1e-12) == 0  # beyond what solvers agree on
    assert pool.add(-0.0 * EYE[:1] + EYE[0]) == 0
    assert pool.add(torch.full((4,), float("nan"))) == 0
    assert len(pool) == 2
    assert pool.solutions.tolist() == EYE[[1, 0]].tolist()
    assert pool.solutions.dtype == torch.float32
    pool.add(EYE.double())
    assert pool.solutions.dtype == torch.float64
    pool.clear()
    assert len(pool) == 0


def test_the_least_recently_used_is_forgotten():
    pool = SolutionPool(TopK(4, 1), 2)
    pool.add(EYE[:2])
    pool.best(torch.tensor([-1.0, 0.0, 0.0, 0.0]))  # uses 0
    assert pool.add(EYE[2]) == 1  # so 1 goes
    assert sorted(pool.solutions.argmax(1).tolist()) == [0, 2]
    pool.add(EYE[0])
    pool.add(EYE[3])
    assert pool.solutions.tolist() == EYE[[0, 3]].tolist()


def test_best_is_the_argmin_over_the_pool():
    oracle = Assignment(3)
    pool = SolutionPool(oracle, 100)
    pool.add(oracle.solve(torch.rand(20, 3, 3, dtype=torch.float64)))
    costs = torch.rand(5, 2, 3, 3, dtype=torch.float64)
    best = pool.best(costs)
    assert best.shape == costs.shape
    expected = torch.einsum("abij,pij->abp", costs, pool.solutions).min(-1).values
    torch.testing.assert_close((best * costs).sum((-1, -2)), expected)
    assert pool.best(costs.float()).dtype == torch.float32


def test_keys_keep_instances_apart():
    pool = SolutionPool(TopK(4, 1), 2)
    pool.add(EYE, keys=["a", "b", "a", "a"])
    assert pool.of("a").tolist() == EYE[2:].tolist()  # two of three
    assert pool.of("b").tolist() == EYE[1:2].tolist()
    assert len(pool) == 3
    best = pool.best(torch.tensor([[0.0, 1.0, 3.0, 2.0]] * 3), keys=["a", "b", "c"])
    assert best[:2].tolist() == [EYE[3].tolist(), EYE[1].tolist()]
    assert best[2].isnan().all()


def test_bad_input():
    with pytest.raises(TypeError, match="must be an oracle"):
        SolutionPool(len, 3)
    with pytest.raises(ValueError, match="'size' must be at least 1"):
        SolutionPool(TopK(4, 1), 0)
    pool = SolutionPool(TopK(4, 1), 2)
    with pytest.raises(ValueError, match=r"must have shape \[..., \*\(4,\)\], got \(3,\)"):
        pool.add(torch.ones(3))
    with pytest.raises(ValueError, match="must name each of the 4 rows, got 1"):
        pool.add(EYE, keys=["a"])
    with pytest.raises(ValueError, match="must be finite"):
        pool.best(torch.full((4,), float("inf")))
    assert pool.best(torch.ones(2, 4)).isnan().all()
    assert SolutionPool(TopK(0, 0)).add(torch.zeros(3, 0)) == 1
