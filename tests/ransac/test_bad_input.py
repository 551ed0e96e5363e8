"""Every ready model on good and bad problems in one batch: a status each, no NaN gradient, no model from garbage."""

import pytest
import torch

import difflayers as dl
from difflayers.ransac import RansacStatus

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
    halves = [side for side in good.split(good.shape[-1] // 2, -1)] if good.shape[-1] in (4, 6) else None
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
