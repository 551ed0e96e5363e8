"""One of n, and yes or no: samples with a rule for their gradient, one published method a file."""

from .exact import Exact
from .expectation import expectation
from .gumbel import GumbelSoftmax, gumbel_softmax
from .reinforce import RLOO
from .reinmax import ReinMax, reinmax
from .straight_through import StraightThrough, straight_through

__all__ = [
    "RLOO",
    "Exact",
    "GumbelSoftmax",
    "ReinMax",
    "StraightThrough",
    "expectation",
    "gumbel_softmax",
    "reinmax",
    "straight_through",
]
