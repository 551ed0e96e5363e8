"""Linear and integer programs against SciPy and enumeration."""

import itertools
import os
import signal
import threading
import time

import numpy as np
import pytest
import torch

from difflayers.errors import InfeasibleError
from difflayers.oracles import IntegerProgram, LinearProgram, MaxCut, Status
from difflayers.oracles._ortools import interruptible

from .enumeration import SCALES, assert_optimal, integer_points

optimize = pytest.importorskip("scipy.optimize")
BOUNDS = [(0, None), (0, 4), (None, None), (-2, 3)]
STATUS = {0: Status.OPTIMAL, 2: Status.INFEASIBLE, 3: Status.UNBOUNDED}


def problem(seed):
    random = np.random.default_rng(seed)
    n, rows, equal = random.integers(1, 6), random.integers(0, 4), random.integers(0, 2)
    return {
        "A_ub": random.integers(-4, 5, (rows, n)),
        "b_ub": random.integers(-5, 15, rows),
        "A_eq": random.integers(-3, 4, (equal, n)),
        "b_eq": random.integers(-3, 6, equal),
        "bounds": BOUNDS[seed % 4],
    }, random.normal(size=n)


@pytest.mark.parametrize("method", ["glop", "highs", "pdlp"])
def test_linear_equals_scipy(method):
    seen = set()
    for seed in range(40):
        arguments, cost = problem(seed)
        expected = optimize.linprog(cost, **arguments)
        result = LinearProgram(**arguments, method=method, on_failure="nan").solve_batch(torch.from_numpy(cost))
        want = STATUS[expected.status]
        seen.add(want)
        if method == "pdlp" and want == Status.OPTIMAL:
            want = Status.FEASIBLE
        assert result.status == want, seed
        if expected.status == 0:
            tolerance = 1e-4 if method == "pdlp" else 1e-7
            assert result.objective.item() == pytest.approx(expected.fun, rel=tolerance, abs=tolerance)
            assert result.bound <= result.objective
        else:
            assert result.solutions.isnan().all()
    assert len(seen) == 3


@pytest.mark.parametrize("method", ["scip", "cp_sat"])
def test_integer_equals_scipy(method):
    seen = set()
    for seed in range(1, 60, 4 if method == "cp_sat" else 1):
        arguments, cost = problem(seed)
        integrality = np.ones(len(cost), dtype=int)
        if method == "scip":
            integrality = np.random.default_rng(seed).integers(0, 2, len(cost))
        low, high = (
            edge if edge is not None else s * np.inf for edge, s in zip(arguments["bounds"], (-1, 1), strict=True)
        )
        expected = optimize.milp(
            cost,
            constraints=[
                optimize.LinearConstraint(arguments["A_ub"], -np.inf, arguments["b_ub"]),
                optimize.LinearConstraint(arguments["A_eq"], arguments["b_eq"], arguments["b_eq"]),
            ],
            bounds=optimize.Bounds(low, high),
            integrality=integrality,
        )
        oracle = IntegerProgram(**arguments, integrality=integrality, method=method, on_failure="nan", time_limit=10)
        result = oracle.solve_batch(torch.from_numpy(cost))
        if expected.status == 4:  # infeasible or unbounded: HiGHS does not say which
            assert result.status in (Status.INFEASIBLE, Status.UNBOUNDED)
            continue
        seen.add(STATUS[expected.status])
        assert result.status == STATUS[expected.status], seed
        if expected.status == 0:
            assert result.objective.item() == pytest.approx(expected.fun, rel=1e-6, abs=1e-6)
            whole = result.solutions.numpy()[integrality == 1]
            assert (whole == np.rint(whole)).all()
    assert len(seen) >= 2


@pytest.mark.parametrize("method", ["scip", "cp_sat"])
def test_integer_equals_enumeration(method):
    random = np.random.default_rng(0)
    matrix, right = random.integers(-4, 5, (3, 5)), random.integers(2, 9, 3)
    points = integer_points([2] * 5)
    points = points[(points @ matrix.T <= right).all(1)]
    oracle = IntegerProgram(matrix, right, bounds=(0, 2), method=method)
    assert_optimal(oracle, points, random.normal(size=(8, 5)))
    for scale in SCALES:
        assert_optimal(oracle, points, random.normal(size=(2, 5)) * scale)
    assert_optimal(oracle, points, np.zeros((1, 5)))


@pytest.mark.parametrize("method", ["glop", "highs"])
def test_linear_costs_of_any_scale(method):
    oracle = LinearProgram([[1.0, 2.0, 1.0]], [4.0], bounds=(0, 3), method=method)
    for scale in SCALES:
        costs = torch.tensor([[-1.0, -1.0, 0.0], [0.0, 0.0, -1.0], [-2.0, -5.0, 0.0]], dtype=torch.float64) * scale
        expected = [[3.0, 0.5, 0.0], [0.0, 0.0, 3.0], [0.0, 2.0, 0.0]]
        solutions = oracle.solve(costs)
        assert torch.allclose((solutions * costs).sum(1) / scale, torch.tensor([-3.5, -3.0, -10.0]).double())
        assert solutions[[0, 2]].tolist() == [expected[0], expected[2]]


def test_no_cost_of_the_row_before_is_left():
    """OR-Tools' set_objective_coefficients skips zeros; a row would keep the cost of the one before it."""
    for oracle in (LinearProgram(bounds=(0, 1), n=2), IntegerProgram(bounds=(0, 1), n=2)):
        costs = torch.tensor([[-1.0, 1.0], [0.0, -1.0], [1.0, 0.0], [0.0, 0.0]])
        solutions = oracle.solve(costs)
        assert (costs * solutions).sum(1).tolist() == [-1.0, -1.0, 0.0, 0.0]
    free = LinearProgram(bounds=[(0, 1), (None, None)], on_failure="nan")
    assert free.solve_batch(torch.tensor([[1.0, 1.0], [-1.0, 0.0]])).status.tolist() == [3, 0]


@pytest.mark.parametrize("kind", [LinearProgram, IntegerProgram])
def test_each_row_its_own_sides(kind):
    oracle = kind([[1.0, 1.0]], [1.0], [[1.0, -1.0]], [0.0], (0, 5), on_failure="nan")
    own = oracle.with_parameters(b_ub=torch.tensor([[4.0], [-1.0], [8.0]]), b_eq=np.array([0.0]))
    result = own.solve_batch(-torch.ones(3, 2, dtype=torch.float64))
    assert result.status.tolist() == [Status.OPTIMAL, Status.INFEASIBLE, Status.OPTIMAL]
    assert result.solutions[[0, 2]].tolist() == [[2.0, 2.0], [4.0, 4.0]]
    unchanged = oracle.solve(-torch.ones(2, dtype=torch.float64))
    assert unchanged.tolist() == ([0.5, 0.5] if kind is LinearProgram else [0.0, 0.0])
    with pytest.raises(InfeasibleError, match="rows 1") as caught:
        kind([[1.0]], [1.0]).with_parameters(b_ub=[[1.0], [-1.0], [2.0]]).solve(-torch.ones(3, 1))
    assert caught.value.solutions[[0, 2]].tolist() == [[1.0], [2.0]]


@pytest.mark.parametrize("kind", [LinearProgram, IntegerProgram])
def test_unbounded_rows_are_named(kind):
    with pytest.raises(InfeasibleError, match="rows 1, the first is UNBOUNDED") as caught:
        kind(n=2).solve(torch.tensor([[1.0, 1.0], [-1.0, 0.0]]))
    assert caught.value.solutions[0].tolist() == [0.0, 0.0]


@pytest.mark.parametrize("kind", [LinearProgram, IntegerProgram])
def test_one_and_none(kind):
    assert kind(n=0).solve(torch.zeros(3, 0)).shape == (3, 0)
    assert kind([[]], [-1.0], on_failure="nan").solve_batch(torch.zeros(0)).status == Status.INFEASIBLE
    assert kind(n=1, bounds=(2, 3)).solve(torch.tensor([1.0])).tolist() == [2.0]
    assert kind(n=1, bounds=(3, 2), on_failure="nan").solve_batch(torch.tensor([1.0])).status == Status.INFEASIBLE
    assert kind(n=2).solve(torch.zeros(0, 2)).shape == (0, 2)


@pytest.mark.parametrize("kind", [LinearProgram, IntegerProgram])
def test_sparse_matrices(kind):
    sparse = pytest.importorskip("scipy.sparse")
    random = np.random.default_rng(0)
    matrix, equal = random.integers(0, 3, (4, 6)), np.array([[1, 0, 0, 0, 0, 1]])
    costs = torch.from_numpy(random.normal(size=(4, 6)))
    expected = kind(matrix, [7] * 4, equal, [2], (0, 3)).solve_batch(costs).objective
    for other in (
        kind(sparse.csr_matrix(matrix), [7] * 4, equal, [2], (0, 3)),
        kind(matrix, [7] * 4, sparse.coo_array(equal), [2], (0, 3)),
        kind(sparse.csc_matrix(np.concatenate([matrix, equal, -equal])), [7] * 4 + [2, -2], bounds=(0, 3)),
    ):
        assert not isinstance(other.constraints.matrix, np.ndarray)
        assert torch.allclose(other.solve_batch(costs).objective, expected)
        assert not other._is_feasible(np.full(6, 3.0), {})
    with pytest.raises(ValueError, match="'A_ub' must be finite"):
        kind(sparse.csr_matrix([[np.nan]]), [1.0])


def test_large_sparse_programs():
    """40,000 rows and columns, which would take 13 GB as a dense matrix."""
    sparse = pytest.importorskip("scipy.sparse")
    n = 40_000
    chain = sparse.diags([np.ones(n), np.ones(n - 1)], [0, 1], format="csr")
    cost = torch.from_numpy(-np.random.default_rng(0).random(n))
    result = LinearProgram(chain, np.ones(n), bounds=(0, 1)).solve_batch(cost)
    assert result.status == Status.OPTIMAL
    assert result.objective < -n * 0.25


def hard_program(time_limit):
    """Market split: equations that branch and bound takes very long to satisfy."""
    random = np.random.default_rng(0)
    matrix = random.integers(0, 100, (5, 40))
    full = np.concatenate([matrix, np.eye(5), -np.eye(5)], axis=1)
    bounds = [(0, 1)] * 40 + [(0, None)] * 10
    cost = np.concatenate([np.zeros(40), np.ones(10)])
    right = matrix.sum(1) // 2
    return IntegerProgram(
        A_eq=full, b_eq=right, bounds=bounds, integrality=[1] * 40 + [0] * 10, time_limit=time_limit
    ), cost


def test_time_limit():
    oracle, cost = hard_program(1.0)
    start = time.monotonic()
    result = oracle.solve_batch(torch.from_numpy(cost))
    assert time.monotonic() - start < 60  # without a limit it takes hours
    assert result.status == Status.FEASIBLE
    assert 0 <= result.bound.item() < result.objective.item()
    oracle, cost = hard_program(1e-9)
    oracle.on_failure = "nan"
    assert oracle.solve_batch(torch.from_numpy(cost)).status == Status.TIMEOUT
    oracle.time_limit = 1.0
    assert oracle.solve_batch(torch.from_numpy(cost)).status == Status.FEASIBLE


@pytest.mark.parametrize("kind", ["scip", "cp_sat", "glop"])
def test_ctrl_c_ends_a_solve_and_is_not_swallowed(kind):
    if kind == "scip":
        oracle, cost = hard_program(600.0)
    elif kind == "cp_sat":
        oracle, cost = MaxCut(60, time_limit=600.0), np.random.default_rng(0).normal(size=60 * 59 // 2)
    else:
        random = np.random.default_rng(0)
        oracle = LinearProgram(random.random((900, 1200)), np.ones(900), bounds=(0, 1), time_limit=600.0)
        cost = -random.random(1200)
    costs = torch.from_numpy(cost)
    timer = threading.Timer(0.4, lambda: os.kill(os.getpid(), signal.SIGINT))
    start = time.monotonic()
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        oracle.solve_batch(costs.expand(1000, -1))
    timer.join()
    assert time.monotonic() - start < 60  # all rows would take hours
    oracle.time_limit = 60.0 if kind == "glop" else 1.0
    assert oracle.solve_batch(costs).status <= Status.FEASIBLE


def test_errors_of_solvers_cross_the_thread():
    with pytest.raises(ZeroDivisionError):
        interruptible(lambda: 1 / 0, lambda: None)


def test_threads_have_their_own_models():
    oracle = IntegerProgram([[2, 3, 4, 5]], [7], bounds=(0, 2))
    costs = -torch.rand(40, 4, dtype=torch.float64)
    expected, found = oracle.solve(costs), {}

    def work(which):
        found[which] = torch.stack([oracle.solve(cost) for cost in costs])

    threads = [threading.Thread(target=work, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal((found[i] * costs).sum(1), (expected * costs).sum(1)) for i in range(3))


@pytest.mark.parametrize(
    ("arguments", "options", "match"),
    [
        ((), {}, "number of variables must follow"),
        (([[1.0]], [1.0], [[1.0, 2.0]], [1.0]), {}, "and be the same"),
        (([[1.0]],), {}, "'b_ub' is missing"),
        ((None, [1.0]), {"n": 1}, "'A_ub' is missing"),
        (([[1.0]], [1.0, 2.0]), {}, "'b_ub' must have shape"),
        (([1.0], [1.0]), {}, "'A_ub' must have shape"),
        (([[float("inf")]], [1.0]), {}, "'A_ub' must be finite"),
        (([[1.0]], [1.0]), {"bounds": 3}, "'bounds' must be"),
        (([[1.0]], [1.0]), {"bounds": [(0, 1), (0, 1)]}, "one pair for each of 1"),
        (([[1.0]], [1.0]), {"bounds": (float("nan"), 1)}, "must not be NaN"),
        (([[1.0]], [1.0]), {"method": "simplex"}, "'method' must be one of"),
    ],
)
def test_bad_arguments(arguments, options, match):
    for kind in (LinearProgram, IntegerProgram):
        with pytest.raises(ValueError, match=match):
            kind(*arguments, **options)


def test_bad_integrality():
    for integrality in (2, [1, 0, 1], [[1]]):
        with pytest.raises(ValueError, match="'integrality' must be"):
            IntegerProgram(n=2, integrality=integrality)
    with pytest.raises(ValueError, match="method 'cp_sat' needs"):
        IntegerProgram(n=2, method="cp_sat")


def test_infinite_costs_never_reach_a_solver():
    for kind, value in itertools.product((LinearProgram, IntegerProgram), (float("nan"), float("inf"))):
        with pytest.raises(ValueError, match="must be finite, got NaN or infinity in rows 1"):
            kind(n=1).solve(torch.tensor([[1.0], [value]]))
