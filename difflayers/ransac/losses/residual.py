"""How far true inliers are from a model of any kind."""

from __future__ import annotations

from torch import Tensor

from ... import _checks, protocols
from ..solver import checked_solver
from ._points import aligned, bounded_mean

__all__ = ["residual_loss"]


def residual_loss(
    solver: protocols.MinimalSolver, models: Tensor, points: Tensor, inliers: Tensor | None = None, *, limit: float
) -> Tensor:
    r"""How far true inliers are from each model, for any kind of model.

    $$\ell = \frac{1}{\sum_i w_i} \sum_i w_i \min\Bigl(\frac{r_i^2}{\text{limit}^2}, 1\Bigr).$$

    Args:
        solver: the kind of model, whose residual r is.
        models: `[*batch, ..., *model_shape]`: any dimensions of hypotheses after those of the batch.
        points: `[*batch, n, d]`.
        inliers: `[*batch, n]`, which points belong to the model: bool, or weights that are not negative; None: all.
        limit: a distance in the units of the residual, positive; farther inliers count 1.

    Returns:
        `[*batch, ...]`, one loss a model, in [0, 1]; 0 where there are no inliers.

    Raises:
        TypeError, ValueError: models or points are not floating-point tensors of these shapes, a limit that is not
            positive.

    Cost:
        O(models n) time and memory; a gradient only for the pairs of a model and a point within the limit.

    Transforms:
        backward, double backward; torch.compile breaks the graph.

    Example:
        >>> import torch, difflayers as dl
        >>> lines = torch.tensor([[0.0, 1.0, 0.0], [0.0, 1.0, -5.0]])
        >>> points = torch.tensor([[0.0, 0.0], [1.0, 0.5]])
        >>> dl.ransac.residual_loss(dl.ransac.Line2D(), lines, points, limit=1.0)
        tensor([0.1250, 1.0000])
    """
    function = "difflayers.ransac.residual_loss"
    solver = checked_solver(function, "solver", solver)
    limit = _checks.number(function, "limit", limit, above=0)
    models, points = _checks.tensor(function, "models", models), _checks.tensor(function, "points", points)
    shape = tuple(solver.model_shape)
    if tuple(models.shape[models.dim() - len(shape) :]) != shape:
        raise ValueError(
            f"{function}: argument 'models' must have a shape that ends in {shape}, the shape of {solver!r}, got "
            f"{tuple(models.shape)}"
        )
    points, weights = aligned(function, models.shape[: models.dim() - len(shape)], points, solver.point_size, inliers)
    return bounded_mean(solver.squared_residual, models, points, weights, limit)
