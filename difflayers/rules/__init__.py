"""Gradient rules through oracles, one published method a file."""

from .blackbox import Blackbox
from .layer import SolverLayer

__all__ = ["Blackbox", "SolverLayer"]
