"""The loop: what it finds, its gradients, status of each problem, bad input."""

import copy
import pickle

import pytest
import torch
from torch.utils.checkpoint import checkpoint

import difflayers as dl
from difflayers.ransac import RansacStatus, _search

from . import scenes

LINE, HOMOGRAPHY = dl.ransac.Line2D(), dl.ransac.Homography()
TRUTH = torch.tensor([-0.5, 1.0, -0.2], dtype=torch.float64) / 1.25**0.5


def line_layer(**settings):
    return dl.ransac.RANSAC(LINE, threshold=settings.pop("threshold", 0.01), **settings).eval()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("training", [False, True])
def test_finds_the_line(dtype, training):
    points = scenes.lines(8, 200, 80).to(dtype)
    result = line_layer().train(training)(points)
    assert (result.status == RansacStatus.FOUND).all()
    assert result.model.dtype == dtype
    model = scenes.up_to_sign(result.model, TRUTH.to(dtype))
    assert (model - TRUTH.to(dtype)).abs().max() < 5e-3
    assert result.inliers[:, :80].double().mean() > 0.98
    assert result.inliers[:, 80:].double().mean() < 0.1
    assert (result.hypotheses is not None) == training


def test_finds_homographies_and_poses():
    pairs, truth = scenes.homographies(4, 100, noise=0.5)
    pairs[:, :50, 2:] += 200 * torch.rand(4, 50, 2, dtype=torch.float64) + 20
    result = dl.ransac.RANSAC(HOMOGRAPHY, threshold=2.0).eval()(pairs)
    assert (result.inliers[:, 50:].double().mean(-1) > 0.9).all()
    assert (result.inliers[:, :50].double().mean(-1) < 0.05).all()
    matches, truth = scenes.poses(4, 100, noise=1e-4)
    matches[:, :60, :2] += 0.2
    result = dl.ransac.RANSAC(dl.ransac.AbsolutePose(), threshold=1e-3).eval()(matches)
    assert (result.model - truth).abs().max() < 1e-2
    assert result.inliers[:, 60:].all()


def test_batch_is_each_problem_by_itself():
    points = scenes.lines(5, 60, 40)
    batch = line_layer()(points)
    alone = [line_layer()(one) for one in points]
    for i, one in enumerate(alone):
        assert one.model.shape == (3,)
        model = scenes.up_to_sign(one.model, batch.model[i])
        assert (model - batch.model[i]).abs().max() < 2e-3
    shaped = line_layer()(points.view(5, 1, 60, 2))
    assert shaped.model.shape == (5, 1, 3)
    assert shaped.inliers.shape == (5, 1, 60)
    assert shaped.status.shape == shaped.iterations.shape == shaped.score.shape == (5, 1)


def test_problems_of_different_sizes_by_mask():
    points = scenes.lines(3, 100, 60)
    mask = torch.ones(3, 100, dtype=torch.bool)
    mask[1, 70:] = False
    mask[2, 1:] = False
    padded = points.clone()
    padded[~mask] = torch.nan  # what is absent is never looked at
    result = line_layer()(padded, mask=mask)
    assert result.status.tolist() == [RansacStatus.FOUND, RansacStatus.FOUND, RansacStatus.TOO_FEW_POINTS]
    assert not result.inliers[~mask].any()
    assert result.model[2].isnan().all()
    assert (scenes.up_to_sign(result.model[:2], TRUTH) - TRUTH).abs().max() < 5e-3


def test_easy_problems_end_early():
    easy, hard = scenes.lines(1, 300, 280), scenes.lines(1, 300, 20)
    result = line_layer(max_iterations=3000)(torch.cat([easy, hard]))
    assert result.iterations[0] < 100
    assert result.iterations[1] > 500
    assert line_layer(max_iterations=50)(hard).iterations == 50


def test_confidence_is_kept():
    """The share of failures among problems that ended by confidence, without local optimisation."""
    points = scenes.lines(400, 100, 30, noise=0.0)
    result = line_layer(confidence=0.9, local=None, refiner=None, threshold=1e-6)(points)
    found = result.inliers[:, :30].all(-1)
    assert found.double().mean() > 0.87  # 0.9 less three standard deviations and what rounds add


def test_same_seed_same_result():
    points = scenes.lines(2, 100, 50)
    runs = [line_layer()(points, generator=torch.Generator().manual_seed(3)) for _ in range(2)]
    assert torch.equal(runs[0].model, runs[1].model)
    state = torch.random.get_rng_state()
    line_layer()(points, generator=torch.Generator().manual_seed(3))
    assert torch.equal(state, torch.random.get_rng_state())


def test_logits_guide_the_samples():
    points = scenes.lines(1, 1000, 20)
    logits = torch.full((1, 1000), -10.0, dtype=torch.float64)
    logits[:, :20] = 0
    guided = line_layer()(points, logits)
    assert guided.iterations < 100
    assert guided.inliers[:, :20].double().mean() > 0.9
    by_probability = line_layer()(points, probabilities=logits.exp())
    assert by_probability.iterations < 100
    never = logits.masked_fill(logits < -1, -torch.inf)
    result = line_layer(keep_hypotheses=True)(points, never)
    assert (result.hypotheses.samples < 20).all()


def test_training_keeps_every_hypothesis():
    points = scenes.lines(2, 50, 30).requires_grad_()
    layer = line_layer(hypotheses=17).train()
    result = layer(points)
    hypotheses = result.hypotheses
    assert hypotheses.models.shape == (2, 17, 1, 3)
    assert hypotheses.scores.shape == hypotheses.valid.shape == hypotheses.stable.shape == (2, 17, 1)
    assert hypotheses.samples.shape == (2, 17, 2)
    assert hypotheses.log_prob is None  # no logits
    assert (result.iterations == 17).all()
    drawn = points.detach().unsqueeze(1).expand(-1, 17, -1, -1)
    drawn = drawn.gather(2, hypotheses.samples.unsqueeze(-1).expand(-1, -1, -1, 2))
    assert LINE.residual(hypotheses.models.detach(), drawn.unsqueeze(2)).max() < 1e-12
    hypotheses.scores[hypotheses.valid].sum().backward()
    assert points.grad.isfinite().all()
    assert points.grad.abs().sum() > 0


@pytest.mark.parametrize("training", [False, True])
def test_model_has_the_gradient_of_the_refined_optimum(training):
    """Against finite differences of the whole layer: a small step changes no inlier and draws the same samples."""
    points = scenes.lines(1, 40, 40, noise=0.002)
    layer = line_layer(threshold=0.05).train(training)
    weight = torch.tensor([0.3, -1.0, 0.7], dtype=torch.float64)

    def value(x):
        model = layer(x, generator=torch.Generator().manual_seed(0)).model
        return (scenes.up_to_sign(model, TRUTH) * weight).sum()

    moved = points.clone().requires_grad_()
    gradient = torch.autograd.grad(value(moved), moved)[0]
    for i, j in ((0, 0), (7, 1), (39, 1)):
        step = torch.zeros_like(points)
        step[0, i, j] = 1e-5
        with torch.no_grad():
            expected = (value(points + step) - value(points - step)) / 2e-5
        torch.testing.assert_close(gradient[0, i, j], expected, rtol=1e-4, atol=1e-7)


def test_gradients_are_finite_whatever_comes():
    points = scenes.lines(4, 30, 20)
    points[1] = 0.5
    points[2] = torch.nan
    points[3, 3:] = torch.inf
    points.requires_grad_()
    for training in (False, True):
        result = line_layer().train(training)(points)
        found = result.status == RansacStatus.FOUND
        assert found.tolist() == [True, False, False, (training and bool(found[3])) or bool(found[3])]
        loss = result.model[found].sum()
        if training:
            loss = loss + result.hypotheses.scores[result.hypotheses.valid].sum()
        gradient = torch.autograd.grad(loss, points)[0]
        assert gradient.isfinite().all()
        assert (gradient[1:3] == 0).all()


def test_garbage_has_no_model():
    status = line_layer(min_inliers=10)(scenes.lines(3, 30, 0), generator=torch.Generator().manual_seed(0)).status
    assert (status == RansacStatus.TOO_FEW_INLIERS).all()
    equal = line_layer()(torch.full((20, 2), 0.3))
    assert equal.status == RansacStatus.DEGENERATE
    assert equal.model.isnan().all()
    assert equal.score == -torch.inf
    assert not equal.inliers.any()
    assert line_layer()(torch.full((20, 2), torch.nan)).status == RansacStatus.TOO_FEW_POINTS
    logits = torch.full((20,), -torch.inf)
    logits[3] = 0
    assert line_layer()(torch.rand(20, 2), logits).status == RansacStatus.TOO_FEW_POINTS


def test_failures_raise_on_request():
    points = torch.stack([scenes.lines(1, 60, 30)[0], torch.full((60, 2), 0.3, dtype=torch.float64)])
    layer = line_layer(on_failure="raise")
    with pytest.raises(dl.DegenerateModelError, match=r"1 of 2 problems .* row 1 \(DEGENERATE\)") as caught:
        layer(points)
    error = pickle.loads(pickle.dumps(caught.value))
    assert error.rows == [1]
    assert error.result.status.tolist() == [RansacStatus.FOUND, RansacStatus.DEGENERATE]
    assert error.result.model[0].isfinite().all()
    assert layer(points[0]).status == RansacStatus.FOUND
    with pytest.raises(ValueError, match="'on_failure' must be one of"):
        line_layer(on_failure="previous")


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("shape", [(0, 5, 2), (2, 0, 2), (0, 2), (1, 2), (3, 0, 0, 2)])
def test_empty_input(shape, training):
    result = line_layer().train(training)(torch.rand(shape))
    assert result.model.shape == (*shape[:-2], 3)
    assert result.inliers.shape == shape[:-1]
    assert (result.status == RansacStatus.TOO_FEW_POINTS).all()


def test_minimal_problem_is_solved():
    result = line_layer()(torch.tensor([[0.0, 0.0], [1.0, 1.0]]))
    assert result.status == RansacStatus.FOUND
    assert result.inliers.all()


def test_search_can_keep_its_hypotheses():
    points = torch.cat([scenes.lines(1, 100, 90), scenes.lines(1, 100, 10)])
    result = line_layer(keep_hypotheses=True)(points)
    hypotheses = result.hypotheses
    assert hypotheses.models.shape[1] == result.iterations.max()
    counts = hypotheses.valid.any(-1).sum(-1)
    assert (counts <= result.iterations).all()
    assert (counts > 0.9 * result.iterations).all()
    assert (hypotheses.scores.flatten(1).amax(-1) <= result.score + 1e-6).all()
    assert line_layer(keep_hypotheses=False).train()(points).hypotheses is None


def test_threshold_of_each_problem():
    points = scenes.lines(2, 100, 60, noise=0.005)
    threshold = torch.tensor([0.02, 0.002], dtype=torch.float64)
    layer = dl.ransac.RANSAC(LINE, threshold=threshold).eval()
    counts = layer(points).inliers.sum(-1)
    assert counts[0] > 1.5 * counts[1]
    assert "threshold" in layer.state_dict()
    learned = dl.ransac.RANSAC(LINE, threshold=torch.nn.Parameter(torch.tensor(0.02)))
    result = learned.train()(points.float())
    result.hypotheses.scores[result.hypotheses.valid].sum().backward()
    assert learned.threshold.grad > 0


class Offset(dl.ransac.MinimalSolver):
    """b = a + offset: a user's model in its fewest lines."""

    sample_size, point_size, model_shape = 1, 2, (1,)

    def solve(self, sample):
        models = (sample[..., 1] - sample[..., 0]).unsqueeze(-1)
        return models, torch.ones_like(models[..., 0], dtype=torch.bool)

    def residual(self, models, points):
        return (points[..., 1] - points[..., 0] - models).abs()


def test_a_users_model():
    points = torch.rand(3, 50, 2)
    points[:, :30, 1] = points[:, :30, 0] + 0.25
    points.requires_grad_()
    for training in (False, True):
        result = dl.ransac.RANSAC(Offset(), threshold=0.01).train(training)(points)
        assert (result.model - 0.25).abs().max() < 0.011
    result.hypotheses.scores.sum().backward()
    assert points.grad.abs().sum() > 0
    with pytest.raises(dl.UnsupportedOperationError, match="override fit"):
        Offset().fit(points, torch.ones(3, 50))


def test_layer_copies_and_checkpoints():
    layer = copy.deepcopy(line_layer().train())
    points = scenes.lines(2, 60, 40).requires_grad_()
    assert "Line2D" in repr(layer)

    def score(x):
        return layer(x, generator=torch.Generator().manual_seed(0)).hypotheses.scores.sum()

    plain = torch.autograd.grad(score(points), points)[0]
    again = torch.autograd.grad(checkpoint(score, points, use_reentrant=False), points)[0]
    torch.testing.assert_close(plain, again)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # Dynamo's own, where a graph goes on
@pytest.mark.parametrize("training", [False, True])
def test_compile_breaks_the_graph_and_changes_nothing(training):
    layer = line_layer().train(training)
    points = scenes.lines(2, 60, 40).requires_grad_()

    def loss(x):
        torch.manual_seed(0)
        return (layer(x).model * 2).sum()

    torch._dynamo.reset()
    values = [loss(points), torch.compile(loss, backend="eager")(points)]
    assert values[0] == values[1]
    assert torch.equal(*(torch.autograd.grad(value, points)[0] for value in values))
    with pytest.raises(torch._dynamo.exc.Unsupported, match="difflayers"):
        torch.compile(lambda x: layer(x).model, backend="eager", fullgraph=True)(points)
    with pytest.raises(dl.UnsupportedOperationError, match=r"RANSAC.*torch\.export"):
        torch.export.export(layer, (points.detach(),))


def test_checkpointing_draws_the_same_samples_again():
    layer = line_layer().train()
    points = scenes.lines(2, 60, 40).requires_grad_()
    logits = torch.zeros(2, 60, dtype=torch.float64, requires_grad=True)

    def loss(x, of):
        hypotheses = layer(x, of).hypotheses
        return (hypotheses.scores * hypotheses.log_prob.unsqueeze(-1)).sum()

    torch.manual_seed(5)
    plain = torch.autograd.grad(loss(points, logits), (points, logits))
    torch.manual_seed(5)
    again = torch.autograd.grad(checkpoint(loss, points, logits, use_reentrant=False), (points, logits))
    for one, other in zip(plain, again, strict=True):
        assert torch.equal(one, other)


BAD = [
    (lambda layer: layer(torch.zeros(5, 3)), ValueError, r"\[\.\.\., n, 2\]"),
    (lambda layer: layer(torch.zeros(2)), ValueError, "points"),
    (lambda layer: layer([[0.0, 0.0]]), TypeError, "points"),
    (lambda layer: layer(torch.zeros(5, 2, dtype=torch.int64)), TypeError, "points"),
    (lambda layer: layer(torch.zeros(5, 2).half()), TypeError, "points"),
    (lambda layer: layer(torch.rand(5, 2), torch.zeros(4)), ValueError, "logits"),
    (lambda layer: layer(torch.rand(5, 2), torch.full((5,), torch.nan)), ValueError, "logits"),
    (lambda layer: layer(torch.rand(5, 2), torch.full((5,), torch.inf)), ValueError, "logits"),
    (lambda layer: layer(torch.rand(5, 2), torch.zeros(5), probabilities=torch.ones(5)), ValueError, "exclude"),
    (lambda layer: layer(torch.rand(5, 2), probabilities=-torch.ones(5)), ValueError, "probabilities"),
    (lambda layer: layer(torch.rand(5, 2), mask=torch.ones(5)), TypeError, "mask"),
    (lambda layer: layer(torch.rand(5, 2), mask=torch.ones(4, dtype=torch.bool)), ValueError, "mask"),
    (lambda layer: layer(torch.rand(5, 2), generator=3), TypeError, "generator"),
    (lambda layer: torch.func.vmap(layer)(torch.rand(2, 5, 2)), dl.UnsupportedOperationError, "torch.func"),
]


@pytest.mark.parametrize(("call", "error", "message"), BAD)
def test_bad_calls(call, error, message):
    with pytest.raises(error, match=message):
        call(line_layer())


BAD_SETTINGS = [
    ({"threshold": 0.0}, ValueError), ({"threshold": -1.0}, ValueError), ({"threshold": "1"}, TypeError),
    ({"threshold": torch.tensor([0.1, -0.1])}, ValueError), ({"confidence": 1.0}, ValueError),
    ({"confidence": 0.0}, ValueError), ({"max_iterations": 0}, ValueError), ({"hypotheses": 0}, ValueError),
    ({"candidates": 0}, ValueError), ({"min_inliers": 0}, ValueError), ({"sampler": "uniform"}, TypeError),
    ({"scorer": "msac"}, TypeError), ({"refiner": "irls"}, TypeError), ({"keep_hypotheses": 1}, TypeError),
]  # fmt: skip


@pytest.mark.parametrize(("settings", "error"), BAD_SETTINGS)
def test_bad_settings(settings, error):
    with pytest.raises(error, match=f"'{next(iter(settings))}'"):
        line_layer(**settings)


def test_model_must_be_an_instance():
    with pytest.raises(TypeError, match="pass an instance"):
        dl.ransac.RANSAC(dl.ransac.Line2D, threshold=1.0)
    with pytest.raises(ValueError, match="threshold"):
        dl.ransac.RANSAC(LINE, threshold=torch.tensor([0.1, 0.2, 0.3]))(torch.rand(2, 5, 2))


def test_poor_models_are_resampled_whatever_the_logits():
    """A guide that draws a few inliers of a model again and again does not make it good enough to be left as it is."""
    points = scenes.lines(1, 300, 90, noise=0.003)
    threshold = torch.tensor([0.01], dtype=torch.float64)
    poor = TRUTH.unsqueeze(0) + torch.tensor([0.04, 0, -0.03], dtype=torch.float64)
    inliers = LINE.residual(poor, points) < threshold
    assert 20 < inliers.sum() < 60
    layer = line_layer(local=None)
    settings = _search.Settings(LINE, layer.sampler, layer.scorer, layer.local, 0.999, 64, 4, False)
    for logits in (torch.zeros(1, 300, dtype=torch.float64), torch.where(inliers, 0.0, -20.0).double()):
        problems = _search.Problems(points, None, logits, threshold)
        score = _search._scores(settings, poor.unsqueeze(1), problems, torch.ones(1, 1, dtype=torch.bool)).squeeze(1)
        _, after = _search._resampled(
            settings, problems, poor, score, torch.zeros_like(score), 64, torch.Generator().manual_seed(0)
        )
        assert after > 1.3 * score
