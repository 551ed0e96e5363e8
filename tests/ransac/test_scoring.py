"""Scores of hypotheses: the fused kernels, the plain path in chunks, and where each is used."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch.library import opcheck

import difflayers as dl
from difflayers import _ops
from difflayers.ransac import MSAC, Homography, Learned, Line2D, Scorer, residuals, scoring
from tests.ransac.scoring_problems import SCORERS, SHAPES, Model, naive_squared, problem
from tests.tolerances import assert_identical, assert_near

compiled = pytest.mark.skipif(not _ops.COMPILED, reason="the kernels are not compiled in")
each_residual = pytest.mark.parametrize("name", SHAPES)
each_score = pytest.mark.parametrize("score", SCORERS)
each_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
COUNTS = (0, 1, 7, 8, 17, 1000, 1025)  # around the sizes of a pack and of a block


def both_paths(name, score, tensors, mask, valid, weight):
    """Scores and gradients by the kernel, and by autograd of the plain path in float64."""
    results = []
    for fused, dtype in ((True, tensors[0].dtype), (False, torch.float64)):
        leaves = [t.detach().to(dtype).requires_grad_() for t in tensors]
        found = scoring.scores(Model(name, fused=fused), SCORERS[score], *leaves[:2], mask, leaves[2], valid)
        finite = torch.where(valid, found, 0) if valid is not None else found
        results.append((found, *torch.autograd.grad((finite * weight.to(dtype)).sum(), leaves, materialize_grads=True)))
    return results


@each_residual
def test_residuals_are_those_of_their_definitions(name):
    models, points, *_ = problem(name, batch=1)
    found = residuals.squared(name, models[0], points[0])
    expected = [[naive_squared(name, m, x) for x in points[0].numpy()] for m in models[0].numpy()]
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-8, atol=1e-12)


def test_sampson_and_symmetric_epipolar_equal_kornia():
    epipolar = pytest.importorskip("kornia.geometry.epipolar")
    models, points, *_ = problem("sampson", batch=1)
    pair = points[:, :, :2], points[:, :, 2:]
    for h, one in enumerate(models[0]):
        for name, peer in (
            ("sampson", epipolar.sampson_epipolar_distance),
            ("symmetric_epipolar", epipolar.symmetrical_epipolar_distance),
        ):
            found = residuals.squared(name, models[0], points[0])[h]
            torch.testing.assert_close(found, peer(*pair, one[None], squared=True, eps=0.0)[0], rtol=1e-9, atol=0)


@compiled
@each_dtype
@each_score
@each_residual
def test_core_kernel_equals_the_plain_path(name, score, dtype):
    *tensors, mask, valid = problem(name, dtype=dtype)
    weight = torch.randn(valid.shape, dtype=torch.float64)
    for masks in ((mask, valid), (None, None)):
        fused, plain = both_paths(name, score, tensors, *masks, weight)
        # residuals near the poles of a projection are ill-conditioned, in float32 visibly so
        for order, (a, b) in enumerate(zip(fused, plain, strict=True)):
            assert_near(a, b.to(dtype), order=min(order, 1), factor=10 if "transfer" in name else 4)


@compiled
@each_dtype
@pytest.mark.parametrize("count", COUNTS)
def test_core_any_number_of_points_and_models(count, dtype):
    for hypotheses in (0, 1, 33):
        *tensors, mask, valid = problem("line", 3, hypotheses, count, dtype=dtype)
        mask[0] = False
        weight = torch.randn(valid.shape, dtype=torch.float64)
        fused, plain = both_paths("line", "msac", tensors, mask, valid, weight)
        for order, (a, b) in enumerate(zip(fused, plain, strict=True)):
            assert_near(a, b.to(dtype), order=min(order, 1), factor=10)  # 1000 terms


@compiled
@pytest.mark.parametrize("score", ["msac", "gaussian_uniform", "magsac"])
@each_residual
def test_gradients_equal_finite_differences(name, score):
    *tensors, mask, valid = problem(name, count=9)
    scorer = SCORERS[score]
    run = lambda m, x, t: scoring.scores(Model(name), scorer, m, x, mask, t, valid)[valid]  # noqa: E731
    leaves = [t.requires_grad_() for t in tensors]
    assert torch.autograd.gradcheck(run, leaves, eps=1e-7, atol=1e-5, rtol=1e-4)


@compiled
@pytest.mark.parametrize("score", SCORERS)
def test_core_approximations_keep_their_stated_bound(score):
    bound = 3e-6  # csrc/scores.h
    distance = torch.cat([torch.zeros(1), torch.logspace(-9, 1, 4001), torch.linspace(0, 1.2, 8001)])
    line = torch.tensor([1.0, 0.0, 0.0]).expand(len(distance), 1, 3)
    args = (torch.stack([distance, torch.zeros_like(distance)], 1).unsqueeze(1), None, None)
    scale = torch.full((len(distance),), 0.273 if score == "gaussian_uniform" else 1.0, dtype=torch.float64)
    found = _ops.hypothesis_scores(line, *args, scale, None, "line", score, 0.82).squeeze(1)
    square = distance.double().square().requires_grad_()
    expected = SCORERS[score].of_squared(square)
    edge = (distance - 1).abs() > 1e-6
    assert (found.double() - expected)[edge].abs().max() <= bound
    if score == "count":
        return
    (slope,) = torch.autograd.grad(expected.sum(), square)
    gradient = torch.ones_like(found).unsqueeze(1)
    _, of_points, _ = _ops.hypothesis_scores_backward(gradient, line, *args, scale, "line", score, 0.82)
    here = edge & (distance > 0)
    in_units = slope * scale.square()  # by the kernel's own ratio
    error = of_points[:, 0, 0].double() / (2 * distance) * scale.square() - in_units
    assert error[here].abs().max() <= bound


@compiled
@each_dtype
@each_score
@each_residual
def test_core_extreme_numbers_never_give_nan(name, score, dtype):
    models, points, threshold, *_ = problem(name, 1, 6, 12, dtype=dtype)
    models[0, 0], models[0, 1], models[0, 2] = 0, 1e30, 1e-30
    models[0, 3] = torch.nan
    points[0, 0], points[0, 1], points[0, 2] = 0, 1e30, -1e30
    points[0, 3], points[0, 4] = 1e-30, torch.inf
    valid = torch.ones(1, 6, dtype=torch.bool)
    for size in (1e-30, 1e-3, float(threshold), 1e30):
        leaves = [models.clone().requires_grad_(), points.clone().requires_grad_()]
        scale = torch.tensor([size], dtype=dtype, requires_grad=True)
        found = scoring.scores(Model(name), SCORERS[score], *leaves, None, scale, valid)
        assert ((found >= 0) & (found <= 12.001)).all()
        assert found[0, 3] == 0
        for gradient in torch.autograd.grad(found[:, [0, 3, 4, 5]].sum(), leaves):
            assert not gradient.isnan().any()


@pytest.mark.parametrize("fused", [True, False])
def test_points_at_infinity_score_nothing_and_have_no_gradient(fused):
    homography = torch.tensor([[[[1.0, 0, 0], [0, 1, 0], [1, 0, 0]]]], dtype=torch.float64, requires_grad=True)
    points = torch.tensor([[[0.0, 1, 5, 5]], [[1.0, 1, 1, 1]]], dtype=torch.float64).transpose(0, 1).requires_grad_()
    threshold = torch.ones(1, dtype=torch.float64)
    found = scoring.scores(Model("transfer", fused=fused), MSAC(), homography, points, None, threshold)
    assert found.item() == 1  # the second point
    of_model, of_points = torch.autograd.grad(found.sum(), (homography, points))
    assert of_model.isfinite().all()
    assert_identical(of_points[0, 0], torch.zeros(4, dtype=torch.float64))
    camera = torch.eye(3, 4, dtype=torch.float64).reshape(1, 1, 3, 4).requires_grad_()
    behind = torch.tensor([[[0.0, 0, 0, 0, -1], [0, 0, 0, 0, 1]]], dtype=torch.float64, requires_grad=True)
    found = scoring.scores(Model("reprojection", fused=fused), MSAC(), camera, behind, None, threshold)
    assert found.item() == 1
    assert all(g.isfinite().all() for g in torch.autograd.grad(found.sum(), (camera, behind)))


@pytest.mark.parametrize("fused", [True, False])
def test_circle_through_its_centre_has_no_gradient_there(fused):
    circle = torch.tensor([[[1.0, 2.0, 0.5]]], dtype=torch.float64, requires_grad=True)
    centre = torch.tensor([[[1.0, 2.0]]], dtype=torch.float64, requires_grad=True)
    found = scoring.scores(Model("circle", fused=fused), MSAC(), circle, centre, None, torch.ones(1).double())
    of_circle, of_point = torch.autograd.grad(found.sum(), (circle, centre))
    assert_identical(of_circle, torch.tensor([[[0.0, 0.0, -1.0]]]).double())
    assert_identical(of_point, torch.zeros(1, 1, 2).double())


@pytest.mark.parametrize("fused", [True, False])
def test_what_is_not_valid_scores_minus_infinity_without_gradient(fused):
    models, points, threshold, _, valid = problem("transfer")
    models[~valid] = torch.nan
    models[0, 0], valid[0, 0] = 0.0, False
    models.requires_grad_()
    points.requires_grad_()
    found = scoring.scores(Model("transfer", fused=fused), MSAC(), models, points, None, threshold, valid)
    assert (found[~valid] == -torch.inf).all()
    of_models, of_points = torch.autograd.grad(found.softmax(1).square().sum(), (models, points))
    assert (of_models[~valid] == 0).all()
    assert of_models.isfinite().all()
    assert of_points.isfinite().all()
    assert of_models[valid].any()
    none = torch.zeros_like(valid)
    found = scoring.scores(Model("transfer", fused=fused), MSAC(), models, points, None, threshold, none)
    assert (found == -torch.inf).all()
    found.sum().backward()
    assert not models.grad.any()


@compiled
def test_absent_points_may_be_anything():
    *tensors, mask, valid = problem("sampson")
    weight = torch.randn(valid.shape, dtype=torch.float64)
    expected, _ = both_paths("sampson", "magsac", tensors, mask, valid, weight)
    tensors[1][~mask] = torch.nan
    found = [t.detach().requires_grad_() for t in tensors]
    score = scoring.scores(Model("sampson"), SCORERS["magsac"], *found[:2], mask, found[2], valid)
    gradients = torch.autograd.grad((torch.where(valid, score, 0) * weight).sum(), found)
    for a, b in zip((score, *gradients), expected, strict=True):
        assert_identical(a, b)


@compiled
def test_stopping_early_changes_no_score_that_reaches_the_bound():
    models, points, threshold, mask, _ = problem("sampson", 2, 64, 3000)
    run = lambda bound: scoring.scores(  # noqa: E731
        Model("sampson"), MSAC(), models, points, mask, threshold, None, bound
    )
    full = run(None)
    bound = full.median(1).values
    early = run(bound)
    above = full >= bound.unsqueeze(1)
    assert_near(early[above], full[above])
    assert (early[~above] < bound.unsqueeze(1).expand_as(full)[~above]).all()
    assert (early != full).any()  # something did stop


@compiled
@each_dtype
def test_threads_change_nothing_but_rounding(dtype):
    *tensors, mask, valid = problem("sampson", 2, 400, 1500, dtype=dtype)
    weight = torch.randn(valid.shape, dtype=torch.float64)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one, _ = both_paths("sampson", "msac", tensors, mask, valid, weight)
        torch.set_num_threads(5)
        five, _ = both_paths("sampson", "msac", tensors, mask, valid, weight)
    finally:
        torch.set_num_threads(threads)
    assert_identical(five[0], one[0])
    for a, b in zip(five[1:], one[1:], strict=True):
        assert_near(a, b, order=1)


@compiled
def test_opcheck():
    models, points, threshold, mask, valid = problem("rigid")
    arguments = (models.flatten(2), points, mask, valid, threshold)
    ops, checks = torch.ops.difflayers, ["test_schema", "test_faketensor"]  # autograd is wired in scoring.py
    opcheck(ops.hypothesis_scores, (*arguments, threshold, "rigid", "msac", 0.0), test_utils=checks)
    gradient = torch.randn(valid.shape, dtype=torch.float64)
    opcheck(ops.hypothesis_scores_backward, (gradient, *arguments, "rigid", "msac", 0.0), test_utils=checks)


@compiled
def test_operators_refuse_what_does_not_fit():
    models, points, threshold, mask, valid = problem("line")
    run = lambda *a: _ops.hypothesis_scores(*a)  # noqa: E731
    for arguments, message in (
        ((models, points, mask, valid, threshold, None, "curve", "msac", 0.0), "unknown residual 'curve'"),
        ((models, points, mask, valid, threshold, None, "line", "votes", 0.0), "unknown score 'votes'"),
        ((models, points, mask, valid, threshold, None, "plane", "msac", 0.0), "points must be"),
        ((models[..., :2], points, mask, valid, threshold, None, "line", "msac", 0.0), "models must be"),
        ((models.float(), points, mask, valid, threshold, None, "line", "msac", 0.0), "dtype"),
        ((models, points, mask[:1], valid, threshold, None, "line", "msac", 0.0), "mask must be"),
        ((models, points, mask, valid.long(), threshold, None, "line", "msac", 0.0), "valid must be"),
        ((models, points, mask, valid, threshold.float(), None, "line", "msac", 0.0), "scale must be"),
        ((models, points, mask, valid, threshold, threshold[:1], "line", "msac", 0.0), "at_least must be"),
        ((models.half(), points.half(), mask, valid, threshold, None, "line", "msac", 0.0), "float32 or float64"),
    ):
        with pytest.raises(RuntimeError, match=message):
            run(*arguments)


@compiled
def test_a_second_derivative_raises():
    models, points, threshold, *_ = problem("line")
    models.requires_grad_()
    found = scoring.scores(Model("line"), MSAC(), models, points, None, threshold)
    (gradient,) = torch.autograd.grad(found.sum(), models, create_graph=True)
    with pytest.raises(dl.UnsupportedOperationError, match="kernel = None"):
        gradient.square().sum().backward()
    scorer = MSAC()
    scorer.kernel = None
    found = scoring.scores(Model("line"), scorer, models, points, None, threshold)
    (gradient,) = torch.autograd.grad(found.sum(), models, create_graph=True)
    gradient.square().sum().backward()
    assert models.grad.any()


def kept_bytes(function):
    """What autograd keeps for the backward pass of function()."""
    kept = {}
    pack = lambda t: kept.setdefault(t.untyped_storage().data_ptr(), t)  # noqa: E731
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        function()
    return sum(t.untyped_storage().nbytes() for t in kept.values())


@pytest.mark.parametrize("fused", [pytest.param(True, marks=compiled), False])
def test_memory_does_not_grow_with_models_times_points(fused, monkeypatch):
    models, points, threshold, mask, _ = problem("sampson", 1, 64, 4096)
    models.requires_grad_()
    points.requires_grad_()
    run = lambda: scoring.scores(  # noqa: E731
        Model("sampson", fused=fused), MSAC(), models, points, mask, threshold
    )
    bytes_of_all = 64 * 4096 * 8
    monkeypatch.setattr(scoring, "CHUNK", 1 << 13)
    assert kept_bytes(run) < bytes_of_all / 8
    chunked = torch.autograd.grad(run().square().sum(), (models, points))
    monkeypatch.setattr(scoring, "CHUNK", 1 << 30)
    whole = torch.autograd.grad(run().square().sum(), (models, points))
    assert_near(chunked[0], whole[0], order=1)
    assert_near(chunked[1], whole[1], order=1)


def test_a_learned_score_trains_in_chunks(monkeypatch):
    models, points, threshold, mask, _ = problem("line", 2, 10, 20)
    network = torch.nn.Sequential(torch.nn.Linear(20, 1), torch.nn.Flatten(-2)).double()
    gradients = []
    for chunk in (1 << 30, 100):
        monkeypatch.setattr(scoring, "CHUNK", chunk)
        found = scoring.scores(Model("line"), Learned(network), models, points, mask, threshold)
        gradients.append(torch.autograd.grad(found.square().sum(), list(network.parameters())))
    for whole, chunked in zip(*gradients, strict=True):
        assert_near(chunked, whole, order=1)
        assert whole.any()


class Hidden(Homography):
    """A user's residual on a ready model."""

    def squared_residual(self, models, points):
        return super().squared_residual(models, points) * 4


class Harder(MSAC):
    """A user's score on a ready one."""

    def of_squared(self, ratio):
        return super().of_squared(ratio * 4)


class Same(Line2D):
    """Nothing of the residual changed."""


def test_what_a_subclass_changes_is_not_hidden_by_the_kernel():
    assert Hidden.kernel is None
    assert Harder.kernel is None
    assert Same.kernel == "line"
    models, points, threshold, *_ = problem("transfer")
    for solver, scorer in ((Hidden(), MSAC()), (Homography(), Harder())):
        found = scoring.scores(solver, scorer, models, points, None, threshold)
        assert_near(found, scoring.scores(Homography(), MSAC(), models, points, None, threshold / 2))


def test_any_scorer_works_in_the_layer():
    class Cauchy(Scorer):
        def of_squared(self, ratio):
            return 1 / (1 + 4 * ratio)

    x = torch.rand(60, generator=torch.Generator().manual_seed(1))
    points = torch.stack([x, 2 * x - 0.5], 1)
    points[40:] += torch.rand(20, 2, generator=torch.Generator().manual_seed(2)) * 3
    layer = dl.ransac.RANSAC(Line2D(), threshold=0.05, scorer=Cauchy()).eval()
    model = layer(points[None], generator=torch.Generator().manual_seed(0)).model[0]
    assert abs(model[0] / model[1] + 2) < 1e-3


IN_USE = dl.build_info()["instruction_set"]  # the tests above have run on it


@pytest.mark.slow
@compiled
@pytest.mark.parametrize("isa", [isa for isa in dl.build_info()["instruction_sets"] if isa != IN_USE])
def test_other_instruction_sets(isa):
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-k", "core", __file__]
    environment = {**os.environ, "DIFFLAYERS_ISA": isa}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:]


@compiled
def test_cuda_kernels_are_registered():
    if not dl.build_info()["cuda"]:
        pytest.skip("built without CUDA")
    for op in ("hypothesis_scores", "hypothesis_scores_backward"):
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"difflayers::{op}", "CUDA")


@pytest.mark.cuda
@each_dtype
@each_score
@each_residual
def test_cuda_equals_the_cpu(name, score, dtype):
    for count, hypotheses in ((23, 5), (1000, 70), (1, 1)):
        *tensors, mask, valid = problem(name, 2, hypotheses, count, dtype=dtype)
        results = []
        for device in ("cpu", "cuda"):
            leaves = [t.detach().to(device).requires_grad_() for t in tensors]
            masks = mask.to(device), valid.to(device)
            found = scoring.scores(Model(name), SCORERS[score], *leaves[:2], masks[0], leaves[2], masks[1])
            gradients = torch.autograd.grad(found.masked_fill(~masks[1], 0).sum(), leaves)
            results.append([t.cpu() for t in (found, *gradients)])
        for order, (a, b) in enumerate(zip(*results, strict=True)):
            assert_near(b, a, order=min(order, 1), factor=20)  # other orders of summation
