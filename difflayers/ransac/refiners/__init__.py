"""What makes a found model better, one method a file."""

from .base import Refiner
from .irls import IRLS
from .least_squares import LeastSquares
from .levenberg_marquardt import LevenbergMarquardt

__all__ = ["IRLS", "LeastSquares", "LevenbergMarquardt", "Refiner"]
