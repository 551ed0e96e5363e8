"""Losses against formulas, SciPy and peers; finite gradients where the error is zero."""

import math

import pytest
import torch
from scipy.spatial.transform import Rotation
from torch.autograd import gradcheck

import difflayers as dl
from difflayers.ransac import epipolar_loss, inlier_cross_entropy, pose_error, residual_loss


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def random(*shape, seed=0):
    return torch.randn(shape, dtype=torch.float64, generator=seeded(seed))


def scene(n=30, seed=0):
    """A fundamental matrix and exact pairs `[n, 4]`."""
    rotation = torch.from_numpy(Rotation.from_rotvec([0.1, -0.2, 0.05]).as_matrix())
    t = torch.tensor([1.0, 0.2, -0.1], dtype=torch.float64)
    space = random(n, 3, seed=seed) + torch.tensor([0.0, 0.0, 6.0])
    second = space @ rotation.mT + t
    cross = torch.tensor([[0, -t[2], t[1]], [t[2], 0, -t[0]], [-t[1], t[0], 0]], dtype=torch.float64)
    return cross @ rotation, torch.cat([space[:, :2] / space[:, 2:], second[:, :2] / second[:, 2:]], -1)


def line(point, line):
    return abs(line[0] * point[0] + line[1] * point[1] + line[2]) / math.hypot(line[0], line[1])


@pytest.mark.parametrize("distance", ["symmetric_epipolar", "sampson"])
def test_epipolar_loss_against_distances_from_lines(distance):
    f, points = scene()
    points = points + 0.05 * random(*points.shape, seed=1)
    weights = torch.rand(30, dtype=torch.float64, generator=seeded())
    limit, total = 0.05, 0.0
    for (x, y, u, v), w in zip(points.tolist(), weights.tolist(), strict=True):
        first, second = (torch.tensor(p, dtype=torch.float64) for p in ([x, y, 1], [u, v, 1]))
        line2, line1 = (f @ first).tolist(), (f.T @ second).tolist()
        if distance == "symmetric_epipolar":
            squared = line((u, v), line2) ** 2 + line((x, y), line1) ** 2
        else:
            squared = float(second @ f @ first) ** 2 / sum(a * a for a in (*line2[:2], *line1[:2]))
        total += w * min(squared / limit**2, 1)
    found = epipolar_loss(f, points, weights, limit=limit, distance=distance)
    assert 0.1 < found < 0.9
    assert abs(found - total / weights.sum()) < 1e-12


@pytest.mark.parametrize("distance", ["symmetric_epipolar", "sampson"])
def test_epipolar_loss_against_kornia(distance):
    epipolar = pytest.importorskip("kornia.geometry.epipolar")
    f, points = scene()
    points = points + 0.05 * random(*points.shape, seed=1)
    squared = {
        "symmetric_epipolar": epipolar.symmetrical_epipolar_distance,
        "sampson": epipolar.sampson_epipolar_distance,
    }
    expected = squared[distance](points[None, :, :2], points[None, :, 2:], f[None], squared=True)[0]
    found = epipolar_loss(f, points, limit=10.0, distance=distance)
    assert torch.allclose(found, expected.mean() / 100, rtol=1e-6)


@pytest.mark.parametrize("distance", ["symmetric_epipolar", "sampson"])
def test_epipolar_loss_gradients(distance):
    f, points = scene(8)
    noisy = (points + 0.02 * random(8, 4, seed=1)).requires_grad_()
    models = torch.stack([f, f + 0.05 * random(3, 3, seed=2), random(3, 3, seed=3)]).requires_grad_()
    assert gradcheck(lambda m, x: epipolar_loss(m, x, limit=0.3, distance=distance), (models, noisy))
    # zero at the truth, with zero gradient
    exact = points.clone().requires_grad_()
    loss = epipolar_loss(models, exact, limit=0.1, distance=distance)
    assert loss[0] < 1e-25
    for gradient in torch.autograd.grad(loss[0], (models, exact)):
        assert gradient.isfinite().all()
        assert gradient.abs().max() < 1e-10
    # neither scale nor sign of the model matter, even where float32 squares vanish
    scaled = epipolar_loss(-1e-25 * models.float(), noisy.float(), limit=0.1, distance=distance)
    assert torch.allclose(scaled, epipolar_loss(models, noisy, limit=0.1, distance=distance).float(), atol=1e-5)


@pytest.mark.parametrize("distance", ["symmetric_epipolar", "sampson"])
def test_epipolar_loss_of_degenerate_models_has_finite_gradients(distance):
    _, points = scene(6)
    points[0, :2] = 0  # the epipole of the second model
    epipole = torch.tensor([[0.0, 1.0, 0.0], [-1.0, 0.0, 0.0], [0.0, 0.0, 0.0]], dtype=torch.float64)
    far = torch.zeros(3, 3, dtype=torch.float64)
    far[2, 2] = 1  # all epipolar lines at infinity
    models = torch.stack([torch.zeros(3, 3, dtype=torch.float64), epipole, far, 1e-200 * far]).requires_grad_()
    points.requires_grad_()
    loss = epipolar_loss(models, points, limit=0.1, distance=distance)
    assert (loss[[0, 2, 3]] == 1).all()
    for gradient in torch.autograd.grad(loss.sum(), (models, points)):
        assert gradient.isfinite().all()


def test_shapes_of_losses_of_points():
    f, points = scene(10)
    models = f + 0.1 * random(2, 5, 3, 3, 3)
    inliers = torch.rand(2, 10, generator=seeded()) < 0.5
    batch = torch.stack([points, points + 0.01])
    found = epipolar_loss(models, batch, inliers, limit=0.1)
    assert found.shape == (2, 5, 3)
    assert torch.allclose(found[1, 2, 0], epipolar_loss(models[1, 2, 0], batch[1][inliers[1]], limit=0.1))
    assert epipolar_loss(models, points, limit=0.1).shape == (2, 5, 3)
    # absent points may be anything
    holes = torch.where(inliers.unsqueeze(-1), batch, torch.nan)
    assert torch.equal(epipolar_loss(models, holes, inliers, limit=0.1), found)
    assert (epipolar_loss(models, batch, torch.zeros_like(inliers), limit=0.1) == 0).all()
    assert epipolar_loss(models, batch[:, :0], limit=0.1).shape == (2, 5, 3)
    module = dl.losses.EpipolarLoss(limit=0.1)
    assert torch.equal(module(models, batch, inliers), found)


@pytest.mark.parametrize("solver", [dl.ransac.Line2D(), dl.ransac.Homography()], ids=repr)
def test_residual_loss(solver):
    shape, size = solver.model_shape, solver.point_size
    models, points = random(2, 4, *shape), random(2, 9, size, seed=1)
    weights = torch.rand(2, 9, dtype=torch.float64, generator=seeded(2))
    weights[:, ::3] = 0
    residual = solver.residual(models, points.unsqueeze(1))
    expected = ((residual / 0.8).square().clamp(max=1) * weights.unsqueeze(1)).sum(-1) / weights.sum(-1, keepdim=True)
    found = residual_loss(solver, models, points, weights, limit=0.8)
    assert torch.allclose(found, expected, rtol=1e-12)
    assert (found < 1).any()
    leaves = models.requires_grad_(), points.requires_grad_()
    found = torch.autograd.grad((residual_loss(solver, *leaves, weights, limit=0.8)).sum(), leaves)
    residual = solver.squared_residual(models, points.unsqueeze(1)) / 0.8**2
    expected = (residual.clamp(max=1) * weights.unsqueeze(1) / weights.sum(-1)[:, None, None]).sum()
    for a, b in zip(found, torch.autograd.grad(expected, leaves), strict=True):
        assert torch.allclose(a, b, rtol=1e-9, atol=1e-12)


def test_residual_loss_of_what_has_no_residual():
    """Points at infinity and models that are zero: 1, with zero gradients instead of NaN."""
    solver = dl.ransac.Homography()
    models = torch.stack([torch.zeros(3, 3), torch.eye(3), torch.tensor([[1.0, 0, 0], [0, 1, 0], [1, 0, 0]])]).double()
    points = torch.tensor([[0.0, 1.0, 0.0, 1.1], [2.0, 3.0, 2.0, 3.1]], dtype=torch.float64)
    models.requires_grad_(), points.requires_grad_()
    loss = residual_loss(solver, models, points, limit=1.0)
    assert torch.allclose(loss, torch.tensor([1.0, 0.01, 1.0], dtype=torch.float64))
    for gradient in torch.autograd.grad(loss.sum(), (models, points)):
        assert gradient.isfinite().all()


def rotation_of(axis, degrees):
    unit = torch.nn.functional.normalize(axis, dim=-1)
    return torch.from_numpy(Rotation.from_rotvec(degrees * unit.numpy(), degrees=True).as_matrix())


@pytest.mark.parametrize("degrees", [0.0, 1e-7, 1e-3, 1.0, 90.0, 179.0, 179.999999, 180.0])
def test_pose_error_has_all_digits(degrees):
    base = torch.from_numpy(Rotation.random(20, random_state=0).as_matrix())
    turn = rotation_of(random(20, 3), degrees)
    t = random(20, 3, seed=1)
    across = torch.linalg.cross(t, random(20, 3, seed=2))
    angle = math.radians(degrees)
    turned = t * math.cos(angle) + across / across.norm(dim=-1, keepdim=True) * t.norm(dim=-1, keepdim=True) * math.sin(
        angle
    )
    found = pose_error(base, t, base @ turn, 3 * turned)
    # 1e-13 degrees is a few units in the last place of 1 radian
    assert (found.rotation - degrees).abs().max() < 1e-12 * max(1, degrees) + 1e-13
    assert (found.translation - degrees).abs().max() < 1e-12 * max(1, degrees) + 1e-13
    assert torch.equal(found.largest, torch.maximum(found.rotation, found.translation))


def test_pose_error_against_scipy():
    a, b = Rotation.random(50, random_state=1), Rotation.random(50, random_state=2)
    expected = torch.from_numpy((a.inv() * b).magnitude()).rad2deg()
    t, u = random(50, 3), random(50, 3, seed=1)
    found = pose_error(torch.from_numpy(a.as_matrix()), t, torch.from_numpy(b.as_matrix()), u)
    assert torch.allclose(found.rotation, expected, rtol=1e-10)
    cosine = torch.nn.functional.cosine_similarity(t, u, dim=-1)
    assert torch.allclose(found.translation, cosine.acos().rad2deg(), rtol=1e-9)


def test_pose_error_gradients():
    r, true = (torch.from_numpy(Rotation.random(4, random_state=i).as_matrix()) for i in (1, 2))
    t, u = random(4, 3), random(4, 3, seed=1)
    leaves = tuple(x.requires_grad_() for x in (r, t, true, u))
    assert gradcheck(lambda *x: tuple(pose_error(*x)), leaves)
    for dtype in (torch.float32, torch.float64):
        leaves = tuple(x.detach().to(dtype).requires_grad_() for x in (true, u))
        for sign in (1, -1):  # errors of 0, and of 180 degrees
            flipped = leaves[0] * torch.tensor([sign, sign, 1.0], dtype=dtype)
            error = pose_error(flipped, sign * leaves[1], leaves[0].detach(), leaves[1].detach())
            for gradient in torch.autograd.grad((error.rotation + error.translation).sum(), leaves):
                assert gradient.isfinite().all()


def test_pose_error_of_no_translation_and_of_nan():
    eye, zero, one = torch.eye(3), torch.zeros(3), torch.tensor([1.0, 0.0, 0.0])
    assert pose_error(eye, zero, eye, one).translation == 180
    assert pose_error(eye, zero, eye, zero).translation == 0
    assert pose_error(eye, one, eye, zero).translation == 0
    bad = pose_error(eye * torch.nan, one * torch.nan, eye, one)
    assert bad.rotation.isnan()
    assert bad.translation.isnan()
    t = torch.zeros(3, requires_grad=True)
    assert (torch.autograd.grad(pose_error(eye, t, eye, one).translation, t)[0] == 0).all()


def test_pose_error_descends():
    """Gradient descent turns a rotation to the truth and stays there."""
    true = torch.from_numpy(Rotation.random(random_state=3).as_matrix())
    vector = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    index = torch.tensor([[0, 2, 1], [2, 0, 0], [1, 0, 0]])
    sign = torch.tensor([[0, -1, 1], [1, 0, -1], [-1, 1, 0]], dtype=torch.float64)
    optimizer = torch.optim.Adam([vector], lr=0.05)
    for step in range(300):
        optimizer.param_groups[0]["lr"] = 0.05 * 0.98**step
        error = pose_error(torch.linalg.matrix_exp(vector[index] * sign), true[0], true, true[0]).rotation
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
    assert error < 0.1


@pytest.mark.parametrize("balance", ["classes", "points"])
def test_inlier_cross_entropy_against_torch(balance):
    logits, inliers = 3 * random(40), torch.rand(40, generator=seeded()) < 0.3
    mask = torch.rand(40, generator=seeded(1)) < 0.7
    each = torch.nn.functional.binary_cross_entropy_with_logits(logits, inliers.double(), reduction="none")
    expected = each[mask].mean()
    if balance == "classes":
        expected = (each[mask & inliers].mean() + each[mask & ~inliers].mean()) / 2
    assert torch.allclose(inlier_cross_entropy(logits, inliers, mask, balance=balance), expected, rtol=1e-12)
    absent = logits.masked_fill(~mask, -torch.inf)
    assert torch.allclose(inlier_cross_entropy(absent, inliers, balance=balance), expected, rtol=1e-12)
    batch = dl.losses.InlierCrossEntropy(balance=balance)(logits.expand(3, -1), inliers.expand(3, -1))
    assert batch.shape == (3,)


def test_inlier_cross_entropy_gradients():
    logits = torch.tensor([[1e4, -1e4, 0.0, -torch.inf], [-torch.inf] * 4], dtype=torch.float64, requires_grad=True)
    inliers = torch.tensor([[False, True, True, True], [True] * 4])
    loss = inlier_cross_entropy(logits, inliers)
    assert loss[1] == 0
    gradient = torch.autograd.grad(loss.sum(), logits)[0]
    assert torch.allclose(gradient[0], torch.tensor([0.5, -0.25, -0.125, 0.0], dtype=torch.float64))
    assert (gradient[1] == 0).all()
    assert gradcheck(lambda x: inlier_cross_entropy(x, inliers[:1]), random(1, 4).requires_grad_())


def test_bad_input():
    f, points = scene(5)
    with pytest.raises(ValueError, match=r"'points' must have the shape \(..., n, 4\)"):
        epipolar_loss(f, points[:, :3], limit=1.0)
    with pytest.raises(ValueError, match=r"'models' must have the shape \(..., 3, 3\)"):
        epipolar_loss(f[0], points, limit=1.0)
    with pytest.raises(ValueError, match="must be the first ones of"):
        epipolar_loss(f.expand(3, -1, -1), points.expand(2, -1, -1), limit=1.0)
    with pytest.raises(ValueError, match="'inliers' must have the shape of the points"):
        epipolar_loss(f, points, torch.ones(4), limit=1.0)
    with pytest.raises(ValueError, match="'limit'"):
        epipolar_loss(f, points, limit=0.0)
    with pytest.raises(ValueError, match="'distance' must be one of"):
        epipolar_loss(f, points, limit=1.0, distance="frobenius")
    with pytest.raises(TypeError, match="'solver' must be"):
        residual_loss(dl.ransac.Line2D, f, points, limit=1.0)
    with pytest.raises(ValueError, match=r"ends in \(3,\)"):
        residual_loss(dl.ransac.Line2D(), f[:, :2], points[:, :2], limit=1.0)
    with pytest.raises(ValueError, match="'true_translation' must have a shape that ends in"):
        pose_error(f, f[0], f, f[0, :2])
    with pytest.raises(TypeError, match="'inliers' must be a bool tensor"):
        inlier_cross_entropy(torch.zeros(3), torch.zeros(3))
    with pytest.raises(ValueError, match="'mask' must have the shape of the logits"):
        inlier_cross_entropy(torch.zeros(3), torch.zeros(3) > 0, torch.ones(1, 3) > 0)
