"""IRLS: where it converges the score is stationary, and the gradient is that of converging again."""

import pytest
import torch

import difflayers as dl
from difflayers.ransac import IRLS, MSAC, Circle2D, Homography, Line2D, Plane3D, RigidTransform3D, Scorer

from .test_levenberg_marquardt import CASES, DTYPE, starts_of


class Smooth(Scorer):
    """exp(-u)"""

    def of_squared(self, ratio):
        return (-ratio).exp()


FITTED = ["line", "plane", "circle", "rigid", "similarity"]  # those of which `fit` is least squares of the residual


@pytest.fixture(params=FITTED)
def case(request):
    return CASES[request.param](torch.Generator().manual_seed(3), 1.0)


def refine(case, models, scorer, points=None, steps=300):
    points = case.points if points is None else points
    threshold = torch.tensor([case.threshold], dtype=DTYPE)
    return IRLS(scorer, steps=steps).refine(case.solver, models, points[None], None, threshold)


@pytest.mark.parametrize("scorer", [MSAC(), Smooth()])
def test_the_score_is_stationary(case, scorer):
    found = refine(case, starts_of(case, 2), scorer)

    def score(z):
        ratio = case.solver.squared_residual(case.solver.retract(found, z), case.points[None, None]) / case.threshold**2
        return scorer.of_squared(ratio).sum()

    z = torch.zeros(1, 2, case.solver.freedom, dtype=DTYPE)
    slope = torch.autograd.functional.jacobian(score, z)
    curvature = torch.autograd.functional.hessian(score, z).reshape(z.numel(), -1).diagonal().abs().sqrt()
    assert float((slope.flatten() / curvature).abs().max()) < 1e-5


@pytest.mark.parametrize("scorer", [MSAC(), Smooth()])
def test_the_gradient_is_that_of_converging_again(case, scorer):
    points = case.points.clone().requires_grad_()
    found = refine(case, starts_of(case, 1), scorer, points)
    generator = torch.Generator().manual_seed(1)
    direction = torch.randn(found.shape, dtype=DTYPE, generator=generator)
    (gradient,) = torch.autograd.grad((found * direction).sum(), points)
    along, size, values = torch.randn(points.shape, dtype=DTYPE, generator=generator), 1e-3 * case.threshold, []
    for step in (2, 1, -1, -2):
        again = refine(case, found.detach(), scorer, case.points + step * size * along)
        values.append(float((again * direction).sum()))
    expected = (8 * (values[1] - values[2]) - (values[0] - values[3])) / (12 * size)
    assert abs(float((gradient * along).sum()) - expected) < 1e-6 * float((gradient * along).norm())


def test_a_model_that_has_not_converged_has_no_gradient(case):
    points = case.points.clone().requires_grad_()
    found = refine(case, starts_of(case, 1), Smooth(), points, steps=1)
    (gradient,) = torch.autograd.grad(found.sum(), points)
    assert bool((gradient == 0).all())


def test_a_homography_is_improved_in_float32():
    case = CASES["homography"](torch.Generator().manual_seed(3), 1.0)

    class Fitted(Homography):
        def fit(self, points, weights):
            """The direct linear transform, of points of any coordinates: the smallest right singular vector."""
            x, y, u, v = points.unbind(-1)
            one, zero = torch.ones_like(x), torch.zeros_like(x)
            first = torch.stack([x, y, one, zero, zero, zero, -u * x, -u * y, -u], -1)
            second = torch.stack([zero, zero, zero, x, y, one, -v * x, -v * y, -v], -1)
            rows = weights.sqrt().unsqueeze(-1)
            design = torch.cat([rows * first, rows * second], -2)
            return torch.linalg.svd(design)[2][..., -1, :].unflatten(-1, (3, 3)), weights.sum(-1) > 0

    points, start = case.points[None].float(), starts_of(case, 1).float()
    found = IRLS().refine(Fitted(), start, points, None, torch.tensor([case.threshold]))
    assert found.dtype == torch.float32
    score = lambda m: (Homography().residual(m[0, 0], case.points) < case.threshold).sum()  # noqa: E731
    assert int(score(found.double())) >= int(score(start.double()))


@pytest.mark.parametrize("solver", [Line2D(), Plane3D(), Circle2D(), RigidTransform3D()])
def test_bad_input_comes_back_as_it_was_and_without_nan_gradient(solver):
    points = torch.randn(2, 6, solver.point_size, dtype=DTYPE, requires_grad=True)
    models = torch.randn(2, 3, *solver.model_shape, dtype=DTYPE)
    models[0, 0] = torch.nan
    none = torch.zeros(2, 6, dtype=torch.bool)
    found = IRLS().refine(solver, models, points, none, torch.ones(2, dtype=DTYPE))
    torch.testing.assert_close(found, models, equal_nan=True)
    (gradient,) = torch.autograd.grad(found.nan_to_num().sum() + 0 * points.sum(), points)
    assert bool((gradient == 0).all())
    found = IRLS().refine(solver, models, points, None, torch.full((2,), 1e-9, dtype=DTYPE))
    torch.testing.assert_close(found, models, equal_nan=True)


def test_arguments_are_checked():
    with pytest.raises(TypeError, match=r"IRLS: argument 'scorer' must be a Scorer, got str; try MSAC\(\)"):
        IRLS("msac")
    with pytest.raises(ValueError, match=r"IRLS: argument 'steps' must be at least 0"):
        IRLS(steps=-1)

    class Bare(Line2D):
        fit = dl.ransac.MinimalSolver.fit

    with pytest.raises(dl.UnsupportedOperationError, match="a fit to more points than a minimal sample"):
        IRLS().refine(Bare(), torch.zeros(1, 1, 3), torch.zeros(1, 4, 2), None, torch.ones(1))
