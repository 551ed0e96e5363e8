"""Gradient rules through oracles, one published method a file."""

from .adaptive_imle import AdaptiveIMLE
from .base import Rule, solve_invented
from .blackbox import Blackbox
from .frank_wolfe import FrankWolfe
from .identity import Identity
from .imle import IMLE
from .layer import SolverLayer
from .lpgd import LPGD
from .perturbed import Perturbed, PerturbedMultiplicative

__all__ = [
    "IMLE",
    "LPGD",
    "AdaptiveIMLE",
    "Blackbox",
    "FrankWolfe",
    "Identity",
    "Perturbed",
    "PerturbedMultiplicative",
    "Rule",
    "SolverLayer",
    "solve_invented",
]
