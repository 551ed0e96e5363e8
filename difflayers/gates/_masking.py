"""A weight times a mask along one of its dimensions, in few passes over the weight."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

__all__ = ["masked_along"]

PIECE = 1 << 16  # numbers that stay in a core's cache


def masked_along(weight: Tensor, mask: Tensor, dim: int) -> Tensor:
    """`weight` times `mask` `[size of dim]` along a dimension; the weight itself (or a view of it) where it is all 1.

    Weights are as large as what a step of training reads and writes beside activations, so passes over them are what
    gates cost: the product is left out where all is open, and the mask's gradient makes no copy of the weight.
    """
    if not mask.requires_grad:
        return weight if _all_one(mask) else weight * _along(mask, weight, dim)
    if _transformed(weight) or _transformed(mask) or forward_ad._current_level >= 0:
        return weight * _along(mask, weight, dim)
    return _Masked.apply(weight, mask, dim)  # pyright: ignore[reportReturnType]


def _along(mask: Tensor, weight: Tensor, dim: int) -> Tensor:
    return mask.view([-1 if d == dim else 1 for d in range(weight.dim())])


def _all_one(mask: Tensor) -> bool:
    """Asked on the host alone: elsewhere the answer would have to be waited for."""
    return mask.device.type == "cpu" and not _transformed(mask) and bool((mask == 1).all())


def _transformed(tensor: Tensor) -> bool:
    return torch.compiler.is_compiling() or torch._C._functorch.is_functorch_wrapped_tensor(tensor)  # pyright: ignore


class _Masked(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(weight: Tensor, mask: Tensor, dim: int) -> Tensor:
        return weight.view_as(weight) if _all_one(mask) else weight * _along(mask, weight, dim)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        weight, mask, ctx.dim = inputs
        ctx.save_for_backward(weight, mask)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        weight, mask = ctx.saved_tensors
        of_weight = of_mask = None
        if ctx.needs_input_grad[0]:
            plain = not torch.is_grad_enabled() and _all_one(mask)
            of_weight = gradient if plain else gradient * _along(mask, weight, ctx.dim)
        if ctx.needs_input_grad[1]:
            of_mask = _contracted(gradient, weight, ctx.dim)
        return of_weight, of_mask, None


def _contracted(first: Tensor, second: Tensor, dim: int) -> Tensor:
    """The sum of first * second over all dimensions but one."""
    if not first.dim():
        return (first * second).reshape(1)
    others = [d for d in range(first.dim()) if d != dim]
    rows = max(1, PIECE * len(first) // max(1, first.numel()))
    # of a few rows at a time; second derivatives and transforms want one expression
    if rows >= len(first) or dim == 0 or torch.is_grad_enabled() or _transformed(first):
        return (first * second).sum(others) if others else first * second
    total = (first[:rows] * second[:rows]).sum(0)
    for start in range(rows, len(first), rows):
        total += (first[start : start + rows] * second[start : start + rows]).sum(0)
    return total.sum([d - 1 for d in others if d]) if len(others) > 1 else total
