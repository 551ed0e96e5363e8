"""The expected loss of a discrete choice, by any estimator: one argument swaps the gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .. import _checks
from ..protocols import ExpectationEstimator
from .loss_function import LossFunction

__all__ = ["expectation"]


def expectation(
    loss_fn: Callable[[Tensor], Tensor],
    logits: Tensor,
    *,
    estimator: Callable[..., Tensor] | ExpectationEstimator,
    samples: int = 1,
    dim: int = -1,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""Estimates the expected loss of a categorical choice, with the gradient of an estimator of one's choosing.

    $$\mathbb{E}\,f(D), \qquad D \sim \operatorname{Categorical}(\operatorname{softmax}(\theta))
    \text{ independently for each row},$$

    differentiable by the logits and by whatever loss_fn closes over. What one loss depends on follows from the shape
    that loss_fn returns: for logits `(B, L, n)`, losses `(B, L)` treat each row alone, losses `(B,)` treat the
    L rows of each batch element jointly, and a scalar treats all rows jointly. The finer the shape, the less
    variance (RLOO) and the fewer states (Exact).

    Args:
        loss_fn: a function of a tensor in the shape and dtype of logits, one-hot along `dim` (relaxed, if the
            estimator's samples are), that returns floating-point losses whose shape is a leading part of the logits'
            shape without `dim`. It should be independent between the elements of that shape.
        logits: `[..., n]`, any floating dtype; -inf masks a class out.
        estimator: a sampling estimator, as function (`dl.reinmax`, `functools.partial(dl.gumbel_softmax,
            temperature=0.5, hard=True)`) or module (`dl.ReinMax()`, which is applied along `dim` whatever its own);
            or `RLOO(4)`, unbiased for every loss, or `Exact()`, enumeration.
        samples: of a sampling estimator: the number of draws to average over. `RLOO` has its own.
        dim: the dimension of the classes.
        generator: draws the samples; default PyTorch's global one.

    Returns:
        The estimate, in the shape and dtype of what loss_fn returns.

    Raises:
        TypeError: loss_fn or estimator cannot be called, or loss_fn does not return a floating-point tensor.
        ValueError: loss_fn returns another shape; samples is below 1, or above 1 for `RLOO` or `Exact`; too many
            states for `Exact`; what the estimator raises for bad logits.
        UnsupportedOperationError: loss_fn does not allow vmap, which `Exact` uses unless chunk=1.

    Cost:
        `samples` evaluations of loss_fn (of `RLOO(K)` K, of `Exact` one a joint state) and their backward passes.

    Transforms:
        Those of the estimator and of loss_fn.

    References:
        Of the estimator.

    Example:
        >>> import torch, difflayers as dl
        >>> from difflayers.estimators import Exact, expectation
        >>> logits = torch.tensor([0.0, 1.0], requires_grad=True)
        >>> loss = lambda sample: (sample[1] - 0.45).square()
        >>> generator = torch.Generator().manual_seed(0)
        >>> exact, = torch.autograd.grad(expectation(loss, logits, estimator=Exact()), logits)
        >>> value = expectation(loss, logits, estimator=dl.reinmax, samples=1000, generator=generator)
        >>> estimate, = torch.autograd.grad(value, logits)
        >>> exact, torch.allclose(estimate, exact, atol=0.01)
        (tensor([-0.0197,  0.0197]), True)
    """
    function = "difflayers.expectation"
    logits = _checks.tensor(function, "logits", logits)
    dim = _checks.dimension(function, "logits", logits, dim)
    loss = LossFunction(function, loss_fn, logits, dim)
    samples = _checks.integer(function, "samples", samples, minimum=1)
    generator = _checks.generator(function, generator, logits.device)
    estimator = checked_estimator(function, estimator)
    if isinstance(estimator, ExpectationEstimator):
        if samples != 1:
            raise ValueError(
                f"{function}: argument 'samples' must be 1 for {estimator!r}, which says itself how often it "
                f"evaluates the loss, got {samples}"
            )
        return estimator.expectation(loss_fn, logits, dim=dim, generator=generator)
    total = None
    for _ in range(samples):
        value = loss(draw(function, estimator, logits, dim=dim, generator=generator))
        total = value if total is None else total + value
    assert total is not None
    return total if samples == 1 else total / samples


def checked_estimator(function: str, estimator: Any) -> Any:
    """A sampling estimator (function or module) or an ExpectationEstimator, unchanged."""
    if isinstance(estimator, type):
        raise TypeError(
            f"{function}: argument 'estimator' must be a function or an instance, got the class "
            f"{estimator.__name__}; call it first: {estimator.__name__}(...)"
        )
    if not callable(estimator) and not isinstance(estimator, ExpectationEstimator):
        raise TypeError(
            f"{function}: argument 'estimator' must be a sampling estimator such as difflayers.reinmax, RLOO() or "
            f"Exact(), got {type(estimator).__name__}"
        )
    return estimator


def draw(
    function: str,
    estimator: Callable[..., Tensor],
    logits: Tensor,
    *arguments: Any,
    dim: int,
    generator: torch.Generator | None,
) -> Tensor:
    """A sample of a sampling estimator along dim (negative), its shape checked.

    Args:
        arguments: what a function, but not a module, gets after the logits.
    """
    if isinstance(estimator, nn.Module):
        # a module chooses along its own dimension
        own = getattr(estimator, "dim", -1)
        if not isinstance(own, int) or not -logits.dim() <= own < logits.dim():
            raise ValueError(
                f"{function}: argument 'estimator' must choose along a dimension of the logits, of shape "
                f"{tuple(logits.shape)}, got a {type(estimator).__name__} with dim = {own}"
            )
        sample = estimator(logits.movedim(dim, own), generator=generator)
        sample = sample.movedim(own, dim) if isinstance(sample, Tensor) and sample.dim() == logits.dim() else sample
    else:
        sample = estimator(logits, *arguments, dim=dim, generator=generator)
    if not isinstance(sample, Tensor) or sample.shape != logits.shape:
        got = f"shape {tuple(sample.shape)}" if isinstance(sample, Tensor) else type(sample).__name__
        raise ValueError(
            f"{function}: argument 'estimator' must return a sample in the shape of the logits, "
            f"{tuple(logits.shape)}, got {got}"
        )
    return sample
