"""What the categorical distributions share: their parameters, exactly, and the checks of them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import Categorical, constraints

from .. import _checks
from .._choice import Temperature


class _Simplex(constraints.Constraint):
    """Nonnegative, summing to 1 up to rounding in the value's dtype (torch's own allows 1e-6 in every dtype)."""

    event_dim = 1

    def check(self, value: Tensor) -> Tensor:
        """Whether each row belongs."""
        tolerance = 1e-6 + torch.finfo(value.dtype).eps * (1 + value.shape[-1] ** 0.5)
        wide = value.double() if value.device.type != "mps" else value.float()
        return (value >= 0).all(-1) & ((wide.sum(-1) - 1).abs() < tolerance)


simplex = _Simplex()


def checked_temperature(function: str, temperature: Temperature, logits: Tensor) -> Temperature:
    """A number, or a tensor broadcastable to the logits' shape with size 1 in the last place, unchanged."""
    if not isinstance(temperature, Tensor):
        limit = torch.finfo(logits.dtype if logits.dtype == torch.float64 else torch.float32).max
        return _checks.number(function, "temperature", temperature, above=0.0, maximum=limit)
    temperature = _checks.positive_tensor(function, "temperature", temperature)
    _checks.keepdim(function, "temperature", temperature, logits, -1)
    return temperature


def exact_logits(categorical: Categorical, by_probs: bool) -> Tensor:
    """Log-probabilities, -inf where the probability was given as 0 (torch makes it the smallest float there)."""
    if not by_probs:
        return categorical.logits
    present = categorical.probs > 0
    return torch.where(present, torch.where(present, categorical.probs, 1.0).log(), -torch.inf)
