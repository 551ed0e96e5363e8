"""Scores of many models on many points: the fused kernel where there is one, else plain PyTorch in chunks."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .. import _ops
from ..errors import UnsupportedOperationError
from .scorers import Scorer
from .solver import MinimalSolver

__all__ = ["plain_scores", "scores"]

FAR = 1e12  # the ratio of what has no residual: scores there are 0, and nothing overflows in float32
CHUNK = 1 << 18  # models x points that the plain path holds at a time


def scores(
    solver: MinimalSolver, scorer: Scorer, models: Tensor, points: Tensor, mask: Tensor | None, threshold: Tensor,
    valid: Tensor | None = None, at_least: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """The score of every model on all present points.

    Args:
        models: `[B, H, *model_shape]`.
        points: `[B, N, d]`, finite.
        mask: `[B, N]` bool, True = present; None: all are.
        threshold: `[B]`.
        valid: `[B, H]` bool; models that are not valid get -inf and zero gradient.
        at_least: `[B]`; a model that cannot reach it may stop early, and gets some score below it. Without effect
            where a gradient is wanted, and on the plain path.

    Returns:
        `[B, H]`, differentiable by models, points, threshold and the scorer's parameters. Memory is that of models
        and points; nothing of the size H x N is kept.
    """
    if has_kernel(solver, scorer, models, points):
        scale = threshold.double() * scorer.kernel_scale
        at_least = None if at_least is None else at_least.double()
        return _Scores.apply(  # pyright: ignore[reportReturnType]
            models.flatten(2), points, scale, mask, valid, at_least,
            (solver.kernel, scorer.kernel, scorer.kernel_parameter),
        )  # fmt: skip
    if valid is not None:
        if not bool(valid.any()):
            # nothing to score, but still a part of the graph
            return torch.where(valid, models.flatten(2).sum(-1), -torch.inf)
        # what is not valid may be anything, and would turn gradients into 0 * NaN: a valid model stands in for it
        stand_in = models.detach()[valid][0]
        models = torch.where(valid[(..., *(None,) * len(solver.model_shape))], models, stand_in)
    result = _in_chunks(solver, scorer, models, points, mask, threshold)
    return result if valid is None else torch.where(valid, result, -torch.inf)


def has_kernel(solver: MinimalSolver, scorer: Scorer, models: Tensor, points: Tensor) -> bool:
    """Whether the fused kernel takes these."""
    return (
        solver.kernel is not None
        and scorer.kernel is not None
        and models.dtype == points.dtype
        and points.dtype in (torch.float32, torch.float64)
        and _ops.has_kernel("hypothesis_scores", points.device)
    )


def plain_scores(
    solver: MinimalSolver, scorer: Scorer, models: Tensor, points: Tensor, mask: Tensor | None, threshold: Tensor
) -> Tensor:  # shape: [B, H, *model_shape], [B, N, d], [B, N], [B] -> [B, H]
    """The reference: O(B H N) memory."""
    square = threshold.square()[:, None, None]
    squared = solver.squared_residual(models, points.unsqueeze(1))
    near = squared.detach() < FAR * square.detach()
    # zero first: the gradient of an infinity by the threshold would be NaN
    ratio = torch.where(near, torch.where(near, squared, 0) / square, FAR)
    return scorer.total(ratio, None if mask is None else mask.unsqueeze(1))


def _in_chunks(
    solver: MinimalSolver, scorer: Scorer, models: Tensor, points: Tensor, mask: Tensor | None, threshold: Tensor
) -> Tensor:
    """`plain_scores`, some models at a time; the backward pass computes each chunk again."""
    size = max(1, CHUNK // max(1, points.shape[0] * points.shape[1]))
    run = partial(plain_scores, solver, scorer)
    if models.shape[1] <= size:
        return run(models, points, mask, threshold)
    if torch.is_grad_enabled():
        run = partial(checkpoint, run, use_reentrant=False)
    return torch.cat([run(part, points, mask, threshold) for part in models.split(size, 1)], 1)


class _Scores(torch.autograd.Function):
    """The fused kernel and its gradient; a second derivative raises."""

    @staticmethod
    def forward(
        ctx: Any, models: Tensor, points: Tensor, scale: Tensor, mask: Tensor | None, valid: Tensor | None,
        at_least: Tensor | None, names: tuple[str, str, float],
    ) -> Tensor:  # fmt: skip
        ctx.save_for_backward(models, points, scale, mask, valid)
        ctx.names = names
        if any(ctx.needs_input_grad):
            at_least = None
        return _ops.hypothesis_scores(models, points, mask, valid, scale, at_least, *names)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        models, points, scale, mask, valid = ctx.saved_tensors
        of: Any = _Gradient.apply(gradients[0], models, points, scale, mask, valid, ctx.names)
        return (*of, None, None, None, None)


class _Gradient(torch.autograd.Function):
    """The gradient, which cannot be differentiated: once_differentiable would be silent where only the models, and not
    the incoming gradient, need one."""

    @staticmethod
    def forward(
        ctx: Any, gradient: Tensor, models: Tensor, points: Tensor, scale: Tensor, mask: Tensor | None,
        valid: Tensor | None, names: tuple[str, str, float],
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        return _ops.hypothesis_scores_backward(gradient, models, points, mask, valid, scale, *names)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        raise UnsupportedOperationError(
            "difflayers.ransac: the second derivative of a fused score is not implemented; set scorer.kernel = None "
            "for the plain path, which has it"
        )
