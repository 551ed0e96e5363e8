"""MSAC: least squares, truncated."""

from __future__ import annotations

from torch import Tensor

from .base import Scorer

__all__ = ["MSAC"]


class MSAC(Scorer):
    """s = max(0, 1 - r^2 / threshold^2): least squares, truncated."""

    kernel = "msac"

    def of_squared(self, ratio: Tensor) -> Tensor:
        """s, elementwise."""
        return (1 - ratio).clamp(min=0)
