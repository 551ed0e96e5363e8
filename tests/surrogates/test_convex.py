"""ConvexLayer against closed forms, enumeration and the layer that it wraps; and what that layer gets wrong."""

import copy
import math
import pickle

import pytest
import torch

import difflayers as dl
from difflayers.surrogates import ConvexLayer, project_box, project_capped_simplex, project_l1_ball, project_l2_ball
from difflayers.surrogates.projections import project_simplex
from tests.rules.polytopes import solve
from tests.tolerances import assert_identical, assert_near

cp = pytest.importorskip("cvxpy")
pytest.importorskip("cvxpylayers")

N = 5
SETS = {
    "simplex": (lambda p: [p >= 0, cp.sum(p) == 1], project_simplex),
    "capped simplex": (lambda p: [p >= 0, p <= 1, cp.sum(p) == 2], lambda x: project_capped_simplex(x, 2)),
    "box": (lambda p: [p >= 0, p <= 1], project_box),
    "l1 ball": (lambda p: [cp.norm1(p) <= 1], project_l1_ball),
    "l2 ball": (lambda p: [cp.norm2(p) <= 1], project_l2_ball),
}


def projection(constraints):
    point, target = cp.Variable(N), cp.Parameter(N)
    return cp.Problem(cp.Minimize(cp.sum_squares(point - target)), constraints(point)), [target], [point]


def bounded_below():
    """min x with x >= a, x <= b: infeasible where a > b."""
    x, a, b = cp.Variable(2), cp.Parameter(2), cp.Parameter(2)
    return cp.Problem(cp.Minimize(cp.sum_squares(x)), [x >= a, x <= b]), [a, b], [x]


def linear(n):
    """min c.x over the simplex."""
    x, c = cp.Variable(n), cp.Parameter(n)
    return cp.Problem(cp.Minimize(c @ x), [x >= 0, cp.sum(x) == 1]), [c], [x]


@pytest.mark.parametrize("derivative", ["lsqr", "lsmr", "dense", "lpgd"])
@pytest.mark.parametrize("name", SETS)
def test_closed_forms(name, derivative):
    constraints, project = SETS[name]
    layer = ConvexLayer(
        *projection(constraints), derivative=derivative, **({"tau": 1e-3} if derivative == "lpgd" else {})
    )
    x = torch.randn(4, N, dtype=torch.float64, requires_grad=True)
    incoming = torch.randn(4, N, dtype=torch.float64)
    (y,) = layer(x)
    expected = project(x)
    # second-order cone programs: the solver's tolerance is one of the squared distance
    torch.testing.assert_close(y, expected, rtol=0, atol=3e-4)
    ours, theirs = (torch.autograd.grad(z, x, incoming)[0] for z in (y, expected))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=5e-3)
    with torch.no_grad():  # the arguments of training do not disturb
        assert_identical(layer(x)[0], y)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64], ids=str)
def test_dtype_is_kept(dtype):
    layer = ConvexLayer(*projection(SETS["simplex"][0]))
    x = torch.randn(3, N).to(dtype).requires_grad_()
    (y,) = layer(x)
    assert y.dtype == dtype
    y[:, 0].sum().backward()
    assert x.grad is not None
    assert x.grad.dtype == dtype


def test_batch_dimensions_broadcast():
    layer = ConvexLayer(*bounded_below())
    low = torch.tensor([[0.5, -1.0]], dtype=torch.float64, requires_grad=True)
    high = (1 + torch.rand(2, 3, 2, dtype=torch.float64)).requires_grad_()
    (y,) = layer(low, high)
    assert y.shape == (2, 3, 2)
    torch.testing.assert_close(y, torch.tensor([0.5, 0.0]).double().expand(2, 3, 2), rtol=0, atol=1e-4)
    (gradient,) = torch.autograd.grad(y.sum(), low)
    torch.testing.assert_close(gradient, torch.tensor([[6.0, 0.0]]).double(), rtol=0, atol=1e-2)
    assert layer(low[0], high[0, 0])[0].shape == (2,)
    assert layer(low[:0], high[0, :0])[0].shape == (0, 2)
    assert layer(low, high[0, :1])[0].shape == (1, 2)


@pytest.mark.filterwarnings("ignore:.*__array__.*:DeprecationWarning")  # cvxpylayers', with NumPy 2
def test_it_is_the_layer_that_it_wraps():
    from cvxpylayers.torch import CvxpyLayer

    problem = bounded_below()
    low, high = torch.randn(4, 2, dtype=torch.float64) - 1, torch.randn(4, 2, dtype=torch.float64) + 4
    results = []
    for layer in (ConvexLayer(*problem), CvxpyLayer(*problem)):
        leaf = low.clone().requires_grad_()
        (y,) = layer(leaf, high, solver_args={"solve_method": "SCS", "eps": 1e-8})
        results.append((y, torch.autograd.grad(y.square().sum(), leaf)[0]))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


def test_rows_without_a_solution_are_named():
    layer = ConvexLayer(*bounded_below())
    low = torch.tensor([[0.0, 0.0], [2.0, 0.0], [0.5, 0.5], [0.0, 3.0]], requires_grad=True)
    high = torch.ones(2)
    with pytest.raises(
        dl.InfeasibleError, match=r"2 of 4 rows have no solution: rows 1, 3, the first is INFEASIBLE"
    ) as e:
        layer(low, high)
    assert e.value.rows == [1, 3]
    assert e.value.status.tolist() == [0, 2, 0, 2]
    (kept,) = e.value.solutions
    assert kept.isnan().any(1).tolist() == [False, True, False, True]


@pytest.mark.parametrize("method", ["CLARABEL", "SCS"])
@pytest.mark.parametrize("train", [True, False])
def test_rows_without_a_solution_are_nan_and_pass_no_gradient(method, train):
    layer = ConvexLayer(*bounded_below(), on_failure="nan", solver_args={"solve_method": method})
    low = torch.tensor([[0.1, 0.2], [2.0, 0.0], [0.5, 0.5]], dtype=torch.float64, requires_grad=train)
    (y,) = layer(low, torch.ones(2, dtype=torch.float64))
    assert y.isnan().any(1).tolist() == [False, True, False]
    torch.testing.assert_close(y[[0, 2]], low[[0, 2]], rtol=0, atol=1e-4)
    if train:
        y.square().sum().backward()  # NaN comes back into row 1
        assert_identical(low.grad[1], torch.zeros(2, dtype=torch.float64))
        torch.testing.assert_close(low.grad[[0, 2]], 2 * low.detach()[[0, 2]], rtol=0, atol=1e-2)


def test_previous_solutions_take_the_place_of_missing_ones():
    layer = ConvexLayer(*bounded_below(), on_failure="previous")
    high = torch.ones(2)
    assert layer(torch.tensor([[2.0, 0.0]]), high)[0].isnan().all()  # there is none yet
    (first,) = layer(torch.tensor([[0.1, 0.2], [0.5, 0.5]]), high)
    low = torch.tensor([[0.3, 0.3], [2.0, 0.0]], requires_grad=True)
    (y,) = layer(low, high)
    assert_identical(y[1].detach(), first[1])
    y.sum().backward()
    assert_identical(low.grad[1], torch.zeros(2))
    assert low.grad[0].abs().min() > 0.9
    assert copy.deepcopy(layer)(low, high)[0][1].isnan().all()  # copies start anew


@pytest.mark.parametrize("method", ["CLARABEL", "SCS"])
def test_unbounded_rows(method):
    x, c = cp.Variable(2), cp.Parameter(2)
    problem = cp.Problem(cp.Minimize(c @ x), [x >= 0])
    layer = ConvexLayer(problem, [c], [x], solver_args={"solve_method": method})
    assert layer(torch.ones(2))[0].abs().max() < 1e-4
    with pytest.raises(dl.InfeasibleError, match="UNBOUNDED"):
        layer(torch.tensor([[1.0, 1.0], [1.0, -1.0]]))


def test_linear_programs_have_lpgd():
    tau = 1.0
    layer = ConvexLayer(*linear(4), derivative="lpgd", tau=tau)
    costs, incoming = torch.randn(6, 4, dtype=torch.float64), torch.randn(6, 4, dtype=torch.float64)
    vertices = torch.eye(4, dtype=torch.float64)
    leaf = costs.clone().requires_grad_()
    (y,) = layer(leaf)
    torch.testing.assert_close(y, solve(vertices, costs), rtol=0, atol=1e-4)
    (gradient,) = torch.autograd.grad(y, leaf, incoming)
    wanted = (solve(vertices, costs + tau * incoming) - solve(vertices, costs - tau * incoming)) / (2 * tau)
    torch.testing.assert_close(gradient, wanted, rtol=0, atol=1e-4)
    assert wanted.abs().max() > 0
    (implicit,) = torch.autograd.grad(ConvexLayer(*linear(4))(leaf)[0], leaf, incoming)
    assert implicit.abs().max() < 1e-2  # which is why


@pytest.mark.parametrize("on_failure", ["raise", "nan"])
def test_a_moved_problem_without_a_solution(on_failure):
    x, c = cp.Variable(2), cp.Parameter(2)
    problem = cp.Problem(cp.Minimize(c @ x), [x >= 0])
    layer = ConvexLayer(problem, [c], [x], derivative="lpgd", tau=10.0, on_failure=on_failure)
    c = torch.ones(3, 2, requires_grad=True)
    (y,) = layer(c)
    incoming = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.01, 0.0]])  # row 1 moves beyond 0
    if on_failure == "raise":
        with pytest.raises(Exception, match=r"rows 1: .*perturbed problem failed"):
            y.backward(incoming)
    else:
        y.backward(incoming)
        assert c.grad.abs().max() < 1e-4


def test_copies():
    layer = ConvexLayer(*projection(SETS["simplex"][0]), derivative="lpgd", tau=0.5)
    model = torch.nn.ModuleDict({"layer": layer, "linear": torch.nn.Linear(N, N)})
    x = torch.randn(3, N)
    (y,) = layer(x)
    for twin in (copy.deepcopy(model)["layer"], pickle.loads(pickle.dumps(layer))):
        assert repr(twin) == repr(layer)
        assert_identical(twin(x)[0], y)
        assert twin(x[:2])[0].shape == (2, N)
    assert "layer" not in {key.split(".")[0] for key in model.state_dict()}


def test_workers():
    problem = projection(SETS["box"][0])
    x = torch.randn(7, N)
    assert_identical(ConvexLayer(*problem, workers=3)(x)[0], ConvexLayer(*problem)(x)[0])


def test_rows_do_not_disturb_each_other():
    layer = ConvexLayer(*projection(SETS["simplex"][0]))
    x = torch.randn(3, N, dtype=torch.float64, requires_grad=True)
    incoming = torch.randn(3, N, dtype=torch.float64)
    incoming[1], incoming[2] = 0.0, math.nan
    (gradient,) = torch.autograd.grad(layer(x)[0], x, incoming)
    assert_identical(gradient[1], torch.zeros(N, dtype=torch.float64))
    assert gradient[2].isnan().all()
    (alone,) = torch.autograd.grad(layer(x[0])[0], x, incoming[0])
    assert_near(gradient[0], alone[0], order=1)


@pytest.mark.filterwarnings("ignore:.*is deprecated")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
def test_transforms_that_cannot_be_raise_by_name():
    layer = ConvexLayer(*projection(SETS["box"][0]))
    with pytest.raises(dl.UnsupportedOperationError, match="ConvexLayer: a solver runs on the host"):
        torch.vmap(lambda x: layer(x)[0])(torch.randn(2, N))
    x = torch.randn(2, N)
    torch.compiler.reset()
    compiled = torch.compile(lambda x: layer(x * 2)[0] + 1, backend="aot_eager")
    assert_near(compiled(x), layer(x * 2)[0] + 1)
    torch.compiler.reset()
    with pytest.raises(Exception, match="a solver runs on the host"):
        torch.compile(lambda x: layer(x)[0], backend="aot_eager", fullgraph=True)(x)


def test_geometric_program_and_dual_variables():
    x, a = cp.Variable(pos=True), cp.Parameter(pos=True)
    layer = ConvexLayer(cp.Problem(cp.Minimize(x + a / x)), [a], [x], gp=True)
    a_value = torch.tensor(4.0, dtype=torch.float64, requires_grad=True)
    (y,) = layer(a_value)  # x = sqrt(a)
    y.backward()
    torch.testing.assert_close(y, torch.tensor(2.0).double(), rtol=0, atol=1e-3)
    torch.testing.assert_close(a_value.grad, torch.tensor(0.25).double(), rtol=0, atol=1e-2)
    x, b = cp.Variable(), cp.Parameter()
    constraint = x >= b
    layer = ConvexLayer(cp.Problem(cp.Minimize(x**2), [constraint]), [b], [x, constraint.dual_variables[0]])
    primal, dual = layer(torch.tensor([1.0, -1.0], dtype=torch.float64))
    torch.testing.assert_close(primal, torch.tensor([1.0, 0.0]).double(), rtol=0, atol=1e-3)
    torch.testing.assert_close(dual, torch.tensor([2.0, 0.0]).double(), rtol=0, atol=1e-2)


def not_parametrised():
    x, a, b = cp.Variable(), cp.Parameter(), cp.Parameter()
    return cp.Problem(cp.Minimize(x**2 + a * b * x)), [a, b], [x]


PROBLEM = projection(SETS["box"][0])
BAD = [
    (TypeError, "'problem' must be a cvxpy.Problem", lambda: ConvexLayer("min", [], [])),
    (TypeError, "'parameters' must be a list", lambda: ConvexLayer(PROBLEM[0], PROBLEM[1][0], PROBLEM[2])),
    (ValueError, "'parameters' must hold exactly", lambda: ConvexLayer(PROBLEM[0], [], PROBLEM[2])),
    (ValueError, "'problem' must follow the rules", lambda: ConvexLayer(*not_parametrised())),
    (ValueError, "'derivative' must be one of", lambda: ConvexLayer(*PROBLEM, derivative="exact")),
    (ValueError, "'tau' must be given with LPGD", lambda: ConvexLayer(*PROBLEM, derivative="lpgd")),
    (ValueError, "'tau' must be given with LPGD", lambda: ConvexLayer(*PROBLEM, tau=1.0)),
    (ValueError, "'rho' must be", lambda: ConvexLayer(*PROBLEM, derivative="lpgd", tau=1.0, rho=-1.0)),
    (ValueError, "'on_failure' must be one of", lambda: ConvexLayer(*PROBLEM, on_failure="skip")),
    (ValueError, "'workers' must be", lambda: ConvexLayer(*PROBLEM, workers=0)),
    (ValueError, "one tensor for each of the 1 parameters, got 2", lambda: ConvexLayer(*PROBLEM)(*[torch.ones(N)] * 2)),
    (TypeError, "'parameters.0.' must have a floating", lambda: ConvexLayer(*PROBLEM)(torch.ones(N).long())),
    (ValueError, "'parameters.0.' must have shape", lambda: ConvexLayer(*PROBLEM)(torch.ones(N + 1))),
    (ValueError, "'parameters.0.' must be finite", lambda: ConvexLayer(*PROBLEM)(torch.full((N,), math.nan))),
    (ValueError, "'warm_start' must be False", lambda: ConvexLayer(*PROBLEM)(torch.ones(N), warm_start=True)),
    (ValueError, "must broadcast, got", lambda: ConvexLayer(*bounded_below())(torch.ones(2, 2), torch.ones(3, 2))),
]


@pytest.mark.parametrize(("error", "shown", "call"), BAD, ids=lambda v: v if isinstance(v, str) else "")
def test_bad_input(error, shown, call):
    with pytest.raises(error, match=rf"^difflayers\.surrogates\.ConvexLayer: .*{shown}") as caught:
        call()
    assert "\n" not in str(caught.value)
