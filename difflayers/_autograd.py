"""One forward and one backward -> one function that is right under every way PyTorch differentiates.

`torch.library.register_autograd` alone raises under `torch.func`, gives a silent zero for forward mode, and
adds Python overhead to every eager call; `autograd.Function` alone is wrong under `torch.compile(torch.func.grad(...))`
in torch 2.13. So both are built from the same pair, and a call picks the one that is right where it stands.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.autograd import forward_ad

from .errors import UnsupportedOperationError


def differentiable(
    op: Any,
    *,
    setup_context: Callable[..., None],
    backward: Callable[..., Any],
) -> Callable[..., Any]:
    """A function of op's arguments with this gradient.

    Args:
        op: an OpOverload of an operator that has no autograd formula yet.
        setup_context: `(ctx, inputs, output)`, keeps what backward needs.
        backward: `(ctx, *output gradients)`, returns one gradient (or None) per argument of op. It is
            itself differentiated, so it must be made of differentiable functions.
    """
    name = op._schema.name
    torch.library.register_autograd(name, backward, setup_context=setup_context)
    transformed: Any = type(
        name.replace("::", "_"),
        (torch.autograd.Function,),
        {
            "generate_vmap_rule": True,
            "forward": staticmethod(lambda *arguments: op(*arguments)),
            "setup_context": staticmethod(setup_context),
            "backward": staticmethod(backward),
        },
    )

    def forward_now(ctx: Any, *arguments: Any) -> Any:
        with torch._C._AutoDispatchBelowAutograd():
            output = op(*arguments)
        setup_context(ctx, arguments, output)
        return output

    # without a separate setup_context a Function is cheaper: PyTorch inspects the signature of one at every call
    eager: Any = type(
        name.replace("::", "_"),
        (torch.autograd.Function,),
        {"forward": staticmethod(forward_now), "backward": staticmethod(backward)},
    )

    def call(*arguments: Any) -> Any:
        if torch.compiler.is_compiling():
            return op(*arguments)
        if torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:
            return transformed.apply(*arguments)
        if torch.is_grad_enabled():
            return eager.apply(*arguments)
        with torch._C._AutoDispatchBelowAutograd():
            return op(*arguments)

    return call


def not_differentiable(op: Any, reason: str) -> Callable[..., Any]:
    """op with a gradient that raises instead of being silently zero."""

    def refuse(ctx: Any, *gradients: Any) -> Any:
        raise UnsupportedOperationError(f"difflayers: {reason}")

    return differentiable(op, setup_context=lambda ctx, inputs, output: None, backward=refuse)
