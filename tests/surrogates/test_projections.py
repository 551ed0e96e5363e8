"""Projections against quadratic programs (SciPy), their defining inequalities, and finite differences."""

import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

import difflayers as dl
from difflayers import surrogates
from tests.tolerances import assert_near

PROJECTIONS = {  # projection, constraints of SciPy's on p, bounds
    "simplex": (surrogates.project_simplex, lambda p: p.sum() - 1.0, "eq", (0, None)),
    "simplex of 2.5": (lambda x: surrogates.project_simplex(x, 2.5), lambda p: p.sum() - 2.5, "eq", (0, None)),
    "3-subsets": (lambda x: surrogates.project_capped_simplex(x, 3), lambda p: p.sum() - 3.0, "eq", (0, 1)),
    "capped": (
        lambda x: surrogates.project_capped_simplex(x, 1.3, upper=0.4), lambda p: p.sum() - 1.3, "eq", (0, 0.4),
    ),
    "box": (surrogates.project_box, lambda p: 1.0, "ineq", (0, 1)),
    "l2": (lambda x: surrogates.project_l2_ball(x, 1.5), lambda p: 1.5**2 - (p**2).sum(), "ineq", (None, None)),
    "l1": (lambda x: surrogates.project_l1_ball(x, 1.5), None, "l1", (None, None)),
}  # fmt: skip
each = pytest.mark.parametrize("name", PROJECTIONS)


def quadratic_program(name, x):
    _, constraint, kind, bounds = PROJECTIONS[name]
    n = len(x)
    if kind == "l1":  # p = a - b with a, b >= 0
        result = minimize(
            lambda ab: ((ab[:n] - ab[n:] - x) ** 2).sum(), np.full(2 * n, 0.1), method="SLSQP",
            constraints={"type": "ineq", "fun": lambda ab: 1.5 - ab.sum()}, bounds=[(0, None)] * (2 * n),
            options={"ftol": 1e-14, "maxiter": 500},
        )  # fmt: skip
        return result.x[:n] - result.x[n:]
    result = minimize(
        lambda p: ((p - x) ** 2).sum(), np.full(n, 0.3), jac=lambda p: 2 * (p - x), method="SLSQP",
        constraints={"type": kind, "fun": constraint}, bounds=[bounds] * n, options={"ftol": 1e-14, "maxiter": 500},
    )  # fmt: skip
    return result.x


@each
@pytest.mark.parametrize("scale", [0.1, 1.0, 5.0])
def test_against_a_quadratic_program(name, scale):
    for x in scale * torch.randn(5, 6, dtype=torch.float64):
        expected = torch.as_tensor(quadratic_program(name, x.numpy()))
        torch.testing.assert_close(PROJECTIONS[name][0](x), expected, rtol=0, atol=2e-6)


@each
@pytest.mark.parametrize("scale", [0.3, 1.0, 3.0])
def test_gradients(name, scale):
    project = PROJECTIONS[name][0]
    x = (scale * torch.randn(3, 7, dtype=torch.float64)).requires_grad_()
    assert torch.autograd.gradcheck(project, x, eps=1e-7, atol=1e-5)
    assert torch.autograd.gradgradcheck(project, x)


def test_sums_are_exact():
    x = torch.randn(100, 7, dtype=torch.float64)
    for total, upper in ((1.3, 0.4), (0.7, 0.3), (2.1, 0.3)):
        y = surrogates.project_capped_simplex(x, total, upper=upper)
        assert_near(y.sum(-1), torch.full((100,), total, dtype=torch.float64))
        assert (y <= upper).all()


@each
def test_projecting_twice_changes_nothing(name):
    project = PROJECTIONS[name][0]
    point = project(torch.randn(50, 6, dtype=torch.float64))
    assert_near(project(point), point)


@each
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_dtypes_and_strides(name, dtype):
    project = PROJECTIONS[name][0]
    x = torch.randn(6, 5).to(dtype).T.requires_grad_()
    y = project(x)
    assert y.dtype == dtype
    assert_near(y, project(x.double()).to(dtype))
    y.sum().backward()
    assert x.grad is None or x.grad.dtype == dtype


def test_dim():
    x = torch.randn(4, 6, 3)
    for project in (
        surrogates.project_simplex, surrogates.project_l1_ball, surrogates.project_l2_ball,
        lambda x, dim=-1: surrogates.project_capped_simplex(x, 2, dim=dim),
    ):  # fmt: skip
        assert_near(project(x, dim=1), project(x.movedim(1, -1)).movedim(-1, 1))


def test_plateaus_have_no_gradient():
    # tied winners whose total is whole: moving one of them a little moves nothing
    x = torch.tensor([3.0, 3.0, 0.0], dtype=torch.float64, requires_grad=True)
    y = surrogates.project_capped_simplex(x, 2)
    assert y.tolist() == [1.0, 1.0, 0.0]
    assert torch.autograd.gradcheck(lambda x: surrogates.project_capped_simplex(x, 2), x)
    assert torch.autograd.grad(y[0], x)[0].tolist() == [0.0, 0.0, 0.0]


def test_plateaus_survive_rounding():
    # in decimals that binary numbers do not hit, the level differs from a bound by rounding
    for start in torch.linspace(1.01, 9.87, 50, dtype=torch.float64).tolist():
        x = torch.tensor([start, start, start, 0.1, 0.07], dtype=torch.float64, requires_grad=True)
        y = surrogates.project_capped_simplex(x, 3 * 0.3, upper=0.3)
        assert_near(y, torch.tensor([0.3, 0.3, 0.3, 0.0, 0.0], dtype=torch.float64))
        assert torch.autograd.grad(y[0], x)[0].tolist() == [0.0] * 5


def test_whole_totals_of_many_rows_are_exact():
    x = 100 * torch.randn(200, 30, dtype=torch.float64)
    y = surrogates.project_capped_simplex(x, 7)
    assert_near(y.sum(-1), torch.full((200,), 7.0, dtype=torch.float64))
    whole = (y * (1 - y)).abs().amax(1) < 1e-12
    assert whole.any()
    assert_near(y[whole], dl.oracles.TopK(30, 7).solve(-x)[whole])


@pytest.mark.parametrize("total", [0, 1, 2, 4])
def test_ends_of_the_range(total):
    x = torch.tensor([5.0, 5.0, -3.0, 0.0])
    assert_near(surrogates.project_capped_simplex(x, total).sum(), torch.tensor(float(total)))
    equal = torch.zeros(4)
    assert_near(surrogates.project_capped_simplex(equal, total), torch.full((4,), total / 4))


def test_empty_and_single():
    assert surrogates.project_simplex(torch.zeros(3, 0), 0.0).shape == (3, 0)
    assert surrogates.project_l1_ball(torch.zeros(3, 0)).shape == (3, 0)
    assert surrogates.project_l2_ball(torch.zeros(3, 0)).shape == (3, 0)
    assert surrogates.project_simplex(torch.tensor([-7.0])).tolist() == [1.0]
    assert surrogates.project_simplex(torch.zeros(0, 3)).shape == (0, 3)
    assert surrogates.project_l2_ball(torch.zeros(3, requires_grad=True), 0.0).tolist() == [0.0] * 3


def test_bounds_of_the_box_get_gradients():
    x = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    low = (-0.5 - torch.rand(5, dtype=torch.float64)).requires_grad_()
    high = (0.3 + torch.rand(3, 1, dtype=torch.float64)).requires_grad_()
    assert torch.autograd.gradcheck(surrogates.project_box, (x, low, high))


@each
def test_transforms(name):
    project = PROJECTIONS[name][0]
    x = torch.randn(4, 6, dtype=torch.float64)
    assert_near(torch.vmap(project)(x), project(x))
    jacobian = torch.func.vmap(torch.func.jacrev(project))(x)
    for row in range(4):
        assert_near(jacobian[row], torch.autograd.functional.jacobian(project, x[row]), order=1)


@pytest.mark.filterwarnings("ignore:.*is deprecated")
@each
def test_compile(name):
    torch.compiler.reset()
    project = PROJECTIONS[name][0]
    x = torch.randn(4, 6, dtype=torch.float64)
    assert_near(torch.compile(project, fullgraph=True, backend="aot_eager")(x), project(x))


NAN, INF = math.nan, math.inf
X = torch.randn(2, 4)
BAD = [
    (TypeError, "project_simplex", "x", lambda: surrogates.project_simplex([1.0])),
    (TypeError, "project_simplex", "x", lambda: surrogates.project_simplex(torch.ones(3).long())),
    (ValueError, "project_simplex", "x", lambda: surrogates.project_simplex(torch.tensor([1.0, NAN]))),
    (ValueError, "project_simplex", "total", lambda: surrogates.project_simplex(X, -1.0)),
    (ValueError, "project_simplex", "total", lambda: surrogates.project_simplex(X[:, :0])),
    (ValueError, "project_simplex", "dim", lambda: surrogates.project_simplex(X, dim=2)),
    (ValueError, "project_capped_simplex", "total", lambda: surrogates.project_capped_simplex(X, 5)),
    (TypeError, "project_capped_simplex", "total", lambda: surrogates.project_capped_simplex(X, "2")),
    (ValueError, "project_capped_simplex", "upper", lambda: surrogates.project_capped_simplex(X, 2, upper=0.0)),
    (ValueError, "project_l1_ball", "x", lambda: surrogates.project_l1_ball(torch.tensor([INF]))),
    (ValueError, "project_l2_ball", "radius", lambda: surrogates.project_l2_ball(X, NAN)),
    (ValueError, "project_box", "lower", lambda: surrogates.project_box(X, 1.0, 0.0)),
    (ValueError, "project_box", "upper", lambda: surrogates.project_box(X, 0.0, torch.ones(5))),
    (TypeError, "project_box", "lower", lambda: surrogates.project_box(X, None)),
    (ValueError, "project_box", "x", lambda: surrogates.project_box(torch.tensor([NAN]))),
]


@pytest.mark.parametrize(("error", "name", "argument", "call"), BAD)
def test_bad_input(error, name, argument, call):
    with pytest.raises(error, match=rf"^difflayers\.surrogates\.{name}: argument '{argument}' must ") as caught:
        call()
    assert "\n" not in str(caught.value)
