"""The estimators by the fastest path that is right here; `reference` says what they compute."""

from __future__ import annotations

from torch import Tensor

from .._choice import Temperature
from . import reference


def gumbel_softmax(logits: Tensor, temperature: Temperature, bits: Tensor, hard: bool) -> Tensor:
    """See `reference.gumbel_softmax`."""
    return reference.gumbel_softmax(logits, temperature, bits, hard)


def choose(kind: str, logits: Tensor, temperature: Temperature, uniform: Tensor) -> Tensor:
    """A sample by `reference.sample` with the gradient of `reference.straight_through` or `reference.reinmax`."""
    if logits.shape[1] == 0:
        return logits.clone()
    index = reference.sample(logits, uniform)
    return getattr(reference, kind)(logits, temperature, index)
