"""Residuals against the formulas, point by point."""

import numpy as np
import pytest
import torch

from difflayers.ransac import residuals

from .two_view_scenes import views

SHAPES = {
    "sampson": ((3, 3), 4), "symmetric_epipolar": ((3, 3), 4), "transfer": ((3, 3), 4),
    "symmetric_transfer": ((3, 3), 4), "line": ((3,), 2), "plane": ((4,), 3), "circle": ((3,), 2),
    "rigid": ((3, 4), 6), "reprojection": ((3, 4), 5),
}  # fmt: skip
every = pytest.mark.parametrize("name", SHAPES)


def by_hand(name, model, point):
    """One model, one point, numpy."""
    if name in ("sampson", "symmetric_epipolar"):
        first, second = np.append(point[:2], 1), np.append(point[2:], 1)
        line2, line1 = model @ first, model.T @ second
        error = abs(second @ model @ first)
        a, b = np.hypot(*line2[:2]), np.hypot(*line1[:2])
        return error / np.hypot(a, b) if name == "sampson" else np.hypot(error / a, error / b)
    if name in ("transfer", "symmetric_transfer"):

        def moved(h, x):
            image = h @ np.append(x, 1)
            return image[:2] / image[2]

        forth = np.linalg.norm(moved(model, point[:2]) - point[2:])
        return (
            forth
            if name == "transfer"
            else np.hypot(forth, np.linalg.norm(moved(np.linalg.inv(model), point[2:]) - point[:2]))
        )
    if name in ("line", "plane"):
        return abs(model[:-1] @ point + model[-1])
    if name == "circle":
        return abs(np.hypot(*(point - model[:2])) - model[2])
    if name == "rigid":
        return np.linalg.norm(model @ np.append(point[:3], 1) - point[3:])
    image = model @ np.append(point[2:], 1)
    return np.linalg.norm(image[:2] / image[2] - point[:2]) if image[2] > 0 else np.inf


def drawn(name, models=3, points=7):
    shape, size = SHAPES[name]
    generator = torch.Generator().manual_seed(len(name))
    model = torch.randn(models, *shape, generator=generator, dtype=torch.float64)
    if name in ("line", "plane"):
        model = model / model[:, :-1].norm(dim=-1, keepdim=True)
    return model, torch.randn(points, size, generator=generator, dtype=torch.float64)


@every
def test_residuals_are_the_formulas(name):
    models, points = drawn(name)
    actual = getattr(residuals, name)(models, points)
    expected = [[by_hand(name, model, point) for point in points.numpy()] for model in models.numpy()]
    torch.testing.assert_close(actual, torch.tensor(expected), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(residuals.squared(name, models, points), actual.square(), rtol=1e-12, atol=1e-12)
    single = getattr(residuals, name)(models.float(), points.float())
    assert single.dtype == torch.float32
    nested = getattr(residuals, name)(models.unsqueeze(1), points.expand(1, 2, *points.shape))
    torch.testing.assert_close(nested, actual.unsqueeze(1).expand(-1, 2, -1))


@every
def test_gradients_are_the_derivatives(name):
    models, points = drawn(name, 1, 3)
    if name == "reprojection":
        models[:, 2, 3] = 10  # in front of the camera
    inputs = (models.requires_grad_(), points.requires_grad_())
    assert torch.autograd.gradcheck(getattr(residuals, name), inputs)
    assert torch.autograd.gradcheck(lambda m, x: residuals.squared(name, m, x), inputs)


@every
def test_no_nan_at_zero(name):
    shape, size = SHAPES[name]
    for fill in (0.0, 1.0):
        models = torch.full(shape, fill, requires_grad=True)
        points = torch.zeros(2, size, requires_grad=True)
        distance = getattr(residuals, name)(models, points)
        assert not distance.isnan().any()
        finite = (
            distance[distance.isfinite()].sum() + residuals.squared(name, models, points).nan_to_num(posinf=0).sum()
        )
        if finite.requires_grad:
            for gradient in torch.autograd.grad(finite, (models, points), allow_unused=True):
                assert gradient is None or gradient.isfinite().all()


def test_at_the_corners_the_distance_is_infinite():
    points = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    flat = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [1.0, 0.0, -1.0]])  # maps x = 1 to infinity
    assert residuals.transfer(flat, points).item() == torch.inf
    assert residuals.symmetric_transfer(torch.ones(3, 3), points).item() == torch.inf
    assert residuals.sampson(torch.zeros(3, 3), points).item() == torch.inf
    assert residuals.reprojection(-torch.eye(3, 4), torch.tensor([[1.0, 2.0, 3.0, 4.0, 5.0]])).item() == torch.inf


def test_sampson_is_opencvs():
    cv2 = pytest.importorskip("cv2")
    scene = views(3, 5, pixels=True, noise=1.0)
    for row in range(3):
        actual = residuals.squared("sampson", scene.model[row], scene.points[row])
        for point, value in zip(scene.points[row].numpy(), actual, strict=True):
            first, second = np.append(point[:2], 1), np.append(point[2:], 1)
            assert cv2.sampsonDistance(first, second, scene.model[row].numpy()) == pytest.approx(value.item(), rel=1e-9)


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="'name' must be one of 'sampson'"):
        residuals.squared("epipolar", torch.eye(3), torch.zeros(1, 4))
