"""Fitting models to points of which many are wrong: generalized differentiable RANSAC."""

from . import degeneracy, residuals
from .essential import EssentialMatrix
from .fundamental import FundamentalMatrix
from .homography import Homography
from .line import Line2D
from .ransac import RANSAC
from .refiners import LeastSquares, Refiner
from .result import Hypotheses, RansacResult, RansacStatus
from .samplers import Sampler, Uniform
from .scorers import MSAC, Scorer
from .solver import MinimalSolver, Solutions
from .two_view import Pose, decompose_essential, essential_from_pose, fundamental_from_essential, recover_pose

__all__ = [
    "MSAC",
    "RANSAC",
    "EssentialMatrix",
    "FundamentalMatrix",
    "Homography",
    "Hypotheses",
    "LeastSquares",
    "Line2D",
    "MinimalSolver",
    "Pose",
    "RansacResult",
    "RansacStatus",
    "Refiner",
    "Sampler",
    "Scorer",
    "Solutions",
    "Uniform",
    "decompose_essential",
    "degeneracy",
    "essential_from_pose",
    "fundamental_from_essential",
    "recover_pose",
    "residuals",
]
