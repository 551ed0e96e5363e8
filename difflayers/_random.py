"""Noise, drawn here from a `generator` and passed down as a tensor: kernels draw nothing.

Every draw is made in the layout that is computed in (rows of the chosen dimension), so the same seed gives the
same sample whatever the strides or the `dim` of the input.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

BITS = 31


def transformed() -> bool:
    """Whether a torch.func transform or torch.compile is at work, where tensors may not be viewed as other dtypes."""
    return torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()


def _drawn_from(generator: torch.Generator | None) -> dict[str, Any]:
    """The keyword, if there is a generator: with generator=None, PyTorch's factories refuse symbolic sizes."""
    return {} if generator is None else {"generator": generator}


def bits(shape: tuple[int, ...], device: torch.device, generator: torch.Generator | None) -> Tensor:
    """int32 of this shape whose low 31 bits are random; the sign bit has no meaning."""
    count = math.prod(shape)
    if transformed() or device.type == "meta":
        return torch.randint(2**BITS - 1, shape, device=device, dtype=torch.int64, **_drawn_from(generator)).to(
            torch.int32
        )
    # one 64-bit draw serves two elements; draws are what a Gumbel-Softmax spends most of its time on
    words = torch.empty((count + 1) // 2, dtype=torch.int64, device=device).random_(generator=generator)
    return words.view(torch.int32)[:count].view(shape)


def uniform_of(noise: Tensor, dtype: torch.dtype) -> Tensor:
    """`bits` as numbers in (0, 1): (k + 1/2) / 2^31, at most 1 - 2^-24 (which float32 has)."""
    return (((noise & (2**BITS - 1)).to(dtype) + 0.5) * 2.0**-BITS).clamp(max=1 - 2.0**-24)


def gumbel_of(noise: Tensor, dtype: torch.dtype) -> Tensor:
    r"""`bits` as standard Gumbel noise $-\log(-\log(1 - u))$: finite, in [-2.9, 22.2].

    The large values, which decide what is chosen, come from u near 0, where floats are dense: the
    steps between them are 2^-31 in u, against 2^-24 for noise made of a float32 uniform.
    """
    return -torch.log(-torch.log1p(-uniform_of(noise, dtype)))


def gumbel(
    shape: tuple[int, ...], *, dtype: torch.dtype, device: torch.device, generator: torch.Generator | None
) -> Tensor:
    """Standard Gumbel noise, always finite."""
    return gumbel_of(bits(shape, device, generator), dtype)


def exponential(
    shape: tuple[int, ...], *, dtype: torch.dtype, device: torch.device, generator: torch.Generator | None
) -> Tensor:
    """Standard exponential noise, in [2^-32, 16.7]: never 0."""
    return -torch.log1p(-uniform_of(bits(shape, device, generator), dtype))


def logistic(
    shape: tuple[int, ...], *, dtype: torch.dtype, device: torch.device, generator: torch.Generator | None
) -> Tensor:
    """Standard logistic noise log(u) - log(1 - u), symmetric and finite."""
    noise = bits(shape, device, generator)
    # the sign comes from one bit and the size from the others, so that both tails have the dense end of the floats
    magnitude = (((noise & (2**BITS - 1)) >> 1).to(dtype) + 0.5) * 2.0**-BITS  # in (0, 1/2)
    size = torch.log1p(-magnitude) - torch.log(magnitude)  # > 0
    return torch.where((noise & 1).bool(), size, -size)


def normal(
    shape: tuple[int, ...], *, dtype: torch.dtype, device: torch.device, generator: torch.Generator | None
) -> Tensor:
    """Standard normal noise."""
    return torch.randn(shape, dtype=dtype, device=device, **_drawn_from(generator))


def uniform(shape: tuple[int, ...], *, device: torch.device, generator: torch.Generator | None) -> Tensor:
    """float64 in [0, 1) with 53 random bits, for inverse distribution functions (float32 where there is no float64)."""
    dtype = torch.float32 if device.type == "mps" else torch.float64
    return torch.rand(shape, dtype=dtype, device=device, **_drawn_from(generator))
