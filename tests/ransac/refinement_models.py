"""Models and problems for the tests of refinement: E and F as bare matrices, a pose, and data with known truth."""

import torch

from difflayers.ransac import MinimalSolver, manifolds


class Matrix(MinimalSolver):
    """A 3 x 3 matrix with the Sampson distance, not solved for."""

    sample_size, point_size, model_shape = 8, 4, (3, 3)
    kernel = "sampson"

    def solve(self, sample):
        raise NotImplementedError

    def _parts(self, models, points):
        ones = torch.ones_like(points[..., :1])
        first, second = torch.cat([points[..., :2], ones], -1), torch.cat([points[..., 2:], ones], -1)
        left, right = first @ models.mT, second @ models
        square = left[..., :2].square().sum(-1) + right[..., :2].square().sum(-1)
        return (second * left).sum(-1), square

    def residual(self, models, points):
        return self.residual_vector(models, points).squeeze(-1).abs()

    def squared_residual(self, models, points):
        algebraic, square = self._parts(models, points)
        return algebraic.square() / square

    def residual_vector(self, models, points):
        algebraic, square = self._parts(models, points)
        return (algebraic / square.sqrt()).unsqueeze(-1)


class Essential(Matrix):
    problem, freedom = "essential", 5

    def retract(self, models, step):
        return manifolds.retract_essential(models, step)


class Fundamental(Matrix):
    problem, freedom = "fundamental", 7

    def retract(self, models, step):
        return manifolds.retract_fundamental(models, step)


class Pose(MinimalSolver):
    sample_size, point_size, model_shape = 3, 5, (3, 4)
    problem, kernel, freedom = "pose", "reprojection", 6

    def solve(self, sample):
        raise NotImplementedError

    def residual(self, models, points):
        return self.residual_vector(models, points).norm(dim=-1)

    def squared_residual(self, models, points):
        return self.residual_vector(models, points).square().sum(-1)

    def residual_vector(self, models, points):
        seen = points[..., 2:] @ models[..., :3].mT + models[..., None, :, 3]
        return seen[..., :2] / seen[..., 2:] - points[..., :2]

    def retract(self, models, step):
        return manifolds.retract_motion(models, step)


def small_rotation(generator, size=0.4):
    return manifolds.rotation(size * torch.randn(3, dtype=torch.float64, generator=generator))


def two_views(generator, count, outliers, noise):
    """Rows (x1, y1, x2, y2) on the normalised image plane, the first `outliers` of them wrong, and (R, t)."""
    draw = lambda *shape: torch.rand(*shape, dtype=torch.float64, generator=generator)  # noqa: E731
    R, t = small_rotation(generator, 0.2), torch.nn.functional.normalize(draw(3) - 0.5, dim=0)
    X = torch.cat([4 * draw(count, 2) - 2, 4 + 4 * draw(count, 1)], -1)
    Y = X @ R.T + t
    points = torch.cat([X[:, :2] / X[:, 2:], Y[:, :2] / Y[:, 2:]], -1)
    points = points + noise * torch.randn(count, 4, dtype=torch.float64, generator=generator)
    points[:outliers] = 2 * draw(outliers, 4) - 1
    return points, R, t
