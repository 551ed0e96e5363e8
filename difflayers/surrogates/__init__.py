"""Surrogates: nonlinear objectives over combinatorial sets through linear costs."""

from .objective import ObjectiveError
from .result import SurCoRecord, SurCoResult
from .surco import SurCo

__all__ = ["ObjectiveError", "SurCo", "SurCoRecord", "SurCoResult"]
