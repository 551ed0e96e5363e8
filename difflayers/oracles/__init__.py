"""Oracles: the argmin of a linear cost over a feasible set. Everything minimises."""

from .base import Oracle
from .callable import FromCallable
from .integer_program import IntegerProgram
from .knapsack import Knapsack
from .linear_program import LinearProgram
from .result import OracleResult, Status
from .top_k import TopK

__all__ = ["FromCallable", "IntegerProgram", "Knapsack", "LinearProgram", "Oracle", "OracleResult", "Status", "TopK"]
