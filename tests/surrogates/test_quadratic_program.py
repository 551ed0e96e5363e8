"""QuadraticProgram against closed forms, FrankWolfe on an enumerated polytope, and finite differences."""

import copy
import math
import pickle

import numpy as np
import pytest
import torch

import difflayers as dl
from difflayers.surrogates import QuadraticProgram, project_box, project_capped_simplex, project_simplex
from tests.rules.polytopes import enumerated, permutations
from tests.tolerances import assert_identical

pytest.importorskip("ortools")


def assignment(n):
    """The doubly stochastic matrices: every row and every column sums to 1."""
    return np.vstack([np.kron(np.eye(n), np.ones(n)), np.kron(np.ones(n), np.eye(n))])


def near(actual, expected, tolerance=1e-6):
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("mu", [0.1, 1.0, 10.0])
def test_closed_forms(mu):
    costs = torch.randn(4, 6, dtype=torch.float64)
    ones = np.ones((1, 6))
    near(QuadraticProgram(mu, A_eq=ones, b_eq=[1.0])(costs), project_simplex(-costs / mu))
    near(QuadraticProgram(mu, A_eq=ones, b_eq=[2], bounds=(0, 1))(costs), project_capped_simplex(-costs / mu, 2))
    near(QuadraticProgram(mu, A_ub=ones, b_ub=[100.0], bounds=(0, 1))(costs), project_box(-costs / mu))
    free = QuadraticProgram(np.full(6, mu), bounds=(None, None))
    near(free(costs), -costs / mu, 1e-5)


@pytest.mark.parametrize("mu", [0.3, 2.0])
def test_gradient_is_that_of_frank_wolfe(mu):
    oracle, _ = enumerated(permutations(3))
    layer = QuadraticProgram(mu, A_eq=assignment(3), b_eq=np.ones(6))
    costs = torch.randn(6, 9, dtype=torch.float64, requires_grad=True)
    incoming = torch.randn(6, 9, dtype=torch.float64)
    ours, theirs = layer(costs), dl.rules.FrankWolfe(mu)(oracle, costs)
    near(ours, theirs)
    near(*(torch.autograd.grad(y, costs, incoming)[0] for y in (ours, theirs)))


def test_gradient_with_inequalities_and_different_weights():
    generator = np.random.default_rng(0)
    layer = QuadraticProgram(
        generator.uniform(0.5, 2.0, 5), generator.normal(size=(3, 5)), np.full(3, 0.1), bounds=[(-1, 1)] * 5,
        tolerance=1e-12,
    )  # fmt: skip
    costs = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(layer, costs, eps=1e-4, atol=1e-4, nondet_tol=1e-6)


def test_warm_start_and_copies():
    layer = QuadraticProgram(0.5, A_eq=assignment(4), b_eq=np.ones(8), warm_start=True)
    cold = QuadraticProgram(0.5, A_eq=assignment(4), b_eq=np.ones(8))
    costs = torch.randn(3, 16, dtype=torch.float64)
    for _ in range(3):
        near(layer(costs), cold(costs))
        costs = costs + 0.01 * torch.randn_like(costs)
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        near(twin(costs), layer(costs))


def test_shapes_dtypes_and_rows():
    layer = QuadraticProgram(0.5, A_eq=np.ones((1, 4)), b_eq=[1.0])
    for lead in ((), (0,), (2, 3)):
        costs = torch.randn(*lead, 4, requires_grad=True)
        y = layer(costs)
        assert y.shape == costs.shape
        assert y.dtype == torch.float32
        (gradient,) = torch.autograd.grad(y, costs, torch.ones_like(y))
        assert gradient.shape == costs.shape
        assert gradient.abs().sum() < 1e-4  # the sum does not change
    costs, incoming = torch.randn(3, 4, requires_grad=True), torch.randn(3, 4)
    incoming[0], incoming[1, 2] = 0.0, math.nan
    (gradient,) = torch.autograd.grad(layer(costs), costs, incoming)
    assert_identical(gradient[0], torch.zeros(4))
    assert gradient[1].isnan().all()
    assert gradient[2].isfinite().all()


def test_failures():
    settings = {"A_ub": [[1.0, 1.0]], "b_ub": [-1.0]}  # a negative sum of nonnegative numbers
    costs = torch.ones(2, 2, requires_grad=True)
    with pytest.raises(
        dl.InfeasibleError, match=r"2 of 2 rows have no solution: rows 0, 1, the first is INFEASIBLE"
    ) as e:
        QuadraticProgram(1.0, **settings)(costs)
    assert e.value.rows == [0, 1]
    y = QuadraticProgram(1.0, **settings, on_failure="nan")(costs)
    assert y.isnan().all()
    y.sum().backward()
    assert_identical(costs.grad, torch.zeros(2, 2))


@pytest.mark.filterwarnings("ignore:.*is deprecated")
def test_compile_breaks_the_graph():
    layer = QuadraticProgram(0.5, A_eq=np.ones((1, 4)), b_eq=[1.0])
    x = torch.randn(2, 4)
    torch.compiler.reset()
    near(torch.compile(lambda x: layer(x * 2) + 1, backend="aot_eager")(x), layer(x * 2) + 1)
    torch.compiler.reset()
    with pytest.raises(Exception, match="a solver runs on the host"):
        torch.compile(layer, backend="aot_eager", fullgraph=True)(x)


def test_previous_solutions_take_the_place_of_missing_ones():
    layer = QuadraticProgram(1.0, [[1.0, 1.0]], [-1.0], on_failure="previous")
    assert layer(torch.ones(2, 2)).isnan().all()  # there is none yet
    layer.upper[:] = 1.0
    first = layer(-torch.rand(2, 2))
    assert first.isfinite().all()
    layer.upper[:] = -1.0  # a negative sum of nonnegative numbers
    costs = torch.randn(2, 2, requires_grad=True)
    y = layer(costs)
    assert_identical(y.detach(), first)
    y.sum().backward()
    assert_identical(costs.grad, torch.zeros(2, 2))
    assert copy.deepcopy(layer)(costs).isnan().all()  # copies start anew


A, B = np.ones((1, 3)), [1.0]
BAD = [
    (ValueError, "'quadratic' must be positive", lambda: QuadraticProgram(0.0, A, B)),
    (ValueError, "must agree on n", lambda: QuadraticProgram([1.0, 2.0], A, B)),
    (ValueError, "must agree on n", lambda: QuadraticProgram(1.0)),
    (ValueError, "'A_ub' and 'b_ub' must be given together", lambda: QuadraticProgram(1.0, A)),
    (ValueError, "'b_ub' must have shape", lambda: QuadraticProgram(1.0, A, [1.0, 2.0])),
    (ValueError, "must be finite", lambda: QuadraticProgram(1.0, A, [math.nan])),
    (ValueError, "'bounds' must be a pair", lambda: QuadraticProgram(1.0, A, B, bounds=[(0, 1)])),
    (ValueError, "'bounds' must have least <= most", lambda: QuadraticProgram(1.0, A, B, bounds=(1, 0))),
    (ValueError, "'tolerance' must be", lambda: QuadraticProgram(1.0, A, B, tolerance=0.0)),
    (TypeError, "'costs' must be a torch.Tensor", lambda: QuadraticProgram(1.0, A, B)([1.0])),
    (ValueError, "'costs' must have shape", lambda: QuadraticProgram(1.0, A, B)(torch.ones(2))),
    (ValueError, "'costs' must be finite", lambda: QuadraticProgram(1.0, A, B)(torch.tensor([1.0, math.nan, 0.0]))),
    (
        dl.UnsupportedOperationError,
        "runs on the host",
        lambda: torch.vmap(QuadraticProgram(1.0, A, B))(torch.ones(2, 3)),
    ),
]


@pytest.mark.parametrize(("error", "shown", "call"), BAD, ids=lambda v: v if isinstance(v, str) else "")
def test_bad_input(error, shown, call):
    with pytest.raises(error, match=rf"^difflayers\.surrogates\.QuadraticProgram: .*{shown}") as caught:
        call()
    assert "\n" not in str(caught.value)
