"""Oracles: the argmin of a linear cost over a feasible set. Everything minimises."""

from .base import Oracle
from .callable import FromCallable
from .grid_path import GridShortestPath
from .result import OracleResult, Status
from .shortest_path import ShortestPath, grid_edges
from .top_k import TopK

__all__ = ["FromCallable", "GridShortestPath", "Oracle", "OracleResult", "ShortestPath", "Status", "TopK", "grid_edges"]
