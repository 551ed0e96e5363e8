"""Uniform sampling without replacement."""

from __future__ import annotations

import torch
from torch import Tensor

from ... import _random
from .base import Sampler

__all__ = ["Uniform"]


class Uniform(Sampler):
    """Every set of points that may be drawn is equally likely; the logits only say which may not (-inf)."""

    def sample(
        self, logits: Tensor, size: int, count: int, *, first: int = 0, generator: torch.Generator | None = None
    ) -> Tensor:
        """Draws `[B, count, size]` different points."""
        noise = _random.uniform((len(logits), count, logits.shape[1]), device=logits.device, generator=generator)
        return noise.masked_fill(logits.isneginf().unsqueeze(1), -1).topk(size, -1).indices
