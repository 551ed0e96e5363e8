"""Argument checks and their messages: function, argument, rule, what came, what to do.

Python numbers, shapes and dtypes are always checked. The contents of tensors are checked on the CPU in
eager mode, and everywhere under `difflayers.debug()`; checking them costs a device synchronisation.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor

from .errors import UnsupportedOperationError

_debug: ContextVar[bool] = ContextVar("difflayers_debug", default=False)


@contextmanager
def debug() -> Iterator[None]:
    """Checks the contents of tensor arguments on every device for the duration of the context.

    Without it, contents are checked only on the CPU in eager mode; where they go unchecked, a bad row
    comes out as NaN.

    Example:
        >>> import torch, difflayers as dl
        >>> with dl.debug():
        ...     y = dl.sort(torch.tensor([2.0, 1.0]), hard=True)
        >>> y
        tensor([1., 2.])
    """
    token = _debug.set(True)
    try:
        yield
    finally:
        _debug.reset(token)


def contents_are_checked(*tensors: Tensor) -> bool:
    """Whether the values of these tensors may be looked at here and now."""
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return False
    if any(t.device.type == "meta" for t in tensors):
        return False
    return _debug.get() or all(t.device.type == "cpu" for t in tensors)


def tensor(function: str, name: str, value: object) -> Tensor:
    """A dense floating-point tensor, unchanged."""
    if not isinstance(value, Tensor):
        raise TypeError(
            f"{function}: argument '{name}' must be a torch.Tensor, got {type(value).__name__}; "
            f"convert it with torch.as_tensor({name})"
        )
    if not value.is_floating_point():
        dtype = str(value.dtype).removeprefix("torch.")
        raise TypeError(
            f"{function}: argument '{name}' must have a floating-point dtype, got {dtype}; "
            f"convert it with {name}.float()"
        )
    if value.layout is not torch.strided:
        raise TypeError(
            f"{function}: argument '{name}' must be a dense tensor, got one of layout {value.layout}; "
            f"convert it with {name}.to_dense()"
        )
    return value


def all_finite(x: Tensor) -> bool:
    """Whether a tensor holds neither NaN nor infinity; several times as fast as torch.isfinite on small ones."""
    # NaN and infinity survive a sum; a sum that only overflowed is looked at more closely
    return math.isfinite(x.detach().sum().item()) or bool(x.isfinite().all())


def dimension(function: str, name: str, x: Tensor, dim: object) -> int:
    """`dim` as a negative index into x."""
    if dim == -1 and type(dim) is int and x.dim() > 0:
        return -1
    index = integer(function, "dim", dim)
    if x.dim() == 0:
        raise ValueError(f"{function}: argument '{name}' must have at least one dimension, got a scalar")
    if not -x.dim() <= index < x.dim():
        raise ValueError(
            f"{function}: argument 'dim' must be in [{-x.dim()}, {x.dim() - 1}] "
            f"for an input of shape {tuple(x.shape)}, got {index}"
        )
    return index - x.dim() if index >= 0 else index


def integer(function: str, name: str, value: object, *, minimum: int | None = None, maximum: int | None = None) -> int:
    """A Python integer (not a bool) in [minimum, maximum]."""
    if isinstance(value, bool) or not isinstance(value, (numbers.Integral, torch.SymInt)):
        raise TypeError(f"{function}: argument '{name}' must be an integer, got {type(value).__name__}")
    # a size under torch.compile may be a SymInt, which int() would specialise
    result: Any = value if isinstance(value, (int, torch.SymInt)) else int(value)
    if (minimum is not None and result < minimum) or (maximum is not None and result > maximum):
        rule = f"in [{minimum}, {maximum}]" if maximum is not None else f"at least {minimum}"
        raise ValueError(f"{function}: argument '{name}' must be {rule}, got {value}")
    return result


def number(
    function: str,
    name: str,
    value: object,
    *,
    minimum: float | None = None,
    above: float | None = None,
    maximum: float | None = None,
    below: float | None = None,
) -> float:
    """A finite Python number in the interval given by its inclusive or exclusive ends."""
    if type(value) is not float and (isinstance(value, bool) or not isinstance(value, numbers.Real)):
        raise TypeError(f"{function}: argument '{name}' must be a number, got {type(value).__name__}")
    result = float(value)
    inside = -math.inf < result < math.inf  # math.isfinite cannot be traced for a symbolic float
    inside &= (minimum is None or result >= minimum) and (above is None or result > above)
    inside &= (maximum is None or result <= maximum) and (below is None or result < below)
    if not inside:
        low = f"[{minimum:g}" if minimum is not None else f"({above:g}" if above is not None else "(-inf"
        high = f"{maximum:g}]" if maximum is not None else f"{below:g})" if below is not None else "inf)"
        raise ValueError(f"{function}: argument '{name}' must be a finite number in {low}, {high}, got {value}")
    return result


def positive_tensor(function: str, name: str, value: object) -> Tensor:
    """A floating-point tensor that is positive and finite everywhere (where contents are checked)."""
    value = tensor(function, name, value)
    if contents_are_checked(value):
        good = (value > 0) & value.isfinite()
        if not bool(good.all()):
            bad = value.detach()[~good].flatten()[0].item()
            raise ValueError(f"{function}: argument '{name}' must be positive and finite everywhere, got {bad}")
    return value


def keepdim(function: str, name: str, value: Tensor, x: Tensor, dim: int) -> Tensor:
    """`value` expanded to the shape of x with size 1 at `dim`."""
    shape = list(x.shape)
    shape[dim] = 1
    try:
        return value.expand(shape)
    except RuntimeError:
        raise ValueError(
            f"{function}: argument '{name}' must be broadcastable to the input's shape with size 1 at "
            f"dim {dim}, {tuple(shape)}, got {tuple(value.shape)}; use keepdim form"
        ) from None


def generator(function: str, value: object, device: torch.device) -> torch.Generator | None:
    """A torch.Generator of this device, or None; an explicit one raises where PyTorch traces."""
    if value is None:
        return None
    if not isinstance(value, torch.Generator):
        raise TypeError(
            f"{function}: argument 'generator' must be a torch.Generator or None, got {type(value).__name__}; "
            f"make one with torch.Generator().manual_seed(seed)"
        )
    if torch.compiler.is_compiling():
        raise UnsupportedOperationError(
            f"{function}: argument 'generator' must be None under torch.compile and torch.export, got a generator; "
            f"seed with torch.manual_seed"
        )
    if value.device.type != device.type:
        raise ValueError(
            f"{function}: argument 'generator' must be on the input's device, {device.type}, "
            f"got one on {value.device.type}; make it with torch.Generator(device={device.type!r})"
        )
    return value


def boolean(function: str, name: str, value: object) -> bool:
    """A Python bool, unchanged."""
    if not isinstance(value, bool):
        raise TypeError(f"{function}: argument '{name}' must be True or False, got {type(value).__name__}")
    return value


def choice(function: str, name: str, value: object, options: tuple[str, ...]) -> str:
    """One of the strings in `options`."""
    listed = ", ".join(map(repr, options))
    if not isinstance(value, str):
        raise TypeError(f"{function}: argument '{name}' must be one of {listed}, got {type(value).__name__}")
    if value not in options:
        raise ValueError(f"{function}: argument '{name}' must be one of {listed}, got {value!r}")
    return value
