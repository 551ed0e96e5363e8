"""What RANSAC returns."""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

from torch import Tensor

__all__ = ["Hypotheses", "RansacResult", "RansacStatus"]


class RansacStatus(IntEnum):
    """How one problem came out; only FOUND has a model."""

    FOUND = 0
    TOO_FEW_POINTS = 1  # fewer present, finite points with a chance to be drawn than a minimal sample needs
    DEGENERATE = 2  # no sample determined a model
    TOO_FEW_INLIERS = 3  # the best model has less support than asked for


class Hypotheses(NamedTuple):
    """Every hypothesis of a search: H samples, up to S models each.

    Attributes:
        models: `[..., H, S, *model_shape]`, differentiable by the points; finite everywhere.
        scores: `[..., H, S]`, differentiable by models and points; -inf where not valid.
        valid: `[..., H, S]` bool.
        stable: `[..., H, S]` bool; where false, the model is too ill-conditioned for a gradient, which is then zero.
        samples: `[..., H, k]` int64, the points that were drawn.
        log_prob: `[..., H]`, the log-probability of the drawn set, differentiable by the logits; None without logits
            or when the sampler's gradient takes another way.
    """

    models: Tensor
    scores: Tensor
    valid: Tensor
    stable: Tensor
    samples: Tensor
    log_prob: Tensor | None


class RansacResult(NamedTuple):
    """The models found for a batch of problems.

    Attributes:
        model: `[..., *model_shape]`, refined; NaN where status is not FOUND.
        inliers: `[..., n]` bool; residual below the threshold.
        score: `[...]`, of the model; -inf where there is none.
        iterations: `[...]` int64, samples drawn.
        status: `[...]` int64 with the values of `RansacStatus`.
        hypotheses: all of them (`Hypotheses`), or None when they were not kept.
    """

    model: Tensor
    inliers: Tensor
    score: Tensor
    iterations: Tensor
    status: Tensor
    hypotheses: Hypotheses | None
