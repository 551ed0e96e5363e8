"""Norms whose statistics leave closed channels out: what "does not exist" means where channels are averaged."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from ..errors import UnsupportedOperationError

__all__ = ["norms_of"]

LAYER_NORMS: tuple[Callable, ...] = (F.layer_norm, torch.layer_norm)
RMS_NORMS: tuple[Callable, ...] = (F.rms_norm, torch.rms_norm)
MEANS: tuple[Callable, ...] = (torch.mean, Tensor.mean)


class _Norms(TorchFunctionMode):
    """Calls of layer_norm, rms_norm and maybe mean, in the order of the traced graph, each with its mask or None."""

    def __init__(self, masks: list[Tensor | None], means: bool) -> None:
        super().__init__()
        self.masks, self.count = masks, 0
        self.counted = (*LAYER_NORMS, *RMS_NORMS, *(MEANS if means else ()))

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func not in self.counted:
            return func(*args, **kwargs)
        at, self.count = self.count, self.count + 1
        mask = self.masks[at] if at < len(self.masks) else None
        if mask is None:
            return func(*args, **kwargs)
        if func in MEANS:
            given = dict(zip(("input", "dim", "keepdim"), args, strict=False)) | kwargs
            return masked_mean(given["input"], mask, given.get("dim", given.get("axis")), given.get("keepdim", False))
        names = ("input", "normalized_shape", "weight", "bias", "eps")
        given = dict(zip(names if func in LAYER_NORMS else (*names[:3], "eps"), args, strict=False)) | kwargs
        return masked_norm(
            given["input"], mask, given.get("weight"), given.get("bias"), given.get("eps"), func in LAYER_NORMS
        )


def masked_norm(
    x: Tensor, mask: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float | None, centred: bool
) -> Tensor:
    """LayerNorm (centred) or RMSNorm over the last dimension, of the channels whose mask is 1 alone."""
    mask = mask.to(x.dtype)
    number = mask.sum().clamp(min=1)  # all closed: nothing is left to divide by
    if centred:
        x = x - (x * mask).sum(-1, keepdim=True) / number
    if eps is None:
        eps = 1e-5 if centred else torch.finfo(x.dtype).eps  # the defaults of torch's functions
    x = x * torch.rsqrt((x.square() * mask).sum(-1, keepdim=True) / number + eps)
    x = x if weight is None else x * weight
    return x if bias is None else x + bias


def masked_mean(x: Tensor, mask: Tensor, dim: Any, keepdim: bool) -> Tensor:
    """The mean over one dimension, of the channels whose mask is 1 alone."""
    (at,) = [dim] if isinstance(dim, int) else dim
    mask = mask.to(x.dtype).view([-1 if d == at % x.dim() else 1 for d in range(x.dim())])
    return (x * mask).sum(at, keepdim=keepdim) / mask.sum().clamp(min=1)


@contextmanager
def norms_of(masks: list[Tensor | None], *, means: bool = False) -> Iterator[None]:
    """Within, one call of the model takes its norms' statistics (and `means`) under these masks."""
    if all(mask is None for mask in masks):
        yield
        return
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # fused encoder layers do not call their norms
    try:
        with _Norms(masks, means) as norms:
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    if norms.count != len(masks):
        raise UnsupportedOperationError(
            f"difflayers.gates: with inexact='allow' the model must call its norms as when it was traced, {len(masks)} "
            f"times, got {norms.count} calls; attach with inexact='refuse'"
        )
