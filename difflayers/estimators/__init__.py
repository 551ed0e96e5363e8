"""One of n, and yes or no: samples with a rule for their gradient, one published method a file."""

from .bernoulli import (
    ReinMaxBernoulli,
    RelaxedBernoulli,
    StraightThroughBernoulli,
    reinmax_bernoulli,
    relaxed_bernoulli,
    straight_through_bernoulli,
)
from .exact import Exact
from .expectation import expectation
from .gapped import GappedStraightThrough, gapped_straight_through
from .gumbel import GumbelSoftmax, gumbel_softmax
from .gumbel_rao import GumbelRao, gumbel_rao
from .hard_concrete import HardConcrete, hard_concrete, hard_concrete_gate, hard_concrete_open_probability
from .normalisers import Entmax15, Sparsemax, entmax15, sparsemax
from .reinforce import RLOO
from .reinmax import ReinMax, reinmax
from .straight_through import StraightThrough, straight_through

__all__ = [
    "RLOO",
    "Entmax15",
    "Exact",
    "GappedStraightThrough",
    "GumbelRao",
    "GumbelSoftmax",
    "HardConcrete",
    "ReinMax",
    "ReinMaxBernoulli",
    "RelaxedBernoulli",
    "Sparsemax",
    "StraightThrough",
    "StraightThroughBernoulli",
    "entmax15",
    "expectation",
    "gapped_straight_through",
    "gumbel_rao",
    "gumbel_softmax",
    "hard_concrete",
    "hard_concrete_gate",
    "hard_concrete_open_probability",
    "reinmax",
    "reinmax_bernoulli",
    "relaxed_bernoulli",
    "sparsemax",
    "straight_through",
    "straight_through_bernoulli",
]
