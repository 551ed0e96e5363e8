"""Fitting models to points of which many are wrong: generalized differentiable RANSAC."""

from . import degeneracy, manifolds, residuals
from .absolute_pose import AbsolutePose
from .circle import Circle2D
from .essential import EssentialMatrix
from .fundamental import FundamentalMatrix
from .homography import Homography
from .line import Line2D
from .losses import PoseError, epipolar_loss, expected_loss, inlier_cross_entropy, pose_error, residual_loss
from .metrics import auc_binned, auc_exact, success_rate
from .plane import Plane3D
from .ransac import RANSAC
from .refiners import IRLS, LeastSquares, LevenbergMarquardt, Refiner
from .result import Hypotheses, RansacResult, RansacStatus
from .rigid import RigidTransform3D
from .samplers import PROSAC, GumbelTopK, Sampler, Uniform, Weighted
from .scorers import MAGSAC, MSAC, GaussianUniform, InlierCount, Learned, Scorer
from .selection import Best, Mean, Selection, Softmax
from .solver import MinimalSolver, Solutions
from .two_view import Pose, decompose_essential, essential_from_pose, fundamental_from_essential, recover_pose

__all__ = [
    "IRLS",
    "MAGSAC",
    "MSAC",
    "PROSAC",
    "RANSAC",
    "AbsolutePose",
    "Best",
    "Circle2D",
    "EssentialMatrix",
    "FundamentalMatrix",
    "GaussianUniform",
    "GumbelTopK",
    "Homography",
    "Hypotheses",
    "InlierCount",
    "Learned",
    "LeastSquares",
    "LevenbergMarquardt",
    "Line2D",
    "Mean",
    "MinimalSolver",
    "Plane3D",
    "Pose",
    "PoseError",
    "RansacResult",
    "RansacStatus",
    "Refiner",
    "RigidTransform3D",
    "Sampler",
    "Scorer",
    "Selection",
    "Softmax",
    "Solutions",
    "Uniform",
    "Weighted",
    "auc_binned",
    "auc_exact",
    "decompose_essential",
    "degeneracy",
    "epipolar_loss",
    "essential_from_pose",
    "expected_loss",
    "fundamental_from_essential",
    "inlier_cross_entropy",
    "manifolds",
    "pose_error",
    "recover_pose",
    "residual_loss",
    "residuals",
    "success_rate",
]
