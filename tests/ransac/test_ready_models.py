"""Every ready model: bad problems among good ones, gradients in float32, life without compiled kernels."""

import pytest
import torch

import difflayers as dl
from difflayers import _ops
from difflayers.ransac import RansacStatus
from difflayers.ransac._implicit_solve import ImplicitSolver, plain_backward, plain_condition

from . import scenes
from .test_degeneracy import scene

FOUND, TOO_FEW_POINTS, DEGENERATE = RansacStatus.FOUND, RansacStatus.TOO_FEW_POINTS, RansacStatus.DEGENERATE
N, GOOD = 60, 40


def uniform(*shape, seed=0):
    return torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def line():
    return scenes.lines(1, N, GOOD)[0]


def circle():
    angle = 6 * uniform(N)
    points = torch.stack([angle.cos(), angle.sin()], -1) + 1
    points[GOOD:] = 3 * uniform(N - GOOD, 2)
    return points


def plane():
    points = uniform(N, 3)
    points[:GOOD, 2] = 0.3 * points[:GOOD, 0] + 0.1
    return points


def motion(scale):
    first = uniform(N, 3)
    rotation = scenes.rotations(1, generator=torch.Generator().manual_seed(1))[0]
    second = scale * first @ rotation.mT + 1
    second[GOOD:] = 2 * uniform(N - GOOD, 3, seed=1)
    return torch.cat([first, second], -1)


def homography():
    pairs = scenes.homographies(1, N)[0][0]
    pairs[GOOD:, 2:] = 1000 * uniform(N - GOOD, 2)
    return pairs


def fundamental():
    pairs = scene(1, 0, N)[0][0]
    pairs[GOOD:, 2:] = 1000 * uniform(N - GOOD, 2)
    return pairs


def pose():
    matches = scenes.poses(1, N)[0][0]
    matches[GOOD:, :2] = uniform(N - GOOD, 2) - 0.5
    return matches


MODELS = {
    "line": (dl.ransac.Line2D(), 0.01, line()),
    "circle": (dl.ransac.Circle2D(), 0.01, circle()),
    "plane": (dl.ransac.Plane3D(), 0.01, plane()),
    "rigid": (dl.ransac.RigidTransform3D(), 0.01, motion(1)),
    "similarity": (dl.ransac.RigidTransform3D(scale=True), 0.01, motion(2)),
    "homography": (dl.ransac.Homography(), 1.0, homography()),
    "fundamental": (dl.ransac.FundamentalMatrix(), 1.0, fundamental()),
    "essential": (dl.ransac.EssentialMatrix(), 1e-3, (fundamental() - 500) / 800),
    "pose": (dl.ransac.AbsolutePose(), 1e-3, pose()),
}


def problems(name):
    """The points of each problem and what its status must be; None: whatever it is, its gradients are finite."""
    solver, _, good = MODELS[name]
    size = solver.sample_size
    absent = torch.full_like(good, torch.nan)
    along = good[:1] + (good[1:2] - good[:1]) * uniform(N, 1, seed=3)
    halves = list(good.split(good.shape[-1] // 2, -1)) if good.shape[-1] in (4, 6) else None
    some = good.clone()
    some[::5], some[1::5, 0] = torch.nan, torch.inf
    far = good.clone()
    far[3] = 1e30
    found = {
        "good": (good, FOUND),
        "nothing there": (absent, TOO_FEW_POINTS),
        "one point too few": (torch.cat([good[: size - 1], absent[size - 1 :]]), TOO_FEW_POINTS),
        "some not finite": (some, FOUND),
        "one far away": (far, FOUND),
        "all equal": (good[:1].expand(N, -1), DEGENERATE),
        "all zero": (torch.zeros_like(good), DEGENERATE),
        "two places": (good[torch.arange(N) % 2], FOUND if name == "line" else DEGENERATE),
        "on a line": (along, FOUND if name == "line" else DEGENERATE),
        "large": (good * 1e30, None),
        "larger": (good * 1e150, None),
        "small": (good * 1e-10, None),
        "smaller": (good * 1e-30, None),
        "denormal": (good * 1e-310, None),
        "noise": (good.amin(0) + (good.amax(0) - good.amin(0)) * uniform(N, good.shape[-1], seed=2), None),
    }
    if halves is not None:
        found["first at one place"] = torch.cat([halves[0][:1].expand(N, -1), halves[1]], -1), DEGENERATE
        found["second at one place"] = torch.cat([halves[0], halves[1][:1].expand(N, -1)], -1), DEGENERATE
        pairs = torch.cat([halves[0], halves[0]], -1)
        found["nothing moved"] = pairs, DEGENERATE if name in ("fundamental", "essential") else FOUND
    if name == "essential":
        found["in pixels"] = 800 * good + 500, DEGENERATE
    if name == "pose":
        found["one place in space"] = torch.cat([good[:, :2], good[:1, 2:].expand(N, -1)], -1), DEGENERATE
        found["one place in the image"] = torch.cat([good[:1, :2].expand(N, -1), good[:, 2:]], -1), DEGENERATE
    return found


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_good_and_bad_problems_in_one_batch(name, training, dtype):
    solver, threshold, _ = MODELS[name]
    cases = problems(name)
    points = torch.stack([points for points, _ in cases.values()]).to(dtype).requires_grad_()
    logits = torch.zeros(points.shape[:2], dtype=dtype, requires_grad=True)
    threshold = torch.nn.Parameter(torch.tensor(threshold, dtype=dtype))
    scorer = dl.ransac.GaussianUniform(torch.nn.Parameter(torch.tensor(0.3, dtype=dtype)))
    layer = dl.ransac.RANSAC(solver, threshold=threshold, scorer=scorer, max_iterations=1000, hypotheses=64)
    result = layer.train(training)(points, logits, generator=torch.Generator().manual_seed(0))
    for i, (label, (_, wanted)) in enumerate(cases.items()):
        assert wanted is None or result.status[i] == wanted, label
    found = result.status == FOUND
    assert result.model[found].isfinite().all()
    assert result.model[~found].isnan().all()
    assert not result.inliers[~found].any()
    assert (result.score[~found] == -torch.inf).all()
    loss = result.model[found].sum()
    inputs = [points]
    if training:
        hypotheses = result.hypotheses
        assert hypotheses.models.isfinite().all()
        loss = loss + hypotheses.models.sum() + hypotheses.scores[hypotheses.valid].sum() + hypotheses.log_prob.sum()
        inputs += [logits, threshold, scorer.sigma]
    for gradient in torch.autograd.grad(loss, inputs):
        assert gradient.isfinite().all()
        assert gradient[:1].abs().sum() > 0 if gradient.dim() else gradient != 0


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("training", [False, True])
def test_nothing_but_bad_problems(name, training):
    solver, threshold, good = MODELS[name]
    points = torch.stack([good[:1].expand(N, -1), torch.full_like(good, torch.nan)]).requires_grad_()
    layer = dl.ransac.RANSAC(solver, threshold=threshold, max_iterations=100).train(training)
    result = layer(points)
    assert result.status.tolist() == [DEGENERATE, TOO_FEW_POINTS]
    if training:
        hypotheses = result.hypotheses
        loss = hypotheses.models.sum() + torch.where(hypotheses.valid, hypotheses.scores, 0).sum()
        assert (torch.autograd.grad(loss, points)[0] == 0).all()


@pytest.mark.parametrize("name", MODELS)
def test_a_last_dimension_of_another_size_and_logits_of_nothing(name):
    solver, threshold, good = MODELS[name]
    layer = dl.ransac.RANSAC(solver, threshold=threshold)
    with pytest.raises(ValueError, match=rf"\[\.\.\., n, {solver.point_size}\]"):
        layer(torch.rand(N, solver.point_size + 1))
    for training in (False, True):
        result = layer.train(training)(good, torch.full((N,), -torch.inf))
        assert result.status == TOO_FEW_POINTS
        assert result.model.isnan().all()


def test_essential_matrices_of_pixels_raise():
    layer = dl.ransac.RANSAC(dl.ransac.EssentialMatrix(), threshold=1.0)
    for training in (False, True):
        with pytest.raises(ValueError, match=r"normalised coordinates.*K\^-1"):
            layer.train(training)(fundamental())


def noisy(name, count, dtype=torch.float64):
    """The good problem `count` times with a little noise, `[count, N, d]`."""
    _, threshold, good = MODELS[name]
    generator = torch.Generator().manual_seed(0)
    noise = 0.2 * threshold * torch.randn(count, *good.shape, dtype=torch.float64, generator=generator)
    return (good + noise).to(dtype)


@pytest.mark.parametrize("name", MODELS)
def test_found_models_have_the_same_gradient_in_float32(name):
    solver, threshold, _ = MODELS[name]
    layer = dl.ransac.RANSAC(solver, threshold=threshold).eval()
    models, gradients = [], []
    for dtype in (torch.float64, torch.float32):
        # the same numbers: what float32 cannot hold is gone from both
        points = noisy(name, 5, torch.float32).to(dtype).requires_grad_()
        result = layer(points, generator=torch.Generator().manual_seed(0))
        assert (result.status == FOUND).all()
        model = result.model.flatten(1)
        largest = model.detach().abs().argmax(-1, keepdim=True)
        models.append((model * model.gather(1, largest).detach().sign()).double())
        gradients.append(torch.autograd.grad(models[-1].sum(), points)[0].double())
    assert (models[0] - models[1]).abs().max() < 1e-3 * models[0].abs().max()
    size, error = gradients[0].flatten(1).norm(dim=1), (gradients[0] - gradients[1]).flatten(1).norm(dim=1)
    assert (size > 0).all()
    # a point that rounding moves over the threshold changes the minimum
    assert (error < 1e-2 * size).sum() >= 3
    assert (error < size).all()


@pytest.mark.parametrize("name", [name for name, row in MODELS.items() if isinstance(row[0], ImplicitSolver)])
def test_plain_gradients_of_minimal_samples_are_the_compiled_ones(name):
    """In pixels, too: neither is to give up where the other does not."""
    solver, _, _ = MODELS[name]
    index = uniform(200, GOOD).argsort(-1)[:, : solver.sample_size]
    sample = noisy(name, 1)[0, index]
    flat, counts, condition = _ops.minimal_solve(sample, solver.problem, True)
    models = flat.view(200, solver.max_solutions, *solver.model_shape)
    plain = plain_condition(solver, models, counts, sample)
    torch.testing.assert_close(plain, condition, rtol=1e-6, atol=0)
    assert (condition.isfinite() & (condition < solver.worst_condition)).any(-1).double().mean() > 0.9
    gradient = torch.randn(models.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = _ops.minimal_backward(gradient.flatten(2), flat, counts, sample, solver.problem, 1e4)
    expected = plain_backward(solver, gradient, models, counts, plain.masked_fill(plain >= 1e4, torch.inf), sample)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8 * float(expected.abs().max()))


@pytest.mark.parametrize("name", [name for name, row in MODELS.items() if isinstance(row[0], ImplicitSolver)])
def test_the_minimal_operators_are_operators(name):
    solver, _, good = MODELS[name]
    sample = good[: 2 * solver.sample_size].reshape(2, solver.sample_size, -1)
    checks = ("test_schema", "test_faketensor", "test_autograd_registration")
    for with_condition in (False, True):
        arguments = sample, solver.problem, with_condition
        torch.library.opcheck(torch.ops.difflayers.minimal_solve.default, arguments, test_utils=checks)
    models, counts, _ = _ops.minimal_solve(sample, solver.problem, False)
    arguments = torch.ones_like(models), models, counts, sample, solver.problem, 1e6
    torch.library.opcheck(torch.ops.difflayers.minimal_backward.default, arguments, test_utils=checks)


@pytest.mark.parametrize("name", MODELS)
def test_without_compiled_kernels_the_same_is_found(name, monkeypatch):
    solver, threshold, _ = MODELS[name]
    points = noisy(name, 2).requires_grad_()
    layer = dl.ransac.RANSAC(solver, threshold=threshold, max_iterations=500)

    def run():
        found = layer.eval()(points, generator=torch.Generator().manual_seed(0))
        drawn = layer.train()(points, torch.zeros(N), generator=torch.Generator().manual_seed(0)).hypotheses
        loss = torch.where(drawn.valid, drawn.scores, 0).sum() + drawn.log_prob.sum()
        return found, torch.autograd.grad(found.model.abs().sum() + loss, points)[0]

    compiled, gradient = run()
    monkeypatch.setattr(_ops, "has_kernel", lambda *arguments: False)
    plain, plain_gradient = run()
    assert (plain.status == FOUND).all()
    assert (plain.inliers == compiled.inliers).double().mean() > 0.97
    assert plain_gradient.isfinite().all()
    assert (plain_gradient - gradient).norm() < 0.1 * gradient.norm()


class Careless(dl.ransac.MinimalSolver):
    """A user's circle, whose centre is NaN, not invalid, where three points are on a line."""

    sample_size, point_size, model_shape = 3, 2, (3,)

    def solve(self, sample):
        one, other = (sample[..., 1:, :] - sample[..., :1, :]).unbind(-2)
        area = 2 * (one[..., 0] * other[..., 1] - one[..., 1] * other[..., 0])
        a, b = one.square().sum(-1), other.square().sum(-1)
        x, y = (other[..., 1] * a - one[..., 1] * b) / area, (one[..., 0] * b - other[..., 0] * a) / area
        centre = torch.stack([x, y], -1)
        model = torch.cat([sample[..., 0, :] + centre, centre.norm(dim=-1, keepdim=True)], -1)
        return model.unsqueeze(-2), torch.ones_like(area, dtype=torch.bool).unsqueeze(-1)

    def residual(self, models, points):
        return ((points - models[..., None, :2]).norm(dim=-1) - models[..., 2:]).abs()


@pytest.mark.parametrize("all_bad", [False, True])
def test_a_users_model_that_is_not_finite_spoils_no_gradient(all_bad):
    points = circle()
    points[:20] = points[0]  # samples of one place
    if all_bad:
        points = points[:1].expand(N, 2)
    points = points.clone().requires_grad_()
    result = dl.ransac.RANSAC(Careless(), threshold=0.01)(points)
    hypotheses = result.hypotheses
    assert not hypotheses.valid.all()
    assert hypotheses.models.isfinite().all()
    gradient = torch.autograd.grad(hypotheses.models.sum(), points)[0]
    assert gradient.isfinite().all()
    assert (gradient == 0).all() == all_bad
