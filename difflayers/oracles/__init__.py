"""Oracles: the argmin of a linear cost over a feasible set. Everything minimises."""

from .base import Oracle
from .callable import FromCallable
from .result import OracleResult, Status
from .top_k import TopK

__all__ = ["FromCallable", "Oracle", "OracleResult", "Status", "TopK"]
