"""Random scoring problems, and residuals written down once more in NumPy, one model and one point at a time."""

import numpy as np
import torch

from difflayers.ransac import MAGSAC, MSAC, GaussianUniform, InlierCount, MinimalSolver, residuals

SHAPES = {
    "sampson": ((3, 3), 4), "symmetric_epipolar": ((3, 3), 4), "transfer": ((3, 3), 4),
    "symmetric_transfer": ((3, 3), 4), "line": ((3,), 2), "plane": ((4,), 3), "circle": ((3,), 2),
    "rigid": ((3, 4), 6), "reprojection": ((3, 4), 5),
}  # fmt: skip
SCORERS = {"count": InlierCount(), "msac": MSAC(), "gaussian_uniform": GaussianUniform(), "magsac": MAGSAC()}


class Model(MinimalSolver):
    """A model with one of the ready residuals, fused or not."""

    sample_size = 1

    def __init__(self, name, *, fused=True):
        self.name, self.kernel = name, name if fused else None
        self.model_shape, self.point_size = SHAPES[name]

    def solve(self, sample):
        raise NotImplementedError

    def residual(self, models, points):
        return self.squared_residual(models, points).sqrt()

    def squared_residual(self, models, points):
        return residuals.squared(self.name, models, points)


def problem(name, batch=2, hypotheses=5, count=23, *, dtype=torch.float64, seed=0):
    """Models near enough to the points that about half of them are inliers of the threshold: models, points,
    threshold, mask, valid."""
    generator = torch.Generator().manual_seed(seed)
    shape, d = SHAPES[name]
    draw = lambda *size: torch.randn(*size, generator=generator, dtype=torch.float64)  # noqa: E731
    models, points = draw(batch, hypotheses, *shape), draw(batch, count, d)
    flat = residuals.squared(name, models, points.unsqueeze(1)).flatten(1)
    # of the finite ones; not exactly any of them, as inliers are those below
    middle = (
        flat.where(flat.isfinite(), torch.nan).nanmedian(1).values.sqrt() * 1.01 if flat.numel() else torch.tensor(1)
    )
    threshold = middle.nan_to_num(1.0).double().expand(batch)
    mask = torch.rand(batch, count, generator=generator) > 0.2
    valid = torch.rand(batch, hypotheses, generator=generator) > 0.2
    return models.to(dtype), points.to(dtype), threshold.to(dtype), mask, valid


def naive_squared(name, model, point):
    """The squared residual of one model and one point, from its definition."""
    x = np.append(point[:2], 1.0)
    if name in ("sampson", "symmetric_epipolar"):
        y = np.append(point[2:], 1.0)
        second, first = model @ x, model.T @ y
        if name == "symmetric_epipolar":
            distance = lambda line, p: line @ p / np.hypot(line[0], line[1])  # noqa: E731
            return distance(second, y) ** 2 + distance(first, x) ** 2
        # the length of the first-order correction of (x1, y1, x2, y2) onto y' F x = 0
        gradient = np.concatenate([first[:2], second[:2]])
        return (y @ model @ x) ** 2 / (gradient @ gradient)
    if name in ("transfer", "symmetric_transfer"):
        y = np.append(point[2:], 1.0)
        image = model @ x
        result = np.sum((image[:2] / image[2] - point[2:]) ** 2)
        if name == "symmetric_transfer":
            back = np.linalg.inv(model) @ y
            result += np.sum((back[:2] / back[2] - point[:2]) ** 2)
        return result
    if name in ("line", "plane"):
        return (model[:-1] @ point + model[-1]) ** 2
    if name == "circle":
        return (np.linalg.norm(point - model[:2]) - model[2]) ** 2
    if name == "rigid":
        return np.sum((model @ np.append(point[:3], 1.0) - point[3:]) ** 2)
    image = model @ np.append(point[2:], 1.0)
    return np.sum((image[:2] / image[2] - point[:2]) ** 2) if image[2] > 0 else np.inf
