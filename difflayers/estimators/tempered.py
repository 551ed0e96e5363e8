"""Division by a temperature whose derivatives are finite wherever the result is."""

from __future__ import annotations

import torch
from torch import Tensor

from .._choice import Temperature


def divided(values: Tensor, temperature: Temperature) -> Tensor:
    """values / temperature, of any shape that broadcasts; infinite values stay as they are.

    Plain division gives a temperature that requires a gradient inf * 0 = NaN from every masked entry, and from every
    quotient that overflows; what is infinite here gives it nothing. (Its own gradient has the square of the
    reciprocal, which float32 holds for temperatures above 1e-19.)
    """
    smallest = torch.finfo(values.dtype).tiny  # below it the reciprocal overflows, and 0 * inf is NaN
    if not isinstance(temperature, Tensor):
        return values / max(temperature, smallest)
    finite = values.isfinite()
    quotient = torch.where(finite, values, 0.0) * temperature.clamp(min=smallest).reciprocal()
    return torch.where(finite, quotient, values.detach())


def softmax(keys: Tensor, temperature: Temperature) -> Tensor:
    """softmax(keys / temperature) along the last dimension, for any finite keys and any temperature; -inf masks."""
    largest = keys.detach().amax(-1, keepdim=True)  # first, so that the division cannot overflow to +inf
    return torch.softmax(divided(keys - largest, temperature), -1)


def moved(values: Tensor, origin: Tensor) -> Tensor:
    """`values` as constants that move with `origin`: the gradient passes, the number stays what it is.

    It is values + sg(...) of the papers, but adds an exact 0, which keeps the precision when the origin is
    large, and -inf in the origin (where the values are -inf as well) is not differentiated.
    """
    origin = torch.where(origin.isfinite(), origin, 0.0)
    return values.detach() + (origin - origin.detach())
