"""Oracles: the argmin of a linear cost over a feasible set. Everything minimises."""

from .assignment import Assignment
from .base import Oracle
from .callable import FromCallable
from .generalized_assignment import GeneralizedAssignment
from .grid_path import GridShortestPath
from .independent_set import IndependentSet
from .integer_program import IntegerProgram
from .knapsack import Knapsack
from .linear_program import LinearProgram
from .max_cut import MaxCut
from .min_cost_flow import MinCostFlow
from .per_thread import PerThread
from .permutation import Permutation
from .pool import SolutionPool
from .result import OracleResult, Row, Status
from .shortest_path import ShortestPath, grid_edges
from .spanning_tree import MinimumSpanningTree
from .top_k import TopK
from .traveling_salesman import TravelingSalesman
from .vehicle_routing import VehicleRouting

__all__ = [
    "Assignment",
    "FromCallable",
    "GeneralizedAssignment",
    "GridShortestPath",
    "IndependentSet",
    "IntegerProgram",
    "Knapsack",
    "LinearProgram",
    "MaxCut",
    "MinCostFlow",
    "MinimumSpanningTree",
    "Oracle",
    "OracleResult",
    "PerThread",
    "Permutation",
    "Row",
    "ShortestPath",
    "SolutionPool",
    "Status",
    "TopK",
    "TravelingSalesman",
    "VehicleRouting",
    "grid_edges",
]
