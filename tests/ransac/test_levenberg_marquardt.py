"""Levenberg-Marquardt: the compiled one against SciPy and plain PyTorch, its constraints, its gradient, bad input."""

from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

import difflayers as dl
from difflayers import _ops
from difflayers.ransac import (
    Circle2D,
    Homography,
    LevenbergMarquardt,
    Line2D,
    MinimalSolver,
    Plane3D,
    RigidTransform3D,
    manifolds,
)
from difflayers.ransac.refiners._descent import descend
from difflayers.ransac.refiners._losses import LOSSES
from difflayers.ransac.refiners.levenberg_marquardt import COMPILED

from .refinement_models import Essential, Fundamental, Pose, small_rotation, two_views

DTYPE = torch.float64
COUNT, WRONG = 60, 15
INTRINSIC = torch.tensor([[800.0, 0, 500], [0, 800, 400], [0, 0, 1]], dtype=DTYPE)


class Case(NamedTuple):
    solver: MinimalSolver
    truth: Tensor  # [*model_shape]
    points: Tensor  # [N, d], the first WRONG of them wrong
    threshold: float


def random(generator, *shape):
    return torch.randn(*shape, dtype=DTYPE, generator=generator)


def essential(g, noise):
    points, R, t = two_views(g, COUNT, WRONG, noise * 1e-3)
    E = manifolds.cross_matrix(t) @ R
    return Case(Essential(), E / E.norm(), points, 3e-3)


def fundamental(g, noise):
    normalised = essential(g, noise)
    inverse = torch.linalg.inv(INTRINSIC)
    F = inverse.T @ normalised.truth @ inverse
    centre = INTRINSIC[:2, 2].repeat(2)
    return Case(Fundamental(), F / F.norm(), normalised.points * 800 + centre, 2.4)


def homography(g, noise):
    H = torch.eye(3, dtype=DTYPE) + torch.tensor([[0.1, 0.05, 30], [-0.04, 0.02, -20], [1e-4, 5e-5, 0]], dtype=DTYPE)
    x = 1000 * torch.rand(COUNT, 2, dtype=DTYPE, generator=g)
    y = torch.cat([x, torch.ones_like(x[:, :1])], -1) @ H.T
    points = torch.cat([x, y[:, :2] / y[:, 2:] + noise * random(g, COUNT, 2)], -1)
    points[:WRONG, 2:] = 1000 * torch.rand(WRONG, 2, dtype=DTYPE, generator=g)
    return Case(Homography(), H / H.norm(), points, 3.0)


def pose(g, noise):
    model = torch.cat([small_rotation(g), torch.tensor([[0.3], [-0.2], [4.0]], dtype=DTYPE)], -1)
    X = random(g, COUNT, 3)
    Y = X @ model[:, :3].T + model[:, 3]
    points = torch.cat([Y[:, :2] / Y[:, 2:] + 1e-3 * noise * random(g, COUNT, 2), X], -1)
    points[:WRONG, :2] = random(g, WRONG, 2)
    return Case(Pose(), model, points, 3e-3)


def motion(scale):
    def case(g, noise):
        model = torch.cat([(1.7 if scale else 1.0) * small_rotation(g), 5 * random(g, 3, 1)], -1)
        x = random(g, COUNT, 3) + 10
        y = x @ model[:, :3].T + model[:, 3] + 0.01 * noise * random(g, COUNT, 3)
        y[:WRONG] += random(g, WRONG, 3)
        return Case(RigidTransform3D(scale), model, torch.cat([x, y], -1), 0.04)

    return case


def line(g, noise):
    x = 10 * torch.rand(COUNT, 1, dtype=DTYPE, generator=g)
    y = 2 * x + 1 + 0.05 * noise * random(g, COUNT, 1)
    y[:WRONG] += 5 * random(g, WRONG, 1)
    return Case(Line2D(), torch.tensor([2.0, -1, 1], dtype=DTYPE) / 5**0.5, torch.cat([x, y], -1), 0.1)


def plane(g, noise):
    xy = 10 * torch.rand(COUNT, 2, dtype=DTYPE, generator=g)
    z = (xy @ torch.tensor([[0.5], [-1.0]], dtype=DTYPE)) + 3 + 0.05 * noise * random(g, COUNT, 1)
    z[:WRONG] += 5 * random(g, WRONG, 1)
    return Case(Plane3D(), torch.tensor([0.5, -1, -1, 3], dtype=DTYPE) / 1.5, torch.cat([xy, z], -1), 0.15)


def circle(g, noise):
    angle = 4 * torch.rand(COUNT, dtype=DTYPE, generator=g)
    points = torch.stack([3 + 2 * angle.cos(), 2 * angle.sin() - 1], -1) + 0.02 * noise * random(g, COUNT, 2)
    points[:WRONG] += random(g, WRONG, 2)
    return Case(Circle2D(), torch.tensor([3.0, -1, 2], dtype=DTYPE), points, 0.1)


CASES = {
    "essential": essential, "fundamental": fundamental, "homography": homography, "pose": pose, "rigid": motion(False),
    "similarity": motion(True), "line": line, "plane": plane, "circle": circle,
}  # fmt: skip


@pytest.fixture(params=CASES)
def case(request):
    return CASES[request.param](torch.Generator().manual_seed(3), 1.0)


def name_of(solver):
    return COMPILED[solver.problem, solver.kernel]


def steps_for(case, count, generator):
    """Steps [1, count, f] that move residuals by about a threshold."""
    zero = torch.zeros(case.solver.freedom, dtype=DTYPE)
    good = case.points[WRONG:]
    move = lambda z: case.solver.residual_vector(case.solver.retract(case.truth, z), good).flatten()  # noqa: E731
    jacobian = torch.autograd.functional.jacobian(move, zero)
    _, value, right = torch.linalg.svd(jacobian, full_matrices=False)
    # F's weakest directions are far from straight
    size = (0.1 if case.solver.problem == "fundamental" else 0.7) * case.threshold * len(good) ** 0.5
    return (size * random(generator, 1, count, case.solver.freedom) / value / case.solver.freedom**0.5) @ right


def starts_of(case, count, seed=5):
    return case.solver.retract(case.truth, steps_for(case, count, torch.Generator().manual_seed(seed)))


def loss_of(case, models, loss, points=None):
    points = case.points if points is None else points
    ratio = case.solver.squared_residual(models, points[None, None]) / case.threshold**2
    return LOSSES[loss].value(ratio).sum(-1)


def refine(case, models, loss="truncated", steps=100, points=None, mask=None):
    points = case.points if points is None else points
    threshold = torch.tensor([case.threshold], dtype=models.dtype)
    return LevenbergMarquardt(loss, steps=steps).refine(case.solver, models, points[None], mask, threshold)


@pytest.mark.parametrize("loss", LOSSES)
def test_the_compiled_loss_is_the_plain_one(case, loss):
    starts = starts_of(case, 3)
    threshold = torch.tensor([case.threshold], dtype=DTYPE)
    same, found = _ops.refine_models(
        starts.flatten(2), case.points[None], None, threshold, name_of(case.solver), loss, 0
    )
    torch.testing.assert_close(found, loss_of(case, starts, loss), rtol=1e-9, atol=1e-9)
    assert torch.equal(same, starts.flatten(2))


@pytest.mark.parametrize("loss", LOSSES)
def test_the_loss_falls_to_a_minimum(case, loss):
    starts = starts_of(case, 4)
    found = refine(case, starts, loss)
    before, after = loss_of(case, starts, loss), loss_of(case, found, loss)
    assert bool((after <= before).all())
    assert bool((after < 0.999 * before).any())
    # no small step along the set of models is better
    generator = torch.Generator().manual_seed(7)
    for size in (1e-2, 1e-3):
        moved = case.solver.retract(found, size * steps_for(case, 4, generator))
        assert bool((loss_of(case, moved, loss) > after - 1e-7).all())


@pytest.mark.parametrize("loss", ["truncated", "cauchy"])
def test_plain_pytorch_finds_the_same_minimum(case, loss):
    starts = starts_of(case, 1)
    threshold = torch.tensor([case.threshold], dtype=DTYPE)
    plain, value = descend(case.solver, LOSSES[loss], starts, case.points[None], None, threshold, 100)
    torch.testing.assert_close(value, loss_of(case, plain, loss))
    compiled = refine(case, starts, loss)
    # the two start with the same damping along different directions: at the truncation they may part
    if loss == "cauchy" or bool((value - loss_of(case, compiled, loss)).abs() < 1e-6):
        torch.testing.assert_close(plain / plain.norm(), compiled / compiled.norm(), rtol=1e-5, atol=1e-6)
    assert bool(value <= loss_of(case, starts, loss))


@pytest.mark.parametrize("loss", ["truncated", "cauchy"])
def test_scipy_finds_no_better_minimum_near_by(case, loss):
    optimize = pytest.importorskip("scipy.optimize")
    found = refine(case, starts_of(case, 1), loss)[0, 0]
    good = case.points
    if loss == "truncated":  # at its minimum it is least squares of the points within the threshold
        good = good[case.solver.squared_residual(found, good) < case.threshold**2]
    directions = steps_for(case, case.solver.freedom, torch.Generator().manual_seed(9))[0]

    def residuals(z):
        moved = case.solver.retract(found, torch.from_numpy(z) @ directions)
        return case.solver.residual_vector(moved, good) / case.threshold

    if loss == "truncated":
        fun, options = lambda z: residuals(z).flatten().numpy(), {}
    else:  # SciPy's loss is of each number, ours of each vector: f^2 = 0.25 log(1 + 4 u)
        fun, options = lambda z: np.sqrt(np.log1p(4 * residuals(z).square().sum(-1).numpy())), {}
    result = optimize.least_squares(fun, np.zeros(case.solver.freedom), xtol=1e-12, ftol=1e-12, gtol=1e-12, **options)
    # in units of steps that move residuals by a threshold
    assert np.abs(result.x).max() < 2e-4
    assert (fun(np.zeros(case.solver.freedom)) ** 2).sum() <= 2 * result.cost * (1 + 1e-6)


def test_exact_data_stay_exact(case):
    exact = CASES[name_of(case.solver)](torch.Generator().manual_seed(3), 0.0)
    distance = exact.solver.residual(exact.truth, exact.points)
    exact = exact._replace(points=exact.points[(distance < 1e-9) | (distance > 4 * exact.threshold)])
    for start in (exact.truth[None, None], starts_of(exact, 2)):
        found = refine(exact, start)
        distance = exact.solver.residual(found, exact.points[None, None, 1 - (COUNT - WRONG) :])
        assert float(distance.max()) < 1e-9 * max(1.0, float(exact.points.abs().max()))


def test_models_stay_on_their_set(case):
    found = refine(case, 3.0 * starts_of(case, 4) if name_of(case.solver) in ("essential", "fundamental") else
                   starts_of(case, 4), steps=4)  # fmt: skip
    kind = name_of(case.solver)
    if kind in ("essential", "fundamental"):
        value = torch.linalg.svdvals(found)
        assert float((value[..., 2] / value[..., 0]).max()) < 1e-12
        torch.testing.assert_close(found.flatten(2).norm(dim=-1), torch.full((1, 4), 3.0, dtype=DTYPE))
        if kind == "essential":
            torch.testing.assert_close(value[..., 0], value[..., 1], rtol=1e-10, atol=0)
    elif kind == "homography":
        torch.testing.assert_close(found.flatten(2).norm(dim=-1), torch.ones(1, 4, dtype=DTYPE))
    elif kind in ("pose", "rigid", "similarity"):
        product = found[..., :3].mT @ found[..., :3]
        scale = product[..., 0, 0] if kind == "similarity" else torch.ones(1, 4, dtype=DTYPE)
        torch.testing.assert_close(product, scale[..., None, None] * torch.eye(3, dtype=DTYPE).expand(1, 4, 3, 3))
        assert bool((torch.linalg.det(found[..., :3]) > 0).all())
    elif kind in ("line", "plane"):
        torch.testing.assert_close(found[..., :-1].norm(dim=-1), torch.ones(1, 4, dtype=DTYPE))
    else:
        assert bool((found[..., 2] > 0).all())


def test_retraction_at_zero_is_the_model(case):
    zero = torch.zeros(case.solver.freedom, dtype=DTYPE)
    torch.testing.assert_close(case.solver.retract(case.truth, zero), case.truth, rtol=1e-12, atol=1e-14)
    jacobian = torch.autograd.functional.jacobian(lambda z: case.solver.retract(case.truth, z).flatten(), zero)
    value = torch.linalg.svdvals(jacobian / jacobian.norm(dim=0))
    assert len(value) == case.solver.freedom
    assert float(value[-1]) > 1e-7


@pytest.mark.parametrize("loss", LOSSES)
def test_the_gradient_is_that_of_solving_again(case, loss):
    points = case.points.clone().requires_grad_()
    found = refine(case, starts_of(case, 1), loss, points=points)
    generator = torch.Generator().manual_seed(1)
    direction = random(generator, *found.shape)
    (gradient,) = torch.autograd.grad((found * direction).sum(), points)
    if loss == "truncated":
        ratio = case.solver.squared_residual(found.detach()[0, 0], case.points) / case.threshold**2
        assert torch.equal(gradient.norm(dim=-1) > 0, ratio < 1)
    else:
        assert int((gradient.norm(dim=-1) > 0).sum()) >= COUNT - WRONG
    size = 1e-3 * case.threshold
    for _ in range(2):
        along, values = random(generator, *points.shape), []
        for step in (2, 1, -1, -2):
            # with a gradient, so that the optimum is polished
            moved = (case.points + step * size * along).requires_grad_()
            again = refine(case, found.detach(), loss, points=moved).detach()
            values.append(float((again * direction).sum()))
        expected = (8 * (values[1] - values[2]) - (values[0] - values[3])) / (12 * size)
        ours = float((gradient * along).sum())
        assert abs(ours - expected) < 1e-6 * float((gradient * along).norm())


def test_mask_and_batch_are_problems_by_themselves(case):
    starts = starts_of(case, 2).repeat(3, 1, *(1,) * case.truth.dim())
    other = case.points.flip(0)
    points = torch.stack([case.points, other, case.points])
    mask = torch.ones(3, COUNT, dtype=torch.bool)
    mask[2, 20:30] = False
    points[2, 20:30] = 1e9
    points.requires_grad_()
    threshold = torch.full((3,), case.threshold, dtype=DTYPE)
    found = LevenbergMarquardt(steps=100).refine(case.solver, starts, points, mask, threshold)
    alone = refine(case, starts[:1])
    torch.testing.assert_close(found[0], alone[0])
    left = torch.cat([case.points[:20], case.points[30:]])
    torch.testing.assert_close(found[2], refine(case, starts[:1], points=left)[0])
    (gradient,) = torch.autograd.grad(found[2].sum(), points)
    assert bool((gradient[:2] == 0).all())
    assert bool((gradient[2, 20:30] == 0).all())
    assert bool((gradient[2] != 0).any())


def test_bad_input_comes_back_as_it_was_and_without_gradient(case):
    generator = torch.Generator().manual_seed(0)
    nan = torch.full_like(case.truth, torch.nan)[None, None]
    zero = torch.zeros_like(case.truth)[None, None]
    far = case.points + 1e4 * (1 + torch.rand(case.points.shape, dtype=DTYPE, generator=generator))
    one = case.points[-1:]
    none = torch.zeros(1, COUNT, dtype=torch.bool)
    same = case.points[-1:].expand(COUNT, -1)
    truth = case.truth[None, None]
    for models, points, mask in [
        (nan, case.points, None), (zero, case.points, None), (truth, far, None), (truth, one, None),
        (truth, one[:0], None),
        (truth, case.points, none), (truth, same, None), (torch.cat([nan, truth], 1), case.points, None),
    ]:  # fmt: skip
        for loss in LOSSES:
            points = points.clone().requires_grad_()
            found = refine(case, models, loss, points=points, mask=mask)
            assert torch.equal(found.isnan(), models.isnan())
            (gradient,) = torch.autograd.grad(found.nan_to_num().sum() + 0 * points.sum(), points, allow_unused=True)
            assert bool(gradient.isfinite().all())
    for points in (one, one[:0]):
        assert torch.equal(refine(case, truth, points=points), truth)
    assert torch.equal(refine(case, truth, mask=none), truth)


def test_float32_comes_back_as_float32(case):
    starts = starts_of(case, 2)
    single = Case(case.solver, case.truth.float(), case.points.float(), case.threshold)
    found = refine(single, starts.float())
    assert found.dtype == torch.float32
    loss = loss_of(case, found.double(), "truncated", single.points.double())
    exact = loss_of(case, refine(case, starts), "truncated")
    torch.testing.assert_close(loss, exact, rtol=0.3, atol=0.3)


def test_a_model_that_has_not_converged_comes_back_as_it_was_and_without_gradient(case):
    starts = starts_of(case, 6, seed=11).detach()
    points = case.points.clone().requires_grad_()
    found = refine(case, starts, "cauchy", steps=0, points=points)
    converged = (found.detach() != starts).flatten(2).any(-1)[0]
    for h in range(6):
        (gradient,) = torch.autograd.grad(found[0, h].sum(), points, retain_graph=True)
        assert bool(gradient.isfinite().all())
        assert bool(gradient.any()) == bool(converged[h])
        if converged[h]:  # by the steps of Newton's method alone; then at a minimum
            again = refine(case, found[:, h : h + 1].detach(), "cauchy", steps=200)
            torch.testing.assert_close(again[0, 0], found.detach()[0, h], rtol=1e-6, atol=1e-9)


class Offset(MinimalSolver):
    """A user's model in 10 lines: (a, b) with b = a + m."""

    sample_size, point_size, model_shape, freedom = 1, 2, (1,), 1

    def solve(self, sample):
        models = (sample[..., 1] - sample[..., 0]).unsqueeze(-1)
        return models, torch.ones_like(models[..., 0], dtype=torch.bool)

    def residual(self, models, points):
        return (points[..., 1] - points[..., 0] - models).abs()

    def retract(self, models, step):
        return models + step


def test_a_users_model_with_retract_is_refined_and_differentiated():
    points = torch.tensor([[[0.0, 2.1], [1.0, 2.9], [2.0, 4.4], [3.0, 9.0]]], dtype=DTYPE, requires_grad=True)
    start = torch.tensor([[[2.0]]], dtype=DTYPE)
    found = LevenbergMarquardt().refine(Offset(), start, points, None, torch.tensor([1.0], dtype=DTYPE))
    torch.testing.assert_close(found.detach().item(), (2.1 + 1.9 + 2.4) / 3)
    found.sum().backward()
    expected = torch.tensor([[-1.0, 1.0]] * 3 + [[0.0, 0.0]], dtype=DTYPE) / 3
    torch.testing.assert_close(points.grad, expected[None])
    # a distance of exactly 0 has no derivative: no gradient rather than a wrong one
    kink = torch.tensor([[[0.0, 2.0], [1.0, 2.5], [2.0, 4.5]]], dtype=DTYPE, requires_grad=True)
    found = LevenbergMarquardt().refine(Offset(), start, kink, None, torch.tensor([1.0], dtype=DTYPE))
    assert found.item() == 2.0
    (gradient,) = torch.autograd.grad(found.sum(), kink)
    assert bool((gradient == 0).all())


def test_what_cannot_be_done_is_named():
    class Bare(Offset):
        freedom = 0

    with pytest.raises(dl.UnsupportedOperationError, match=r"Bare does not say how a model moves"):
        LevenbergMarquardt().refine(Bare(), torch.zeros(1, 1, 1), torch.zeros(1, 4, 2), None, torch.ones(1))

    class Fixed(Line2D):
        freedom = 0

    points = torch.zeros(1, 4, 2, requires_grad=True)  # compiled, but its gradient needs retract
    LevenbergMarquardt().refine(Fixed(), torch.zeros(1, 1, 3), points.detach(), None, torch.ones(1))
    with pytest.raises(dl.UnsupportedOperationError, match=r"Fixed does not say how a model moves"):
        LevenbergMarquardt().refine(Fixed(), torch.zeros(1, 1, 3), points, None, torch.ones(1))
    with pytest.raises(ValueError, match=r"'loss' must be one of"):
        LevenbergMarquardt("huber")
    with pytest.raises(ValueError, match=r"'steps' must be at least 0"):
        LevenbergMarquardt(steps=-1)
    with pytest.raises(dl.UnsupportedOperationError, match=r"override freedom and retract"):
        MinimalSolver.retract(Offset(), torch.zeros(1), torch.zeros(1))


def test_the_operator_is_one():
    case = CASES["line"](torch.Generator().manual_seed(3), 1.0)
    threshold = torch.tensor([case.threshold], dtype=DTYPE)
    mask = torch.ones(1, COUNT, dtype=torch.bool)
    arguments = (starts_of(case, 2), case.points[None], mask, threshold, "line", "cauchy", 3)
    torch.library.opcheck(torch.ops.difflayers.refine_models.default, arguments)
    for change, match in [
        ({4: "parabola"}, "no model that can be refined is called parabola"), ({5: "huber"}, "no loss"),
        ({0: arguments[0].float()}, "float64"), ({1: case.points[None, :, :1]}, r"points must be \[B, N, 2\]"),
        ({3: threshold.repeat(2)}, "one threshold for each problem"), ({2: mask[:, 1:]}, "mask must be bool"),
    ]:  # fmt: skip
        wrong = [change.get(i, argument) for i, argument in enumerate(arguments)]
        with pytest.raises(RuntimeError, match=match):
            torch.ops.difflayers.refine_models.default(*wrong)
