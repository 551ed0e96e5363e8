"""Fitting models to points of which many are wrong: generalized differentiable RANSAC."""

from .homography import Homography
from .line import Line2D
from .ransac import RANSAC
from .refiners import LeastSquares, Refiner
from .result import Hypotheses, RansacResult, RansacStatus
from .samplers import Sampler, Uniform
from .scorers import MAGSAC, MSAC, GaussianUniform, InlierCount, Learned, Scorer
from .solver import MinimalSolver, Solutions

__all__ = [
    "MAGSAC",
    "MSAC",
    "RANSAC",
    "GaussianUniform",
    "Homography",
    "Hypotheses",
    "InlierCount",
    "Learned",
    "LeastSquares",
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
