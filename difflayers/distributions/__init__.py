"""torch.distributions of discrete choices that can be sampled with a gradient."""

from .categorical import (
    OneHotCategoricalGumbelRao,
    OneHotCategoricalGumbelSoftmax,
    OneHotCategoricalReinMax,
    OneHotCategoricalStraightThrough,
)
from .relaxed_categorical import LogRelaxedOneHotCategorical, RelaxedOneHotCategorical

__all__ = [
    "LogRelaxedOneHotCategorical",
    "OneHotCategoricalGumbelRao",
    "OneHotCategoricalGumbelSoftmax",
    "OneHotCategoricalReinMax",
    "OneHotCategoricalStraightThrough",
    "RelaxedOneHotCategorical",
]
