"""Circle2D, Plane3D and RigidTransform3D: minimal and weighted fits against references, gradients, degenerate sets."""

import numpy as np
import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

import difflayers as dl
from difflayers.ransac import RANSAC, Circle2D, Plane3D, RigidTransform3D, manifolds

DTYPE = torch.float64


def random(*shape, seed=0):
    return torch.randn(*shape, dtype=DTYPE, generator=torch.Generator().manual_seed(seed))


def weights_of(*shape, seed=1):
    return torch.rand(*shape, dtype=DTYPE, generator=torch.Generator().manual_seed(seed)) + 0.1


def motion(seed=0, scale=1.0):
    return torch.cat([scale * manifolds.rotation(random(3, seed=seed)), 3 * random(3, 1, seed=seed + 50)], -1)


def pairs(model, *shape, noise=0.0, seed=0):
    x = random(*shape, 3, seed=seed) + 2
    return torch.cat([x, x @ model[:, :3].T + model[:, 3] + noise * random(*shape, 3, seed=seed + 9)], -1)


def arc(*shape, noise=0.0, seed=0):
    angle = 2 * weights_of(*shape, seed=seed)
    return torch.stack([3 + 2 * angle.cos(), 2 * angle.sin() - 1], -1) + noise * random(*shape, 2, seed=seed)


def slab(*shape, noise=0.0, seed=0):
    xy = random(*shape, 2, seed=seed)
    z = xy @ torch.tensor([[0.5], [-1.0]], dtype=DTYPE) + 3 + noise * random(*shape, 1, seed=seed + 9)
    return torch.cat([xy, z], -1)


SOLVERS = {
    "circle": (Circle2D(), arc), "plane": (Plane3D(), slab),
    "rigid": (RigidTransform3D(), lambda *shape, **rest: pairs(motion(), *shape, **rest)),
    "similarity": (RigidTransform3D(scale=True), lambda *shape, **rest: pairs(motion(scale=1.7), *shape, **rest)),
}  # fmt: skip


@pytest.fixture(params=SOLVERS)
def both(request):
    return SOLVERS[request.param]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_minimal_samples_give_the_model(both, dtype):
    solver, draw = both
    sample = draw(2, 5, 3).to(dtype)
    solutions = solver.solve(sample)
    assert solutions.models.shape == (2, 5, 1, *solver.model_shape)
    assert solutions.models.dtype == dtype
    assert bool(solutions.valid.all())
    distance = solver.residual(solutions.models.squeeze(2), draw(20, seed=3).to(dtype))
    assert float(distance.max()) < (1e-2 if dtype == torch.float32 else 1e-9)  # 3 points amplify rounding
    assert not bool(solver.degenerate(sample).any())


def test_the_fit_to_exact_points_is_exact_and_ignores_points_of_no_weight(both):
    solver, draw = both
    points, weights = draw(3, 12), weights_of(3, 12)
    points[:, :4] += 5
    weights[:, :4] = 0
    model, valid = solver.fit(points, weights)
    assert bool(valid.all())
    assert float(solver.residual(model, points[:, 4:]).max()) < 1e-9


@pytest.mark.parametrize("name", SOLVERS)
def test_the_fit_is_least_squares(name):
    optimize = pytest.importorskip("scipy.optimize")
    solver, draw = SOLVERS[name]
    points, weights = draw(15, noise=0.1), weights_of(15)
    model, valid = solver.fit(points, weights)
    assert bool(valid)

    def residuals(step):
        vector = solver.residual_vector(solver.retract(model, torch.from_numpy(step)), points)
        return (weights.sqrt().unsqueeze(-1) * vector).flatten().numpy()

    result = optimize.least_squares(residuals, np.zeros(solver.freedom), xtol=1e-15, ftol=1e-15, gtol=1e-15)
    assert np.abs(result.x).max() < 1e-6


def test_broadcast_of_points_and_weights(both):
    solver, draw = both
    points, weights = draw(9, noise=0.05), weights_of(4, 9)
    model, valid = solver.fit(points, weights)
    assert model.shape == (4, *solver.model_shape)
    assert valid.shape == (4,)
    torch.testing.assert_close(model[2], solver.fit(points, weights[2])[0])
    torch.testing.assert_close(solver.fit(points[None], weights)[0], model)


def test_gradients_of_fits_are_those_of_finite_differences(both):
    solver, draw = both
    points, weights = draw(2, 6, noise=0.1).requires_grad_(), weights_of(2, 6).requires_grad_()
    fit = lambda points, weights: solver.fit(points, weights)[0]  # noqa: E731
    assert gradcheck(fit, (points, weights), rtol=1e-6, atol=1e-7)
    assert gradgradcheck(fit, (points, weights), rtol=1e-4, atol=1e-5)


def test_gradients_of_minimal_samples_are_those_of_finite_differences(both):
    solver, draw = both
    sample = draw(3, 3, noise=0.05).requires_grad_()
    assert gradcheck(lambda sample: solver.solve(sample).models, (sample,), rtol=1e-6, atol=1e-7)


def test_equal_singular_values_do_not_spoil_the_gradient():
    # a cube's covariance has one singular value three times, a square plate's one twice
    cube = torch.tensor([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], dtype=DTYPE)
    plate = cube[:, :2] @ torch.tensor([[1.0, 0, 0.5], [0, 1, 0.3]], dtype=DTYPE)
    for scale in (False, True):
        points = torch.cat([cube, cube @ motion()[:, :3].T], -1).requires_grad_()
        assert gradcheck(lambda p, s=scale: RigidTransform3D(s).fit(p, torch.ones(8, dtype=DTYPE))[0], (points,))
    assert gradcheck(lambda p: Plane3D().fit(p, torch.ones(8, dtype=DTYPE))[0], (plate.requires_grad_(),))


def test_a_reflection_is_answered_by_a_rotation():
    points = pairs(motion(), 10)
    points[:, 3] = -points[:, 3]
    model, _ = RigidTransform3D().fit(points, torch.ones(10, dtype=DTYPE))
    torch.testing.assert_close(torch.linalg.det(model[:, :3]).item(), 1.0)


def test_scipy_finds_the_same_rotation():
    transform = pytest.importorskip("scipy.spatial.transform")
    points, weights = pairs(motion(), 12, noise=0.2), weights_of(12)
    mean = (weights[:, None] * points).sum(0) / weights.sum()
    centered = (points - mean).numpy()
    expected, _ = transform.Rotation.align_vectors(centered[:, 3:], centered[:, :3], weights=weights.numpy())
    model, _ = RigidTransform3D().fit(points, weights)
    np.testing.assert_allclose(model[:, :3].numpy(), expected.as_matrix(), atol=1e-9)


def degenerate_sets(solver):
    d = solver.point_size
    line = torch.arange(3, dtype=DTYPE)[:, None] * random(d) + random(d, seed=4)
    twice = random(3, d)
    twice[1] = twice[0]
    return {
        "line": line,
        "one place": random(1, d).expand(3, d),
        "twice": twice,
        "zeros": torch.zeros(3, d, dtype=DTYPE),
    }


@pytest.mark.parametrize("kind", ["line", "one place", "twice", "zeros"])
def test_degenerate_samples_are_flagged_and_have_no_nan_gradient(both, kind):
    solver, _ = both
    sample = degenerate_sets(solver)[kind].clone().requires_grad_()
    assert bool(solver.degenerate(sample.detach()))
    solutions = solver.solve(sample)
    assert bool(solutions.models.isfinite().all())
    (gradient,) = torch.autograd.grad(solutions.models.sum() + 0 * sample.sum(), sample)
    assert bool(gradient.isfinite().all())
    weights = torch.ones(3, dtype=DTYPE, requires_grad=True)
    model, valid = solver.fit(sample, weights)
    assert bool(model.isfinite().all())
    assert not bool(valid) or (kind == "twice" and isinstance(solver, Circle2D))
    for gradient in torch.autograd.grad(model.sum() + 0 * sample.sum() + 0 * weights.sum(), (sample, weights)):
        assert bool(gradient.isfinite().all())


def test_no_weight_or_no_points_is_no_fit(both):
    solver, draw = both
    for count in (0, 5):
        model, valid = solver.fit(draw(2, count), torch.zeros(2, count, dtype=DTYPE))
        assert not bool(valid.any())
        assert bool(model.isfinite().all())


def test_ransac_finds_them_among_wrong_points(both):
    solver, draw = both
    points = draw(2, 80, noise=1e-3)
    points[:, :40] = 4 * random(2, 40, solver.point_size, seed=8)
    layer = RANSAC(solver, threshold=5e-3, refiner=dl.ransac.LevenbergMarquardt()).eval()
    result = layer(points, generator=torch.Generator().manual_seed(0))
    assert result.status.tolist() == [0, 0]
    assert float(solver.residual(result.model, draw(2, 30, seed=5)).max()) < 5e-3
    assert bool((result.inliers[:, 40:].sum(-1) >= 39).all())


def test_arguments_are_checked():
    with pytest.raises(TypeError, match=r"RigidTransform3D: argument 'scale' must be True or False"):
        RigidTransform3D(scale=1)
    assert repr(RigidTransform3D(scale=True)) == "RigidTransform3D(scale=True)"
