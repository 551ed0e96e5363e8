"""The estimators by the fastest path that is right here; `reference` says what they compute.

Kernels run in eager mode, on float32 (half precision has been converted by then), when nothing but the logits wants
a gradient. Everything else, torch.func transforms, torch.compile (which fuses the plain path itself), float64 and
derivatives of derivatives, takes the plain path.
"""

from __future__ import annotations

import functools
import warnings
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .. import _ops, _random
from .._choice import Choice, Temperature
from . import reference


def kernels(logits: Tensor, temperature: Temperature) -> Any:
    """What computes on this device: an object with the four operators, or None for the plain path."""
    if logits.dtype != torch.float32 or (isinstance(temperature, Tensor) and temperature.requires_grad):
        return None
    if _random.transformed() or forward_ad._current_level >= 0:
        return None
    if logits.device.type == "cpu":
        return _ops.choice_kernels() if _ops.COMPILED else None
    return _triton_kernels() if logits.device.type == "cuda" else None


@functools.cache
def _triton_kernels() -> Any:
    try:
        from . import triton_kernels
    except ImportError:  # it is not made for every platform that CUDA is
        warnings.warn(
            "difflayers: Triton is not installed, so the estimators run on the slower plain-PyTorch path on CUDA; "
            "pip install triton",
            stacklevel=5,
        )
        return None
    return triton_kernels.OPERATORS


def gumbel_softmax(choice: Choice, hard: bool) -> Tensor:
    """See `reference.gumbel_softmax`."""
    logits, temperature = choice.rows, choice.temperature
    if choice.n == 0:
        return logits.clone()
    bits = _random.bits((choice.size, choice.n), logits.device, choice.generator)
    run = kernels(logits, temperature) if logits.numel() else None
    if run is None:
        return reference.gumbel_softmax(logits, temperature, bits, hard)
    choice.checked = True  # where the contents were not checked, the kernels make bad rows NaN themselves
    soft, sample = _GumbelSoftmax.apply(logits, temperature, bits, hard, run)  # pyright: ignore
    return _Harden.apply(soft, sample) if hard else soft  # pyright: ignore[reportReturnType]


def choose(choice: Choice, kind: str) -> Tensor:
    """A sample by `reference.sample` with the gradient of `reference.straight_through` or `reference.reinmax`."""
    logits, temperature, uniform = choice.rows, choice.temperature, choice.uniform()
    if choice.n == 0:
        return logits.clone()
    run = kernels(logits, temperature) if logits.numel() else None
    if run is None:
        return getattr(reference, kind)(logits, temperature, reference.sample(logits, uniform))
    choice.checked = True
    return _Choose.apply(logits, temperature, uniform, kind, run)[0]  # pyright: ignore


def _split(temperature: Temperature) -> tuple[Tensor | None, float]:
    return (temperature, 1.0) if isinstance(temperature, Tensor) else (None, temperature)


class _GumbelSoftmax(torch.autograd.Function):
    """Returns (soft, sample) and keeps soft; the sample, empty unless hard, has no gradient yet."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, temperature: Temperature, bits: Tensor, hard: bool, run: Any) -> Any:
        soft, sample = run.gumbel_softmax(logits, bits, *_split(temperature), hard)
        ctx.mark_non_differentiable(sample)
        ctx.save_for_backward(soft)
        ctx.temperature, ctx.run = temperature, run
        ctx.set_materialize_grads(False)
        return soft, sample

    @staticmethod
    def backward(ctx: Any, gradient: Tensor | None, _: Any) -> Any:  # pyright: ignore
        if gradient is None:
            return None, None, None, None, None
        (soft,) = ctx.saved_tensors
        if torch.is_grad_enabled():  # to be differentiated in turn, also by way of soft, which is our own output
            mean = (soft * gradient).sum(1, keepdim=True)
            result = soft * (gradient - mean) / ctx.temperature
        else:
            result = ctx.run.gumbel_softmax_backward(gradient, soft, *_split(ctx.temperature))
        return result, None, None, None, None


class _Harden(torch.autograd.Function):
    """The sample in place, with the gradient of soft; keeps nothing."""

    @staticmethod
    def forward(ctx: Any, soft: Tensor, sample: Tensor) -> Tensor:
        ctx.mark_dirty(sample)
        return sample

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:  # pyright: ignore
        return gradient, None


class _Choose(torch.autograd.Function):
    """Returns (sample, marked) and keeps marked: the logits minus the largest, the sign bit set except where chosen.

    As marked is an output, a derivative of our gradient finds its way back to the logits through it.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, temperature: Temperature, uniform: Tensor, kind: str, run: Any) -> Any:
        sample, marked = run.choose(logits, uniform)
        ctx.save_for_backward(marked)
        ctx.temperature, ctx.kind, ctx.run = temperature, kind, run
        ctx.set_materialize_grads(False)
        return sample, marked

    @staticmethod
    def backward(ctx: Any, gradient: Tensor | None, of_marked: Tensor | None) -> Any:  # pyright: ignore
        (marked,) = ctx.saved_tensors
        result = None
        if gradient is not None and not torch.is_grad_enabled():
            result = ctx.run.choose_backward(gradient, marked, *_split(ctx.temperature), ctx.kind)
        elif gradient is not None:
            chosen = ~marked.signbit()
            logits = torch.where(chosen, -marked, marked)  # up to a shift, which changes nothing
            surrogate = getattr(reference, ctx.kind)(logits, ctx.temperature, chosen.to(torch.int8).argmax(1, True))
            (result,) = torch.autograd.grad(surrogate, logits, gradient, create_graph=True)
        if of_marked is not None:
            directly = torch.where(marked.signbit(), of_marked, -of_marked)
            result = directly if result is None else result + directly
        return result, None, None, None, None
