"""The 5-point and the 7-point solver: all solutions, nothing else, and their gradients."""

import mpmath
import numpy as np
import pytest
import torch

import difflayers as dl
from difflayers import _ops
from difflayers.ransac._implicit_solve import plain_backward, plain_condition

from .two_view_scenes import apart, nearest, samples, solver_of, views

both = pytest.mark.parametrize("name", ["essential", "fundamental"])


@pytest.fixture
def plain(monkeypatch):
    monkeypatch.setattr(_ops, "has_kernel", lambda op, device: False)


@both
def test_the_truth_is_among_the_solutions(name):
    solver, scene = samples(name, 5000)
    solutions = solver.solve(scene.points)
    assert (nearest(solutions, scene.model) < 1e-8).double().mean() >= 0.999


@both
def test_the_truth_is_among_the_solutions_of_plain_pytorch(name, plain):
    solver, scene = samples(name, 1000)
    solutions = solver.solve(scene.points)
    assert (nearest(solutions, scene.model) < 1e-8).double().mean() >= 0.995


@both
def test_float32_points_lose_no_more_than_their_rounding(name):
    solver, scene = samples(name, 2000)
    rounded = scene.points.float()
    single, double = solver.solve(rounded), solver.solve(rounded.double())
    assert single.models.dtype == torch.float32
    assert torch.equal(single.valid, double.valid)
    assert (single.models - double.models).abs().max() < 1e-7
    scale = 1.0 if name == "essential" else 1e-2  # most entries of F in pixels are small
    assert nearest(single, scene.model).median() < 1e-5 * scale


@both
def test_solutions_satisfy_their_equations_and_differ(name):
    solver, scene = samples(name, 2000)
    # random pairs have as good a right to their solutions as views of a scene
    wild = torch.rand(2000, solver.sample_size, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for sample in (scene.points, wild):
        models, valid, _ = solver.solve(sample)
        rows, slots = valid.nonzero(as_tuple=True)
        found = models[rows, slots]
        assert solver.residual(found, sample[rows]).max() < (1e-9 if name == "fundamental" else 1e-12)
        assert (found.flatten(1).norm(dim=1) - 1).abs().max() < 1e-14
        singular = torch.linalg.svdvals(found)
        assert (singular[:, 2] / singular[:, 1]).max() < 1e-7
        if name == "essential":
            assert (singular[:, 0] - singular[:, 1]).abs().max() < 1e-12
        distance = apart(models.unsqueeze(1), models.unsqueeze(2)) + 9 * torch.eye(solver.max_solutions)
        pairs = valid.unsqueeze(1) & valid.unsqueeze(2)
        assert distance[pairs].min() > 1e-9
        assert (models[~valid] == 0).all()


@both
def test_kernel_and_plain_pytorch_find_the_same(name):
    solver, scene = samples(name, 400, seed=3)
    noise = torch.randn(scene.points.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    sample = scene.points + noise * (1e-3 if name == "essential" else 1)
    solutions = solver.solve(sample)
    models, counts = solver.reference(sample)
    agree = solutions.valid.sum(1) == counts
    assert agree.double().mean() > 0.99  # near-double roots may be found by one and not the other
    for slot in range(solver.max_solutions):
        there = agree & solutions.valid[:, slot]
        other = dl.ransac.Solutions(models, torch.arange(solver.max_solutions) < counts.unsqueeze(1))
        distance = nearest(other, solutions.models[:, slot])[there]
        assert (distance < 1e-6).double().mean() > 0.99 if len(distance) else True


def exact_model(name, model, sample):
    """The solution near `model`, to 50 digits, by Gauss-Newton on all its constraints."""
    m = mpmath.matrix([mpmath.mpf(x) for x in model.flatten().tolist()])
    for _ in range(8):
        f = mpmath.matrix(3, 3)
        for i in range(9):
            f[i // 3, i % 3] = m[i]
        rows, values = [], []
        for x, y, u, v in sample:
            row = [u * x, u * y, u, v * x, v * y, v, x, y, mpmath.mpf(1)]
            rows.append(row)
            values.append(mpmath.fsum(a * b for a, b in zip(row, m, strict=True)))
        rows.append([2 * entry for entry in m])
        values.append(mpmath.fsum(entry**2 for entry in m) - 1)
        if name == "fundamental":
            cofactor = [
                f[(i + 1) % 3, (j + 1) % 3] * f[(i + 2) % 3, (j + 2) % 3]
                - f[(i + 1) % 3, (j + 2) % 3] * f[(i + 2) % 3, (j + 1) % 3]
                for i in range(3)
                for j in range(3)
            ]
            rows.append(cofactor)
            values.append(mpmath.fsum(a * b for a, b in zip(cofactor, m, strict=True)) / 3)
        else:
            gram, square = f * f.T, mpmath.fsum(entry**2 for entry in m)
            error = 2 * gram * f - square * f
            values += list(error)
            columns = []
            for k in range(9):
                d = mpmath.matrix(3, 3)
                d[k // 3, k % 3] = 1
                columns.append(list(2 * (d * f.T * f + f * d.T * f + gram * d) - 2 * m[k] * f - square * d))
            rows += [[columns[k][i] for k in range(9)] for i in range(9)]
        jacobian, residual = mpmath.matrix(rows), mpmath.matrix(values)
        step = mpmath.lu_solve(jacobian.T * jacobian, jacobian.T * residual)
        m -= step
        if mpmath.norm(step) < mpmath.mpf(10) ** -40:
            return m
    raise AssertionError("no convergence")


@both
def test_gradient_equals_finite_differences(name):
    """Of roots of all conditions up to 1e6, with differences in 50 digits, in which nothing is lost."""
    solver, scene = samples(name, 3000, seed=5)
    sample = scene.points.requires_grad_()
    models, valid, condition = solver.solve(sample)
    rows, slots = (valid & (condition < 1e6)).nonzero(as_tuple=True)
    order = condition[rows, slots].argsort()
    chosen = order[torch.linspace(0, len(order) - 1, 9).long()]
    assert condition[rows[chosen], slots[chosen]].max() > 1e5
    generator = torch.Generator().manual_seed(0)
    with mpmath.workdps(50):
        step = mpmath.mpf(10) ** -15
        for row, slot in zip(rows[chosen].tolist(), slots[chosen].tolist(), strict=True):
            weight = torch.randn(3, 3, generator=generator, dtype=torch.float64)
            change = torch.randn(solver.sample_size, 4, generator=generator, dtype=torch.float64)
            (gradient,) = torch.autograd.grad((models[row, slot] * weight).sum(), sample, retain_graph=True)
            at, along = sample[row].tolist(), change.tolist()
            ends = []
            for sign in (1, -1):
                moved = [
                    [a + sign * step * d for a, d in zip(p, q, strict=True)] for p, q in zip(at, along, strict=True)
                ]
                ends.append(exact_model(name, models[row, slot].detach(), moved))
            expected = float(
                mpmath.fsum(w * (a - b) for w, a, b in zip(weight.flatten().tolist(), *ends, strict=True)) / (2 * step)
            )
            actual = float((gradient[row] * change).sum())
            assert actual == pytest.approx(expected, rel=1e-6, abs=1e-6 * float(gradient[row].norm()))


@both
def test_plain_gradient_equals_the_kernels(name):
    solver, scene = samples(name, 300, seed=6)
    sample = scene.points.requires_grad_()
    models, valid, condition = solver.solve(sample)
    weight = torch.randn(models.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    (actual,) = torch.autograd.grad((models * weight).sum(), sample)
    counts, fixed = valid.sum(1), sample.detach()
    plain = plain_condition(solver, models.detach(), counts, fixed)
    below = valid & (condition < 1e6)
    torch.testing.assert_close(plain[below], condition[below], rtol=1e-6, atol=0)
    expected = plain_backward(solver, weight, models.detach(), counts, condition, fixed)
    assert ((actual - expected).flatten(1).norm(dim=1) <= 1e-8 * expected.flatten(1).norm(dim=1)).all()


@both
def test_gradient_of_a_sample_near_degeneracy_is_zero_and_flagged(name):
    solver, scene = samples(name, 50, seed=7)
    sample = scene.points.clone()
    sample[:, 1] = sample[:, 0] + 1e-9 * (sample[:, 1] - sample[:, 0])
    sample.requires_grad_()
    models, valid, condition = solver.solve(sample)
    assert valid.any()
    assert (condition[valid] > solver.worst_condition).all()
    (gradient,) = torch.autograd.grad(models.sum(), sample)
    assert (gradient == 0).all()


@both
@pytest.mark.parametrize("with_kernel", [True, False])
def test_degenerate_samples_give_nothing_that_is_not_finite(name, with_kernel, monkeypatch):
    if not with_kernel:
        monkeypatch.setattr(_ops, "has_kernel", lambda op, device: False)
    solver, k = solver_of(name), solver_of(name).sample_size
    scene = views(4, k, planar=True).points
    line = torch.linspace(-0.5, 0.5, k, dtype=torch.float64).unsqueeze(-1) * torch.tensor([1.0, 0.5, -0.7, 0.3])
    twice = scene.clone()
    twice[:, 1] = twice[:, 0]
    batch = torch.cat([
        torch.zeros(1, k, 4), torch.full((1, k, 4), 0.3), line.unsqueeze(0), twice, scene,
        torch.full((1, k, 4), 1e-200), torch.full((1, k, 4), torch.nan),
    ]).double().requires_grad_()  # fmt: skip
    if not with_kernel:
        batch = batch[:-1].detach().requires_grad_()  # the loop masks what is not finite
    models, valid, _ = solver.solve(batch)
    assert models.isfinite().all()
    (gradient,) = torch.autograd.grad(models.square().sum() + models.sum(), batch)
    assert gradient.isfinite().all()
    # equal points, points on a line in both images, a pair given twice: no model
    assert not valid[:7].any()
    degenerate = solver.degenerate(batch.detach())
    assert degenerate[:7].all()
    assert not degenerate[7:11].any()
    if name == "fundamental":
        assert not valid[7:11].any()  # every F of a plane's homography fits
    else:
        assert (nearest(dl.ransac.Solutions(models[7:11], valid[7:11]), views(4, k, planar=True).model) < 1e-8).all()


def test_six_points_on_a_line_are_degenerate_for_the_fundamental_matrix():
    solver, scene = samples("fundamental", 4)
    sample = scene.points.float()
    assert not solver.degenerate(sample).any()
    for image, left_out in ((0, 3), (1, 0)):
        bent = sample.clone()
        others = [i for i in range(7) if i != left_out]
        x = bent[:, others, 2 * image]
        bent[:, others, 2 * image + 1] = 0.3 * x + 100
        assert solver.degenerate(bent).all()
        bent[:, others[0], 2 * image + 1] += 5
        assert not solver.degenerate(bent).any()


@both
def test_the_true_model_is_plausible_whatever_its_sign(name):
    solver, scene = samples(name, 500, seed=8)
    for model in (scene.model, -3 * scene.model):
        assert solver.plausible(model, scene.points).all()
        assert solver.plausible(model.float(), scene.points.float()).double().mean() > 0.99


def test_cheirality_agrees_with_the_four_poses():
    solver, scene = samples("essential", 300, seed=9)
    models, valid, _ = solver.solve(scene.points)
    expected = dl.ransac.recover_pose(models, scene.points.unsqueeze(1)).in_front.all(-1)
    actual = solver.plausible(models, scene.points.unsqueeze(1))
    assert torch.equal(actual[valid], expected[valid])
    assert not actual[valid].all()


def test_a_pair_seen_from_behind_is_not_plausible():
    # a point behind the second camera only: the oriented constraint holds no longer
    solver, scene = samples("fundamental", 200, seed=10)
    generator = torch.Generator().manual_seed(0)
    space = torch.rand(200, 7, 3, generator=generator, dtype=torch.float64) * 4 + torch.tensor([-2.0, -2.0, 4.0])
    space[:, 0] = -space[:, 0]  # behind the first camera; in front of the second one it cannot be checked: both or one
    other = space @ scene.rotation.mT + scene.translation.unsqueeze(1)
    behind = ((other[:, 1:, 2] > 0).all(-1)) & (other[:, 0, 2] > 0)
    points = torch.cat([space[..., :2] / space[..., 2:], other[..., :2] / other[..., 2:]], -1)
    essential = dl.ransac.essential_from_pose(scene.rotation, scene.translation)
    assert not solver.plausible(essential, points)[behind].any()
    assert not solver_of("essential").plausible(essential, points[:, :5])[behind].any()


@both
def test_fit_finds_the_model_of_the_weighted_points(name):
    solver = solver_of(name)
    scene = views(6, 40, pixels=name == "fundamental")
    points, weights = scene.points.clone(), torch.ones(6, 40)
    points[:, 30:] = points[:, 30:].flip(0) * 1.1
    weights[:, 30:] = 0
    model, valid = solver.fit(points, weights)
    assert valid.all()
    assert apart(model, scene.model).max() < 1e-10
    # several fits to the same points, as refinement asks for
    several, _ = solver.fit(points.unsqueeze(1), torch.stack([weights, torch.ones(6, 40)], 1))
    assert apart(several[:, 0], scene.model).max() < 1e-10
    assert apart(several[:, 1], scene.model).min() > 1e-6
    weights[:, 7:] = 0
    assert not solver.fit(points, weights)[1].any()
    model, valid = solver.fit(points * 0, torch.ones(6, 40))
    assert not valid.any()
    assert model.isfinite().all()


@both
def test_gradient_of_fit_is_exact_and_finite_where_there_is_none(name):
    solver = solver_of(name)
    pixels = name == "fundamental"
    scene = views(2, 16, pixels=pixels, noise=2.0 if pixels else 4e-4)
    points, weights = scene.points.requires_grad_(), torch.linspace(0.5, 1, 16, dtype=torch.float64).requires_grad_()

    def model(points, weights):
        result, _ = solver.fit(points, weights.expand(2, 16))
        return result * result[:, :1, 1:2].sign()  # the sign is free

    assert torch.autograd.gradcheck(model, (points, weights), eps=1e-4 if pixels else 3e-7, atol=1e-4, rtol=1e-4)
    equal = torch.full((2, 12, 4), 0.3, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(solver.fit(equal, torch.ones(2, 12).double())[0].sum(), equal)
    assert (gradient == 0).all()


@both
def test_ransac_finds_the_model_among_outliers(name):
    pixels = name == "fundamental"
    scene = views(4, 300, seed=11, pixels=pixels, noise=0.3 if pixels else 0.3 / 800)
    generator = torch.Generator().manual_seed(0)
    points = scene.points.clone()
    points[:, ::2] = points[:, ::2][:, torch.randperm(150, generator=generator)]
    solver = solver_of(name)
    threshold = 1.0 if pixels else 1 / 800
    ransac = dl.ransac.RANSAC(solver, threshold=threshold).eval()
    result = ransac(points.float(), generator=generator)
    assert (result.status == dl.ransac.RansacStatus.FOUND).all()
    clean = solver.residual(result.model.double(), scene.points)
    assert clean.median(-1).values.max() < threshold
    assert (result.inliers[:, 1::2].double().mean(-1) > 0.9).all()
    training = dl.ransac.RANSAC(solver, threshold=threshold, hypotheses=32).train()
    points.requires_grad_()
    kept = training(points, generator=generator).hypotheses
    kept.scores[kept.valid].sum().backward()
    assert points.grad.isfinite().all()
    assert points.grad.abs().max() > 0


@both
def test_ransac_makes_no_model_of_garbage(name):
    solver = solver_of(name)
    points = torch.stack([
        torch.full((20, 4), 0.5),
        torch.linspace(0, 1, 20).unsqueeze(-1) * torch.tensor([1.0, 0.5, -0.7, 0.3]),
        torch.full((20, 4), torch.nan),
    ])  # fmt: skip
    result = dl.ransac.RANSAC(solver, threshold=0.01, max_iterations=64).eval()(points)
    assert (result.status != dl.ransac.RansacStatus.FOUND).all()
    assert result.model.isnan().all()


def test_pixels_are_refused_by_the_essential_matrix():
    with pytest.raises(ValueError, match="normalised coordinates"):
        solver_of("essential").solve(views(2, 5, pixels=True).points)


@pytest.mark.parametrize("kind", [dl.ransac.EssentialMatrix, dl.ransac.FundamentalMatrix])
def test_residual_is_checked_and_shown(kind):
    with pytest.raises(ValueError, match="'residual' must be one of"):
        kind("transfer")
    assert repr(kind("symmetric_epipolar")) == f"{kind.__name__}(residual='symmetric_epipolar')"


def test_essential_solutions_are_kornias_and_poselibs():
    epipolar = pytest.importorskip("kornia.geometry.epipolar")
    poselib = pytest.importorskip("poselib")
    solver, scene = samples("essential", 100, seed=12)
    models, valid, _ = solver.solve(scene.points)
    plausible = valid & solver.plausible(models, scene.points.unsqueeze(1))
    theirs = epipolar.find_essential(scene.points[..., :2], scene.points[..., 2:]).view(100, 10, 3, 3)
    theirs = dl.ransac.Solutions(theirs.nan_to_num(), theirs.flatten(2).isfinite().all(-1))
    missed = 0
    for row in range(100):
        found = models[row][valid[row]]
        for model in theirs.models[row][theirs.valid[row]]:
            missed += bool(apart(found, model).min() > 1e-3)
        rays = [torch.cat([image, torch.ones(5, 1)], 1) for image in scene.points[row].split(2, -1)]
        rays = [np.asarray(image / image.norm(dim=1, keepdim=True)) for image in rays]
        poses = poselib.relpose_5pt(*rays)
        found = models[row][plausible[row]]
        for pose in poses:
            model = dl.ransac.essential_from_pose(torch.from_numpy(pose.R.copy()), torch.from_numpy(pose.t.copy()))
            missed += bool(apart(found, model).min() > 0.05)
    assert missed == 0  # with tolerances for what theirs are off by


def test_fundamental_solutions_are_opencvs():
    cv2 = pytest.importorskip("cv2")
    solver, scene = samples("fundamental", 100, seed=13)
    models, valid, _ = solver.solve(scene.points)
    missed = 0
    for row in range(100):
        stacked, _ = cv2.findFundamentalMat(
            scene.points[row, :, :2].numpy(), scene.points[row, :, 2:].numpy(), cv2.FM_7POINT
        )
        theirs = torch.from_numpy(stacked).view(-1, 3, 3)
        theirs = theirs / theirs.flatten(1).norm(dim=1)[:, None, None]
        for model in theirs:
            missed += bool(apart(models[row][valid[row]], model).min() > 1e-3)
        missed += abs(len(theirs) - int(valid[row].sum()))
    assert missed == 0  # theirs are off by 1e-4, from coordinates rounded to float32
