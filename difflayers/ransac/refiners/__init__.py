"""What makes a found model better, one method a file."""

from .base import Refiner
from .least_squares import LeastSquares

__all__ = ["LeastSquares", "Refiner"]
