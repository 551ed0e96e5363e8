"""Surrogates: nonlinear objectives over combinatorial sets through linear costs."""

from .objective import ObjectiveError
from .prior import PriorRecord, SurCoPrior
from .result import SurCoRecord, SurCoResult
from .surco import SurCo

__all__ = ["ObjectiveError", "PriorRecord", "SurCo", "SurCoPrior", "SurCoRecord", "SurCoResult"]
