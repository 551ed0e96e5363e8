"""Oracles: the argmin of a linear cost over a feasible set. Everything minimises."""

from .assignment import Assignment
from .base import Oracle
from .callable import FromCallable
from .grid_path import GridShortestPath
from .min_cost_flow import MinCostFlow
from .permutation import Permutation
from .pool import SolutionPool
from .result import OracleResult, Status
from .shortest_path import ShortestPath, grid_edges
from .spanning_tree import MinimumSpanningTree
from .top_k import TopK

__all__ = [
    "Assignment",
    "FromCallable",
    "GridShortestPath",
    "MinCostFlow",
    "MinimumSpanningTree",
    "Oracle",
    "OracleResult",
    "Permutation",
    "ShortestPath",
    "SolutionPool",
    "Status",
    "TopK",
    "grid_edges",
]
