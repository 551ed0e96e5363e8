"""dl.implicit against closed forms, finite differences and differentiation through a solver."""

import math

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

import difflayers as dl

DTYPE = torch.float64


def cubic(x, a):
    """x^3 + x = a, one root for each a"""
    return x**3 + x - a


def solved_cubic(a):
    x = torch.zeros_like(a)
    for _ in range(60):
        x = x - cubic(x, a) / (3 * x**2 + 1)
    return x


def ridge(x, design, target, penalty):
    """the gradient of |design x - target|^2 / 2 + penalty |x|^2 / 2"""
    residual = (design @ x.unsqueeze(-1)).squeeze(-1) - target
    return (design.mT @ residual.unsqueeze(-1)).squeeze(-1) + penalty * x


def solved_ridge(design, target, penalty):
    identity = torch.eye(design.shape[-1], dtype=design.dtype)
    right = design.mT @ target.unsqueeze(-1)
    return torch.linalg.solve(design.mT @ design + penalty * identity, right).squeeze(-1)


@pytest.fixture
def problem():
    generator = torch.Generator().manual_seed(0)
    design = torch.randn(4, 6, 3, dtype=DTYPE, generator=generator, requires_grad=True)
    target = torch.randn(4, 6, dtype=DTYPE, generator=generator, requires_grad=True)
    return design, target, torch.tensor(0.7, dtype=DTYPE, requires_grad=True)


@pytest.mark.parametrize("solve", ["dense", "cg"])
def test_a_minimum_has_the_gradient_of_its_closed_form(problem, solve):
    found = dl.implicit.root(ridge, solved_ridge(*problem).detach(), *problem, batch_dims=1, solve=solve)
    direction = torch.randn(found.shape, dtype=DTYPE, generator=torch.Generator().manual_seed(1))
    ours = torch.autograd.grad((found * direction).sum(), problem)
    expected = torch.autograd.grad((solved_ridge(*problem) * direction).sum(), problem)
    for a, b in zip(ours, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("batch_dims", [0, 1, 2, 3])
def test_batched_and_joint_systems_agree(batch_dims):
    a = torch.randn(2, 3, 2, dtype=DTYPE, requires_grad=True)
    x = dl.implicit.root(cubic, solved_cubic(a.detach()), a, batch_dims=batch_dims)
    (gradient,) = torch.autograd.grad(x.sum(), a)
    torch.testing.assert_close(gradient, 1 / (3 * x.detach() ** 2 + 1))
    assert torch.equal(x, solved_cubic(a.detach()))


@pytest.mark.parametrize("solve", ["dense", "cg"])
def test_first_and_second_derivatives_are_those_of_finite_differences(problem, solve):
    def layer(design, target, penalty):
        solution = solved_ridge(design.detach(), target.detach(), penalty.detach())
        return dl.implicit.root(ridge, solution, design, target, penalty, batch_dims=1, solve=solve)

    assert gradcheck(layer, problem)
    assert gradgradcheck(layer, problem)


def test_double_backward_of_a_nonlinear_root():
    a = torch.tensor([0.3, -2.0], dtype=DTYPE, requires_grad=True)
    layer = lambda a: dl.implicit.root(cubic, solved_cubic(a.detach()), a, batch_dims=1)  # noqa: E731
    assert gradgradcheck(layer, (a,))
    (first,) = torch.autograd.grad(layer(a).sum(), a, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), a, create_graph=True)
    (third,) = torch.autograd.grad(second.sum(), a)
    x = solved_cubic(a.detach())
    s = 3 * x**2 + 1  # x' = 1 / s, x'' = -6 x / s^3, x''' = -6 / s^4 + 108 x^2 / s^5
    torch.testing.assert_close(second.detach(), -6 * x / s**3)
    torch.testing.assert_close(third, -6 / s**4 + 108 * x**2 / s**5)


@pytest.mark.parametrize("solve", ["dense", "neumann"])
def test_a_fixed_point_has_the_gradient_of_its_iteration(solve):
    generator = torch.Generator().manual_seed(0)
    matrix = (0.2 * torch.randn(3, 3, dtype=DTYPE, generator=generator)).requires_grad_()
    offset = torch.randn(5, 3, dtype=DTYPE, generator=generator, requires_grad=True)
    step = lambda x, matrix, offset: torch.tanh(x @ matrix.T + offset)  # noqa: E731
    x = torch.zeros(5, 3, dtype=DTYPE)
    for _ in range(200):
        x = step(x, matrix, offset)
    expected = torch.autograd.grad(x.square().sum(), (matrix, offset))
    found = dl.implicit.fixed_point(step, x, matrix, offset, batch_dims=1, solve=solve)
    for a, b in zip(torch.autograd.grad(found.square().sum(), (matrix, offset)), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


def test_a_solve_of_the_callers_own(problem):
    calls = []

    def solve(product, g):
        calls.append(g.shape)
        u = torch.zeros_like(g)
        for _ in range(5000):
            u = u + 0.05 * (g - product(u))
        return u

    solution = solved_ridge(*problem).detach()
    (ours,) = torch.autograd.grad(
        dl.implicit.root(ridge, solution, *problem, batch_dims=1, solve=solve).sum(), problem[0]
    )
    (expected,) = torch.autograd.grad(solved_ridge(*problem).sum(), problem[0])
    torch.testing.assert_close(ours, expected)
    assert calls == [(4, 3)]


def test_arguments_that_are_no_tensors_or_need_no_gradient():
    a = torch.tensor([2.0], dtype=DTYPE, requires_grad=True)
    equation = lambda x, power, a, shift: x**power - a - shift  # noqa: E731
    shift = torch.tensor(1.0, dtype=DTYPE)
    x = dl.implicit.root(equation, torch.tensor([3.0], dtype=DTYPE).sqrt(), 2, a, shift)
    x.backward()
    torch.testing.assert_close(a.grad, 1 / (2 * x.detach()))
    assert shift.grad is None
    unused = torch.tensor([1.0], dtype=DTYPE, requires_grad=True)
    (gradient,) = torch.autograd.grad(
        dl.implicit.root(lambda x, a, b: x - a, a.detach(), a, unused).sum(), unused, allow_unused=True
    )
    assert gradient is None or gradient.item() == 0


@pytest.mark.parametrize("policy", ["zero", "nan"])
def test_a_point_that_is_no_solution_gets_no_gradient(policy):
    a = torch.tensor([1.0, 2.0, 3.0], dtype=DTYPE, requires_grad=True)
    wrong = solved_cubic(a.detach())
    wrong[1] += 0.1
    x = dl.implicit.root(cubic, wrong, a, batch_dims=1, on_failure=policy)
    assert torch.equal(x, wrong)
    x.sum().backward()
    assert a.grad is not None
    assert a.grad[1].item() == 0 if policy == "zero" else a.grad[1].isnan()
    torch.testing.assert_close(a.grad[::2], (1 / (3 * wrong**2 + 1))[::2])


def test_a_nan_solution_is_no_solution():
    a = torch.tensor([1.0, 2.0], dtype=DTYPE, requires_grad=True)
    x = solved_cubic(a.detach())
    x[0] = torch.nan
    dl.implicit.root(cubic, x, a, batch_dims=1, on_failure="zero").sum().backward()
    assert a.grad is not None
    assert a.grad[0].item() == 0
    assert a.grad[1] > 0


def test_refusals_name_the_problem_and_the_residual():
    a = torch.tensor([1.0, 2.0, 3.0], dtype=DTYPE, requires_grad=True)
    wrong = solved_cubic(a.detach())
    wrong[2] += 0.1
    with pytest.raises(dl.SolverError, match=r"implicit\.root: .* residual of 0\.\d+ in problem 2 \(1 of 3") as error:
        dl.implicit.root(cubic, wrong, a, batch_dims=1)
    assert error.value.rows == [2]
    trusted = dl.implicit.root(cubic, wrong, a, batch_dims=1, tolerance=math.inf)
    trusted.sum().backward()
    assert bool(a.grad.isfinite().all())


@pytest.mark.parametrize("solve", ["dense", "cg"])
def test_a_singular_system_is_refused(solve):
    # x1 + x2 = a twice: a line of solutions
    equation = lambda x, a: (x.sum(-1) - a).unsqueeze(-1).expand_as(x)  # noqa: E731
    a = torch.tensor([1.0], dtype=DTYPE, requires_grad=True)
    half = torch.tensor([[0.25, 0.75]], dtype=DTYPE)
    away = torch.tensor([[1.0, -1.0]], dtype=DTYPE)  # not in the range of the transposed derivative
    with pytest.raises(dl.SolverError, match="linear system of problem 0"):
        (dl.implicit.root(equation, half, a, batch_dims=1, solve=solve) * away).sum().backward()
    (dl.implicit.root(equation, half, a, batch_dims=1, solve=solve, on_failure="zero") * away).sum().backward()
    assert a.grad.item() == 0


def test_a_series_that_diverges_is_refused():
    a = torch.tensor([1.0], dtype=DTYPE, requires_grad=True)
    x = dl.implicit.root(lambda x, a: 3 * x - a, a.detach() / 3, a, solve="neumann", max_steps=50)
    with pytest.raises(dl.SolverError, match="not solved in 50 steps"):
        x.backward()


def test_float32_and_no_gradient_and_empty():
    a = torch.tensor([4.0], requires_grad=True)
    x = dl.implicit.root(lambda x, a: x * x - a, torch.tensor([2.0]), a)
    assert x.dtype == torch.float32
    x.backward()
    torch.testing.assert_close(a.grad, torch.tensor([0.25]))
    assert not dl.implicit.root(lambda x, a: x - a, a.detach(), a.detach()).requires_grad
    empty = torch.zeros(0, 3, requires_grad=True)
    dl.implicit.root(lambda x, a: x - a, torch.zeros(0, 3), empty, batch_dims=1).sum().backward()
    assert empty.grad is not None
    assert empty.grad.shape == (0, 3)


def test_arguments_are_checked():
    x, F = torch.zeros(2), lambda x: x
    for error, match, call in [
        (TypeError, "'optimality' must be callable", lambda: dl.implicit.root(3, x)),
        (TypeError, "'step' must be callable", lambda: dl.implicit.fixed_point(3, x)),
        (TypeError, "floating-point", lambda: dl.implicit.root(F, torch.zeros(2, dtype=torch.int64))),
        (TypeError, "float32 or float64", lambda: dl.implicit.root(F, x.half())),
        (ValueError, "'batch_dims' must be in", lambda: dl.implicit.root(F, x, batch_dims=2)),
        (ValueError, "'solve' must be one of", lambda: dl.implicit.root(F, x, solve="lu")),
        (ValueError, "'on_failure' must be one of", lambda: dl.implicit.root(F, x, on_failure="ignore")),
        (ValueError, "'tolerance' must be", lambda: dl.implicit.root(F, x, tolerance=-1.0)),
        (ValueError, "'max_steps' must be", lambda: dl.implicit.root(F, x, max_steps=0)),
        (ValueError, r"must return a tensor like the solution", lambda: dl.implicit.root(lambda x: x.sum(), x)),
        (ValueError, r"must return a tensor like the solution", lambda: dl.implicit.fixed_point(lambda x: x.sum(), x)),
    ]:
        with pytest.raises(error, match=match):
            call()


def test_transforms_are_refused_by_name():
    with pytest.raises(dl.UnsupportedOperationError, match=r"implicit\.root: .* batch_dims in place of vmap"):
        torch.func.vmap(lambda a: dl.implicit.root(lambda x, a: x - a, a, a))(torch.zeros(3, 2))
