"""How good a hypothesis is, one score a file."""

from .base import Scorer
from .msac import MSAC

__all__ = ["MSAC", "Scorer"]
