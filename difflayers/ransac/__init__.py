"""Fitting models to points of which many are wrong: generalized differentiable RANSAC."""

from .homography import Homography
from .line import Line2D
from .ransac import RANSAC
from .refiners import LeastSquares, LevenbergMarquardt, Refiner
from .result import Hypotheses, RansacResult, RansacStatus
from .samplers import Sampler, Uniform
from .scorers import MSAC, Scorer
from .solver import MinimalSolver, Solutions

__all__ = [
    "MSAC",
    "RANSAC",
    "Homography",
    "Hypotheses",
    "LeastSquares",
    "LevenbergMarquardt",
    "Line2D",
    "MinimalSolver",
    "RansacResult",
    "RansacStatus",
    "Refiner",
    "Sampler",
    "Scorer",
    "Solutions",
    "Uniform",
]
