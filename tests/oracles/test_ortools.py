"""What the oracles on OR-Tools share: import, costs and sizes as integers, models per thread, pickling."""

import copy
import importlib
import itertools
import math
import pickle
import subprocess
import sys
import threading
import types
from fractions import Fraction

import numpy as np
import pytest
import torch

from difflayers import oracles
from difflayers.oracles import Oracle, PerThread, _ortools, _routing

ORACLES = {
    "Knapsack": lambda **settings: oracles.Knapsack([3, 5, 4, 2], 8, **settings),
    "Knapsack, cp_sat": lambda **settings: oracles.Knapsack([[3, 5, 4, 2]], [8], method="cp_sat", **settings),
    "GeneralizedAssignment": lambda **settings: oracles.GeneralizedAssignment([3, 5, 4], [8, 8], **settings),
    "TravelingSalesman": lambda **settings: oracles.TravelingSalesman(13, **settings),
    "TravelingSalesman, few": lambda **settings: oracles.TravelingSalesman(5, **settings),
    "VehicleRouting": lambda **settings: oracles.VehicleRouting(5, 2, [1, 2, 3, 4], 6, **settings),
    "MaxCut": lambda **settings: oracles.MaxCut(14, **settings),
    "MaxCut, few": lambda **settings: oracles.MaxCut(5, **settings),
    "IndependentSet": lambda **settings: oracles.IndependentSet([(0, 1), (1, 2)], 3, **settings),
    "LinearProgram": lambda **settings: oracles.LinearProgram([[1.0, 2.0]], [4.0], bounds=(0, 3), **settings),
    "IntegerProgram": lambda **settings: oracles.IntegerProgram([[1.0, 2.0]], [4.0], bounds=(0, 3), **settings),
}

MIP = """
from ortools.linear_solver import pywraplp
solver = pywraplp.Solver.CreateSolver("SCIP")
x, y = solver.IntVar(0, 10, "x"), solver.IntVar(0, 10, "y")
solver.Add(2 * x + 3 * y <= 12.5)
solver.Maximize(3 * x + 4 * y)
assert solver.Solve() == 0 and round(solver.Objective().Value()) == 18, solver.Objective().Value()
"""
OURS = """
import torch, difflayers as dl
solution = dl.oracles.IntegerProgram([[2, 3]], [12.5], bounds=(0, 10)).solve(torch.tensor([-3.0, -4.0]))
assert (solution * torch.tensor([3.0, 4.0])).sum() == 18, solution
"""
LIGHT = """
import sys, difflayers as dl
dl.oracles.LinearProgram(n=1), dl.oracles.Knapsack([1], 1), dl.oracles.TravelingSalesman(20), dl.oracles.MaxCut(20)
loaded = {name.split(".")[0] for name in sys.modules}
assert not loaded & {"ortools", "scipy", "cvxpy", "networkx", "pandas"}, loaded
"""
CONVEX = """
import cvxpy
x = cvxpy.Variable(2)
problem = cvxpy.Problem(cvxpy.Minimize(cvxpy.sum_squares(x - 1)), [cvxpy.sum(x) == 1])
problem.solve(solver=cvxpy.CLARABEL)
assert abs(x.value[0] - 0.5) < 1e-6, x.value
"""


@pytest.mark.parametrize("order", [(LIGHT, OURS, MIP, CONVEX), (CONVEX, OURS, MIP)])
def test_lives_beside_cvxpy_in_either_order(order):
    pytest.importorskip("cvxpy")
    done = subprocess.run([sys.executable, "-c", "\n".join(order)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_clash_with_highspy_is_explained(monkeypatch):
    def clash(name):
        raise ImportError(f"libortools.so.9: undefined symbol: _Z19setLocalOptionValueRK15HighsLogOptions ({name})")

    monkeypatch.setattr(importlib, "import_module", clash)
    with pytest.raises(ImportError, match=r"pip install 'highspy<1\.15', or import ortools before cvxpy"):
        _ortools.load("ortools.sat.python.cp_model")
    with pytest.raises(ImportError, match=r"pip install 'highspy<1\.15', or import ortools before cvxpy"):
        _ortools.solver_module("difflayers.oracles.MinCostFlow", "ortools.graph.python.min_cost_flow")


@pytest.mark.parametrize(
    ("error", "match"),
    [
        (ModuleNotFoundError("No module named 'ortools'", name="ortools"), r"pip install 'difflayers\[solvers\]'"),
        (ModuleNotFoundError("No module named 'numpy.x'", name="numpy.x"), "No module named 'numpy.x'"),
        (ImportError("libc.so.6: cannot open shared object file"), "cannot open shared object file"),
    ],
)
def test_only_that_clash_is_explained(error, match, monkeypatch):
    def fail(name):
        raise error

    monkeypatch.setattr(importlib, "import_module", fail)
    with pytest.raises(ImportError, match=match):
        _ortools.load("ortools.sat.python.cp_model")


@pytest.mark.parametrize("name", ORACLES)
def test_solved_oracles_can_be_copied_and_pickled(name):
    oracle = ORACLES[name]()
    costs = torch.randn(3, *oracle.cost_shape, dtype=torch.float64)
    expected = oracle.solve_batch(costs).objective
    for other in (pickle.loads(pickle.dumps(oracle)), copy.deepcopy(oracle), copy.copy(oracle)):
        assert torch.allclose(other.solve_batch(costs).objective, expected, rtol=1e-9)


@pytest.mark.parametrize("name", ORACLES)
def test_results_are_like_the_costs(name):
    oracle = ORACLES[name]()
    costs = torch.randn(2, 3, *oracle.cost_shape)
    exact = oracle.solve_batch(costs.double()).objective
    for dtype in (torch.float32, torch.bfloat16):
        result = oracle.solve_batch(costs.to(dtype))
        assert result.solutions.dtype == result.objective.dtype == dtype
        assert result.solutions.shape == costs.shape
        assert torch.allclose(result.objective.double(), exact, rtol=0.1, atol=0.1)
    strided = costs.double().transpose(0, 1)
    assert torch.allclose(oracle.solve_batch(strided).objective, exact.T)


@pytest.mark.parametrize("name", ORACLES)
def test_bad_costs_never_reach_a_solver(name):
    oracle = ORACLES[name]()
    costs = torch.randn(3, *oracle.cost_shape)
    for value in (float("nan"), float("inf"), -float("inf")):
        costs[1].view(-1)[0] = value
        with pytest.raises(ValueError, match="must be finite, got NaN or infinity in rows 1"):
            oracle.solve(costs)
    with pytest.raises(ValueError, match="must have shape"):
        oracle.solve(torch.zeros(99))
    with pytest.raises(TypeError, match="must have a floating-point dtype"):
        oracle.solve(torch.zeros(oracle.cost_shape, dtype=torch.int64))


@pytest.mark.parametrize("name", ORACLES)
def test_negative_zeros_do_not_appear(name):
    oracle = ORACLES[name]()
    solutions = oracle.solve(torch.randn(4, *oracle.cost_shape))
    assert not (solutions.signbit() & (solutions == 0)).any()


def test_an_oracle_that_solves_nothing():
    class Nothing(Oracle):
        cost_shape = (2,)

    with pytest.raises(TypeError, match="Nothing must define _solve_row or _solve_rows"):
        Nothing()


def test_models_per_thread():
    models, built = PerThread(), []

    def build():
        built.append(threading.get_ident())
        return len(built)

    assert models.get("a", build) == models.get("a", build) == 1
    thread = threading.Thread(target=lambda: models.get("a", build))
    thread.start()
    thread.join()
    assert len(set(built)) == 2
    assert copy.copy(models) is models
    assert pickle.loads(pickle.dumps(models)).get("a", build) == 3
    broken = types.SimpleNamespace(usable=True)
    assert models.get("b", lambda: broken) is broken
    broken.usable = False
    assert models.get("b", build) == 4


def test_with_parameters_keeps_the_models():
    oracle = oracles.IntegerProgram([[1.0, 1.0]], [1.0])
    assert oracle.with_parameters(b_ub=[2.0])._models is oracle._models


@pytest.mark.parametrize("largest", [5e-324, 1e-310, 1e-7, 1.0, 3.0, 1e13, 1.7e308])
def test_normalised_costs(largest):
    costs = np.array([largest, -largest / 2, 0.0])
    scaled, exponent = _ortools.normalised(costs)
    assert 0.5 <= scaled.max() < 1.0
    assert all(_ortools.restored(value, exponent) == cost for value, cost in zip(scaled, costs, strict=True))
    assert _ortools.normalised(np.zeros(2))[0].tolist() == [0.0, 0.0]
    assert _ortools.normalised(np.zeros(0))[0].shape == (0,)


@pytest.mark.parametrize("scale", [5e-324, 1e-300, 1e-7, 1.0, 1e13, 1e307])
def test_integer_costs(scale):
    costs = np.random.default_rng(0).normal(size=30) * scale
    ranges = np.arange(30.0)
    integers, exponent, error = _ortools.integer_costs(costs, ranges)
    assert integers.dtype == np.int64
    assert sum(abs(int(k)) * int(r) for k, r in zip(integers, ranges, strict=True)) <= 2**50 + error
    exact = sum(
        abs(Fraction(float(cost)) - int(k) * Fraction(2) ** exponent) * int(r)
        for cost, k, r in zip(costs, integers, ranges, strict=True)
    )
    assert exact <= Fraction(error) * Fraction(2) ** exponent * (1 + Fraction(1, 2**40))
    assert error <= ranges.sum() / 2


def test_integer_sizes_have_the_same_feasible_set():
    random = np.random.default_rng(0)
    for trial in range(40):
        n = int(random.integers(1, 7))
        kind = trial % 4
        size, room = random.random(n), random.random() * n / 2
        if kind == 1:
            size, room = size.round(2), round(room, 2)
        if kind == 2:
            size, room = size.astype(np.float32), np.float32(room)
        if kind == 3:
            size, room = size * 10.0 ** random.integers(-30, 30, n), room * 1e10
        integers, limits = _ortools.integer_sizes(np.atleast_2d(size), np.atleast_1d(np.asarray(room)))
        assert integers.sum() < 2**61
        exact = [Fraction(str(value)) for value in size]
        for chosen in itertools.product((0, 1), repeat=n):
            fits = sum(value for value, taken in zip(exact, chosen, strict=True) if taken) <= Fraction(str(room))
            assert fits or integers[0] @ chosen > limits[0]  # never too much
            if kind in (1, 2):
                assert fits == (integers[0] @ chosen <= limits[0])


def test_few_digits_are_read_as_many_are(monkeypatch):
    random = np.random.default_rng(0)
    rows = [
        (kind(random.random(6).round(digits) * factor), kind(random.random() * 3 * factor))
        for digits in range(7)
        for factor in (1, 1000, 10**8)
        for kind in (np.float64, np.float32, np.float16 if factor == 1 else np.float64)
    ]
    rows += [(random.integers(0, 10**12, 6) * 4, np.float64(10.0**12 + 0.5)), (np.zeros(3), np.float64(1.5))]
    fast = [_ortools._integer_row(*row) for row in rows]
    monkeypatch.setattr(_ortools, "_times_power_of_ten", lambda size, digits: None)
    assert fast == [_ortools._integer_row(*row) for row in rows]


def test_routes_of_both_signs():
    matrix = np.array([[0.0, -1.0, 5.0, 5.0], [-1.0, 0.0, -1.0, 5.0], [5.0, -1.0, 0.0, -1.0], [5.0, 5.0, -1.0, 0.0]])
    assert _routing.routes(matrix, 0.02) in ([[1, 2, 3]], [[3, 2, 1]])
    assert math.isfinite(_routing.heuristic_seconds(None, 10))
