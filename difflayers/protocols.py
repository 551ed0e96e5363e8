"""What a plug-in provides. These are structural types: nothing needs to inherit from them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

__all__ = ["Estimator", "ExpectationEstimator"]


@runtime_checkable
class Estimator(Protocol):
    """A sample of one of n with a rule for its gradient.

    Calling it draws a sample (one-hot, or relaxed) in the shape of the logits, through which gradients flow back
    to the logits. All estimators of `difflayers.estimators` are called this way, as functions; their modules remember
    the temperature and `dim` and are called as `module(logits, generator=...)`.

    Example:
        >>> import difflayers as dl
        >>> isinstance(dl.reinmax, dl.protocols.Estimator)
        True
    """

    def __call__(
        self,
        logits: Tensor,
        temperature: float | Tensor = 1.0,
        *,
        dim: int = -1,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Draws a sample in the shape of the logits."""
        ...


@runtime_checkable
class ExpectationEstimator(Protocol):
    """An estimate of an expected loss that needs more than one sample and the loss's gradient at it.

    `difflayers.estimators.RLOO` and `Exact` are such objects; `difflayers.expectation` calls them.

    Example:
        >>> import difflayers as dl
        >>> isinstance(dl.estimators.RLOO(2), dl.protocols.ExpectationEstimator)
        True
    """

    def expectation(
        self,
        loss_fn: Callable[[Tensor], Tensor],
        logits: Tensor,
        *,
        dim: int = -1,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Estimates the expectation of loss_fn(D), D one-hot along dim and distributed as softmax(logits)."""
        ...
