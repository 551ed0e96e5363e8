"""Fitting models to points of which many are wrong: generalized differentiable RANSAC."""

from .circle import Circle2D
from .homography import Homography
from .line import Line2D
from .plane import Plane3D
from .ransac import RANSAC
from .refiners import IRLS, LeastSquares, LevenbergMarquardt, Refiner
from .result import Hypotheses, RansacResult, RansacStatus
from .rigid import RigidTransform3D
from .samplers import Sampler, Uniform
from .scorers import MSAC, Scorer
from .solver import MinimalSolver, Solutions

__all__ = [
    "IRLS",
    "MSAC",
    "RANSAC",
    "Circle2D",
    "Homography",
    "Hypotheses",
    "LeastSquares",
    "LevenbergMarquardt",
    "Line2D",
    "MinimalSolver",
    "Plane3D",
    "RansacResult",
    "RansacStatus",
    "Refiner",
    "RigidTransform3D",
    "Sampler",
    "Scorer",
    "Solutions",
    "Uniform",
]
