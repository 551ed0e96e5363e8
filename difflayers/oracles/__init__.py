"""Oracles: the argmin of a linear cost over a feasible set. Everything minimises."""

from .base import Oracle
from .callable import FromCallable
from .generalized_assignment import GeneralizedAssignment
from .independent_set import IndependentSet
from .integer_program import IntegerProgram
from .knapsack import Knapsack
from .linear_program import LinearProgram
from .max_cut import MaxCut
from .result import OracleResult, Status
from .top_k import TopK
from .traveling_salesman import TravelingSalesman
from .vehicle_routing import VehicleRouting

__all__ = [
    "FromCallable",
    "GeneralizedAssignment",
    "IndependentSet",
    "IntegerProgram",
    "Knapsack",
    "LinearProgram",
    "MaxCut",
    "Oracle",
    "OracleResult",
    "Status",
    "TopK",
    "TravelingSalesman",
    "VehicleRouting",
]
