"""Losses of hypotheses, models and logits against the truth, one a file."""

from .epipolar import EpipolarLoss, epipolar_loss
from .expected import ExpectedLoss, expected_loss
from .inlier_cross_entropy import InlierCrossEntropy, inlier_cross_entropy
from .pose import PoseError, pose_error
from .residual import residual_loss

__all__ = [
    "EpipolarLoss",
    "ExpectedLoss",
    "InlierCrossEntropy",
    "PoseError",
    "epipolar_loss",
    "expected_loss",
    "inlier_cross_entropy",
    "pose_error",
    "residual_loss",
]
