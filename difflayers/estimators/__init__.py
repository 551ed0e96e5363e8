"""One of n, and yes or no: samples with a rule for their gradient, one published method a file."""

from .gumbel import GumbelSoftmax, gumbel_softmax
from .reinmax import ReinMax, reinmax
from .straight_through import StraightThrough, straight_through

__all__ = [
    "GumbelSoftmax",
    "ReinMax",
    "StraightThrough",
    "gumbel_softmax",
    "reinmax",
    "straight_through",
]
