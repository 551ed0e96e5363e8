"""The exactly-k distribution on whatever runs it: the kernels and how they are each other's gradients, or the
reference.

All are derivatives of one function, the logarithm of the normalising constant: the marginals are its gradient, and
every further derivative is the marginals' along one more direction. Directions are symmetric, so the adjoint of a
derivative along g is a derivative along the incoming gradient. From the third derivative of the marginals on, the
plain-PyTorch reference runs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .. import _ops, _random
from .._autograd import differentiable
from . import reference


def _define() -> tuple[Any, Any, Any]:
    def fake_marginals(theta: Any, g: Any, h: Any, k: int) -> Any:
        return theta.new_empty(theta.shape)

    def fake_log_normalizer(theta: Any, k: int) -> Any:
        return theta.new_empty(theta.shape[0])

    def fake_sample(theta: Any, uniform: Any, k: int) -> Any:
        return theta.new_empty(uniform.shape)

    def keep(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.save_for_backward(*inputs[:-1])
        ctx.k = inputs[-1]

    def marginals_backward(ctx: Any, gradient: Any) -> Any:
        theta, g, h = ctx.saved_tensors
        k = ctx.k
        if g is None:
            return run_marginals(theta, gradient, None, k), None, None, None
        if h is None:
            return run_marginals(theta, g, gradient, k), run_marginals(theta, gradient, None, k), None, None
        by_theta = reference.marginals(theta, k, (g, h, gradient)) if ctx.needs_input_grad[0] else None
        return by_theta, run_marginals(theta, h, gradient, k), run_marginals(theta, g, gradient, k), None

    def log_normalizer_backward(ctx: Any, gradient: Any) -> Any:
        (theta,) = ctx.saved_tensors
        return gradient[:, None] * run_marginals(theta, None, None, ctx.k), None

    run_marginals = differentiable(
        _ops.row_wise("subset_marginals", fake_marginals), setup_context=keep, backward=marginals_backward
    )
    run_log_normalizer = differentiable(
        _ops.row_wise("subset_log_normalizer", fake_log_normalizer),
        setup_context=keep,
        backward=log_normalizer_backward,
    )
    return run_marginals, run_log_normalizer, _ops.row_wise("subset_sample", fake_sample)


if _ops.COMPILED:
    _marginals, _log_normalizer, _sample = _define()


def _in_float64(theta: Tensor) -> Tensor:
    """For the plain path, whose tables are in float64 as the kernels' are, where the device has it."""
    return theta if theta.device.type == "mps" else theta.double()


def marginals(theta: Tensor, k: int) -> Tensor:
    """See `reference.marginals`."""
    if _ops.has_kernel("subset_marginals", theta.device):
        return _marginals(theta, None, None, k)
    return reference.marginals(_in_float64(theta), k).to(theta.dtype)


class _MarginalsGradient(torch.autograd.Function):
    """0 with the gradient of the marginals, which are not computed."""

    @staticmethod
    def forward(ctx: Any, theta: Tensor, k: int) -> Tensor:
        ctx.save_for_backward(theta)
        ctx.k = k
        return torch.zeros_like(theta)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (theta,) = ctx.saved_tensors
        return _marginals(theta, gradient, None, ctx.k), None


def marginals_gradient(theta: Tensor, k: int) -> Tensor:
    """Any function with the gradient of the marginals: in eager mode one that does not compute them."""
    plain = _random.transformed() or forward_ad._current_level >= 0
    if plain or not _ops.has_kernel("subset_marginals", theta.device):
        return marginals(theta, k)
    return _MarginalsGradient.apply(theta, k)  # pyright: ignore[reportReturnType]


def log_normalizer(theta: Tensor, k: int) -> Tensor:
    """See `reference.log_normalizer`."""
    if _ops.has_kernel("subset_log_normalizer", theta.device):
        return _log_normalizer(theta, k)
    return reference.log_normalizer(_in_float64(theta), k).to(theta.dtype)


def sample(theta: Tensor, uniform: Tensor, k: int) -> Tensor:
    """See `reference.sample`."""
    if _ops.has_kernel("subset_sample", theta.device):
        return _sample(theta.detach(), uniform.double(), k)
    return reference.sample(_in_float64(theta), uniform, k).to(theta.dtype)
