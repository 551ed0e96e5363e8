"""What makes a found model better, one method a file."""

from .base import Refiner, default_refiner
from .least_squares import LeastSquares

__all__ = ["LeastSquares", "Refiner", "default_refiner"]
