"""PDLP from solutions of rows before: the same answers within its tolerance, from starts that are near."""

import copy
import itertools
import pickle

import numpy as np
import pytest
import torch

from difflayers.oracles import LinearProgram, Status, _pdlp

pytest.importorskip("ortools")


class Spied:
    """PDLP's module, with the starts that it was given."""

    def __init__(self, module):
        self.module, self.starts = module, []

    def __getattr__(self, name):
        return getattr(self.module, name)

    def primal_dual_hybrid_gradient(self, program, parameters, *start):
        self.starts.append(start)
        return self.module.primal_dual_hybrid_gradient(program, parameters, *start)


def packing(seed=0, n=30):
    random = np.random.default_rng(seed)
    matrix = random.random((n // 2, n)) * (random.random((n // 2, n)) < 0.4)
    return {"A_ub": matrix, "b_ub": np.ones(n // 2), "bounds": (0, 1)}, -random.random(n)


def test_as_good_as_the_simplex_method_while_costs_walk():
    random, (arguments, cost) = np.random.default_rng(1), packing()
    oracle, exact = LinearProgram(**arguments, method="pdlp", warm_starts=16), LinearProgram(**arguments)
    costs = cost + 0.1 * random.normal(size=(4, len(cost)))
    for _ in range(6):
        costs = costs + 0.01 * random.normal(size=costs.shape)
        result, expected = oracle.solve_batch(torch.from_numpy(costs)), exact.solve_batch(torch.from_numpy(costs))
        assert (result.status == Status.FEASIBLE).all()
        torch.testing.assert_close(result.objective, expected.objective, rtol=1e-4, atol=1e-4)
    assert len(oracle._model("pdlp").costs) == 16  # of 24


def test_starts_are_the_nearest_and_near():
    arguments, cost = packing()
    oracle = LinearProgram(**arguments, method="pdlp", warm_starts=8)
    model = oracle._model("pdlp")
    model.module = spied = Spied(model.module)
    other = torch.from_numpy(cost)[torch.randperm(len(cost), generator=torch.Generator().manual_seed(0))]
    costs = torch.from_numpy(cost)
    for row in (costs, other, 1.01 * costs, 1.001 * other, 1.0001 * costs):
        oracle.solve(row)
    given = [start[0] if start else None for start in spied.starts]
    assert given[:2] == [None, None]
    ends = list(model.ends)
    for start, end in ((given[2], ends[0]), (given[3], ends[1]), (given[4], ends[0])):
        assert start is not None
        np.testing.assert_array_equal(start.primal_solution, end.primal_solution)


def test_slices_of_time_go_on_where_they_were(monkeypatch):
    arguments, cost = packing(n=120)
    expected = LinearProgram(**arguments).solve_batch(torch.from_numpy(cost)).objective
    monkeypatch.setattr(_pdlp, "SLICE", 0.002)
    oracle = LinearProgram(**arguments, method="pdlp", warm_starts=1)
    model = oracle._model("pdlp")
    model.module = spied = Spied(model.module)
    result = oracle.solve_batch(torch.from_numpy(cost))
    torch.testing.assert_close(result.objective, expected, rtol=1e-4, atol=1e-4)
    assert len(spied.starts) > 1
    assert all(len(start) == 1 for start in spied.starts[1:])
    late = LinearProgram(**arguments, method="pdlp", warm_starts=1, time_limit=1e-9, on_failure="nan")
    assert late.solve_batch(torch.from_numpy(cost)).status == Status.TIMEOUT


def test_rows_without_a_solution_and_sides_of_their_own():
    oracle = LinearProgram(n=2, method="pdlp", warm_starts=4, on_failure="nan")
    costs = torch.tensor([[1.0, 1.0], [-1.0, 0.0], [2.0, 3.0]])
    for _ in range(2):
        assert oracle.solve_batch(costs).status.tolist() == [1, 3, 1]
    own = LinearProgram([[1.0, 1.0]], [1.0], bounds=(0, 5), method="pdlp", warm_starts=4, on_failure="nan")
    own = own.with_parameters(b_ub=torch.tensor([[4.0], [-1.0], [8.0]]))
    for _ in range(2):
        result = own.solve_batch(-torch.tensor([[2.0, 1.0]], dtype=torch.float64).expand(3, 2))
        assert result.status.tolist() == [Status.FEASIBLE, Status.INFEASIBLE, Status.FEASIBLE]
        expected = torch.tensor([[4.0, 0.0], [5.0, 3.0]], dtype=torch.float64)
        torch.testing.assert_close(result.solutions[[0, 2]], expected, rtol=1e-4, atol=1e-4)


def test_threads_copies_and_pickles():
    arguments, cost = packing()
    oracle = LinearProgram(**arguments, method="pdlp", warm_starts=4, workers="threads:2")
    costs = torch.from_numpy(cost) * (1 + 0.01 * torch.rand(8, 1, dtype=torch.float64))
    expected = LinearProgram(**arguments).solve_batch(costs).objective
    for each in (oracle, copy.deepcopy(oracle), pickle.loads(pickle.dumps(oracle))):
        torch.testing.assert_close(each.solve_batch(costs).objective, expected, rtol=1e-4, atol=1e-4)
    assert not oracle.releases_gil
    assert LinearProgram(**arguments, method="pdlp").releases_gil


def test_bad_arguments():
    for method, count in itertools.product(("glop", "highs"), (1, 5)):
        with pytest.raises(ValueError, match="'warm_starts' must be 0 with method="):
            LinearProgram(n=2, method=method, warm_starts=count)
    with pytest.raises(ValueError, match="'warm_starts'"):
        LinearProgram(n=2, method="pdlp", warm_starts=-1)
