"""AbsolutePose and Homography: all solutions, gradients by the implicit function theorem, weighted fits."""

from itertools import product

import pytest
import torch

import difflayers as dl
from difflayers.ransac import _implicit_solve

from . import scenes

POSE, HOMOGRAPHY = dl.ransac.AbsolutePose(), dl.ransac.Homography()


def nearest(solutions, truth):
    """The largest difference of entries between the truth and the valid solution nearest to it, `[B]`."""
    found = scenes.up_to_sign(solutions.models, truth.unsqueeze(1)) if truth.shape[-1] == 3 else solutions.models
    apart = (found - truth.unsqueeze(1)).flatten(2).abs().amax(-1)
    return torch.where(solutions.valid, apart, torch.inf).amin(-1)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_pose_is_among_the_solutions(dtype):
    points, truth = scenes.poses(2000, 3)
    solutions = POSE.solve(points.to(dtype))
    assert solutions.models.dtype == dtype
    error = nearest(solutions, truth.to(dtype))
    assert (error < (1e-8 if dtype == torch.float64 else 1e-2)).double().mean() >= (
        0.999 if dtype == torch.float64 else 0.98
    )


def test_poses_are_rotations_that_map_the_points():
    points, _ = scenes.poses(500, 3, seed=1)
    solutions = POSE.solve(points)
    rotation = solutions.models[..., :3][solutions.valid]
    assert (rotation @ rotation.mT - torch.eye(3)).abs().max() < 1e-9
    assert (torch.linalg.det(rotation) - 1).abs().max() < 1e-9
    residual = POSE.residual(solutions.models, points.unsqueeze(1))[solutions.valid]
    assert residual.max() < 1e-7
    assert (solutions.models[~solutions.valid] == 0).all()


def test_pose_kernel_finds_what_the_reference_finds():
    points, _ = scenes.poses(400, 3, seed=2)
    solutions = POSE.solve(points)
    models, counts = POSE.reference(points)
    assert (solutions.valid.sum(-1) == counts).double().mean() > 0.99
    same = solutions.valid.sum(-1) == counts
    apart = (solutions.models.unsqueeze(2) - models.unsqueeze(1)).flatten(3).abs().amax(-1)
    slots = torch.arange(4) < counts.unsqueeze(-1)
    apart = torch.where(slots.unsqueeze(1), apart, torch.inf).amin(-1)
    assert apart[same][solutions.valid[same]].max() < 1e-6


def test_homography_maps_its_sample():
    points, _truth = scenes.homographies(500, 4)
    solutions = HOMOGRAPHY.solve(points)
    assert solutions.valid.all()
    assert HOMOGRAPHY.residual(solutions.models, points.unsqueeze(1)).max() < 1e-6
    models, counts = HOMOGRAPHY.reference(points)
    assert (counts == 1).all()
    assert (scenes.up_to_sign(models, solutions.models) - solutions.models).abs().max() < 1e-6


def finite_differences(solver, points, weight, step):
    """The derivative of sum(weight * models) by the points, of fourth order."""
    result = torch.zeros_like(points)
    with torch.no_grad():
        for i, j in product(range(points.shape[1]), range(points.shape[2])):
            for factor, share in ((1, 8 / 12), (-1, -8 / 12), (2, -1 / 12), (-2, 1 / 12)):
                moved = points.clone()
                moved[:, i, j] += factor * step
                models = solver.solve(moved).models
                result[:, i, j] += share * (weight * models).flatten(1).sum(1) / step
    return result


def test_pose_gradient_is_the_derivative():
    points, _ = scenes.poses(300, 3, seed=3)
    points.requires_grad_()
    solutions = POSE.solve(points)
    # where a small step does not reach the next branch, and differences are accurate
    good = (solutions.condition < 300) | ~solutions.valid
    weight = torch.randn_like(solutions.models) * (solutions.valid & good.all(-1, keepdim=True))[..., None, None]
    gradient = torch.autograd.grad((solutions.models * weight).sum(), points)[0]
    expected = finite_differences(POSE, points.detach(), weight, 1e-5)
    error = (gradient - expected).flatten(1).norm(dim=1) / gradient.flatten(1).norm(dim=1).clamp(min=1e-12)
    used = weight.flatten(1).abs().sum(1) > 0
    assert used.sum() > 100
    assert error[used].quantile(0.98) < 1e-6
    assert error[used].max() < 1e-4  # where third derivatives are large, differences are not better


def test_homography_gradient_is_the_derivative():
    """Against autograd through the linear system for h33 = 1, in coordinates moved and scaled by constants."""
    points, _ = scenes.homographies(300, 4, seed=3)
    points.requires_grad_()
    solutions = HOMOGRAPHY.solve(points)
    mean, scale = points.detach().mean(1), points.detach().std((1, 2))
    x, y, u, v = ((points - mean.unsqueeze(1)) / scale[:, None, None]).unbind(-1)
    one, zero = torch.ones_like(x), torch.zeros_like(x)
    first = torch.stack([x, y, one, zero, zero, zero, -u * x, -u * y], -1)
    second = torch.stack([zero, zero, zero, x, y, one, -v * x, -v * y], -1)
    h = torch.linalg.solve(torch.cat([first, second], 1), torch.cat([u, v], 1))
    h = torch.cat([h, torch.ones_like(h[:, :1])], 1).view(-1, 3, 3)
    before, after = torch.zeros_like(h), torch.zeros_like(h)
    before[:, 0, 0] = before[:, 1, 1] = 1 / scale
    before[:, :2, 2] = -mean[:, :2] / scale.unsqueeze(1)
    after[:, 0, 0] = after[:, 1, 1] = scale
    after[:, :2, 2] = mean[:, 2:]
    before[:, 2, 2] = after[:, 2, 2] = 1
    h = after @ h @ before
    h = scenes.up_to_sign(h / h.flatten(1).norm(dim=1)[:, None, None], solutions.models.detach()[:, 0])
    weight = torch.randn_like(h)
    gradient = torch.autograd.grad((solutions.models[:, 0] * weight).sum(), points)[0]
    expected = torch.autograd.grad((h * weight).sum(), points)[0]
    error = (gradient - expected).flatten(1).norm(dim=1) / expected.flatten(1).norm(dim=1)
    assert error.max() < 1e-9


@pytest.mark.parametrize(("solver", "make"), [(POSE, scenes.poses), (HOMOGRAPHY, scenes.homographies)])
def test_kernel_differentiates_as_the_plain_path(solver, make):
    points, _ = make(50, solver.sample_size, seed=4)
    points.requires_grad_()
    solutions = solver.solve(points)
    counts, models = solutions.valid.sum(-1), solutions.models.detach()
    weight = torch.randn_like(models)
    gradient = torch.autograd.grad((solutions.models * weight).sum(), points)[0]
    condition = _implicit_solve.plain_condition(solver, models, counts, points.detach())
    trusted = torch.where(solutions.condition < solver.worst_condition, 1.0, torch.inf)
    plain = _implicit_solve.plain_backward(solver, weight, models, counts, trusted, points.detach())
    torch.testing.assert_close(gradient, plain, rtol=1e-7, atol=1e-9 * float(plain.abs().max()))
    if solver is POSE:  # the homography's kernel measures it in normalised coordinates
        torch.testing.assert_close(condition[solutions.valid], solutions.condition[solutions.valid], rtol=1e-8, atol=0)


def test_no_gradient_where_ill_conditioned():
    points, _ = scenes.poses(1, 3, seed=5)
    points[0, 2, 2:] = points[0, 1, 2:] + 1e-9 * torch.randn(3, dtype=torch.float64)
    points[0, 2, :2] = points[0, 1, :2] + 1e-9
    points.requires_grad_()
    solutions = POSE.solve(points)
    gradient = torch.autograd.grad(solutions.models.sum(), points)[0]
    flagged = ~(solutions.condition < POSE.worst_condition)
    assert flagged.all()
    assert (gradient == 0).all()


@pytest.mark.parametrize("planar", [False, True])
@pytest.mark.parametrize("n", [4, 6, 30])
def test_pose_fit_is_exact_on_exact_points(n, planar):
    points, truth = scenes.poses(100, n, seed=6, planar=planar)
    weights = torch.rand(100, n, dtype=torch.float64) + 0.1
    models, valid = POSE.fit(points, weights)
    assert valid.all()
    share = ((models - truth).flatten(1).abs().amax(-1) < 1e-7).double().mean()
    assert share >= (0.95 if n == 4 else 0.99)  # 4 points may have two poses that are equally near


def test_fits_ignore_points_of_no_weight():
    points, truth = scenes.homographies(20, 30, seed=7)
    points[:, :10] += 100
    weights = torch.ones(20, 30, dtype=torch.float64)
    weights[:, :10] = 0
    models, valid = HOMOGRAPHY.fit(points, weights)
    assert valid.all()
    assert (scenes.up_to_sign(models, truth) - truth).abs().max() < 1e-7
    assert not HOMOGRAPHY.fit(points, torch.zeros(20, 30, dtype=torch.float64))[1].any()
    assert not POSE.fit(torch.zeros(2, 5, 5), torch.zeros(2, 5))[1].any()


def test_degenerate_samples():
    line = torch.tensor([[0.0, 0, 0, 0], [1, 1, 1, 2], [2, 2, 2, 4], [0, 3, 1, 0]], dtype=torch.float64)
    good, _ = scenes.homographies(1, 4, seed=8)
    assert HOMOGRAPHY.degenerate(torch.stack([line, torch.zeros(4, 4, dtype=torch.float64), good[0]])).tolist() == [
        True, True, False,
    ]  # fmt: skip
    space = torch.tensor([[0.0, 0, 0, 0, 0], [0, 0, 1, 1, 1], [0, 0, 2, 2, 2]], dtype=torch.float64)
    assert POSE.degenerate(space)
    assert not POSE.solve(space).valid.any()
    assert not POSE.degenerate(scenes.poses(1, 3)[0]).any()


def test_points_behind_the_camera_are_infinitely_far():
    points, truth = scenes.poses(1, 3)
    behind = points.clone()
    behind[..., 2:] = -50 * truth[0, 2, :3]
    assert POSE.residual(truth, behind).isinf().all()


def test_homography_that_turns_the_sample_over_is_implausible():
    points, truth = scenes.homographies(1, 4, seed=9)
    assert HOMOGRAPHY.plausible(truth, points).all()
    horizon = torch.tensor([[[1.0, 0, 0], [0, 1, 0], [1, 0, -500]]], dtype=torch.float64)  # x = 500 goes to infinity
    sample = torch.tensor([[[0.0, 0, 0, 0], [1000, 0, 0, 0], [0, 900, 0, 0], [1000, 900, 0, 0]]], dtype=torch.float64)
    assert not HOMOGRAPHY.plausible(horizon, sample).any()


@pytest.mark.parametrize("solver", [POSE, HOMOGRAPHY])
def test_any_batch_shape(solver):
    make = scenes.poses if solver is POSE else scenes.homographies
    points = make(6, solver.sample_size)[0]
    flat, shaped = solver.solve(points), solver.solve(points.view(2, 3, *points.shape[1:]))
    assert shaped.valid.shape == (2, 3, solver.max_solutions)
    torch.testing.assert_close(shaped.models.flatten(0, 1), flat.models)
    assert solver.solve(points[:0]).models.shape == (0, solver.max_solutions, *solver.model_shape)
