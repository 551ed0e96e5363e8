"""torch.distributions of discrete choices that can be sampled with a gradient."""

from .bernoulli import BernoulliReinMax, BernoulliStraightThrough, HardConcrete, RelaxedBernoulli
from .categorical import (
    OneHotCategoricalGumbelRao,
    OneHotCategoricalGumbelSoftmax,
    OneHotCategoricalReinMax,
    OneHotCategoricalStraightThrough,
)
from .relaxed_categorical import LogRelaxedOneHotCategorical, RelaxedOneHotCategorical
from .subset import KSubset

__all__ = [
    "BernoulliReinMax",
    "BernoulliStraightThrough",
    "HardConcrete",
    "KSubset",
    "LogRelaxedOneHotCategorical",
    "OneHotCategoricalGumbelRao",
    "OneHotCategoricalGumbelSoftmax",
    "OneHotCategoricalReinMax",
    "OneHotCategoricalStraightThrough",
    "RelaxedBernoulli",
    "RelaxedOneHotCategorical",
]
