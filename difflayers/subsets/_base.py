"""What every k-of-n layer shares: one call's logits and k, its result, and the module base."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from .. import _checks
from .._choice import Choice, ChoiceModule, Temperature, hardened
from ..schedules import Schedule


def precise(device: torch.device) -> torch.dtype:
    """float64, or float32 where the device has no float64."""
    return torch.float32 if device.type == "mps" else torch.float64


def best(keys: Tensor, k: int) -> Tensor:
    """1 for the k largest of each row, else 0; no gradient."""
    keys = keys.detach()
    return torch.zeros_like(keys).scatter(1, keys.topk(k, dim=1, sorted=False).indices, 1.0)


class Subset(Choice):
    """The logits of one call as rows, with k.

    Attributes:
        k: in [0, n]; in every row at least k elements are present (a row that goes unchecked and has fewer
            comes out as NaN).
        certain: whether k is 0 or n, so that there is nothing to choose.
        present: [B, n] bool, or None when no element is masked.
    """

    def __init__(
        self,
        function: str,
        logits: Tensor,
        k: int,
        temperature: Temperature = 1.0,
        *,
        hard: bool = False,
        dim: int = -1,
        generator: torch.Generator | None = None,
        name: str = "logits",
    ) -> None:
        logits = _checks.tensor(function, name, logits)
        size = logits.shape[_checks.dimension(function, name, logits, dim)]
        self.k = _checks.integer(function, "k", k, minimum=0, maximum=size)
        self.hard = _checks.boolean(function, "hard", hard)
        super().__init__(function, logits, temperature, dim=dim, generator=generator, name=name, present=self.k)
        self.certain = self.k == 0 or self.k == self.n
        present = self.rows.detach() > -math.inf
        self.present = None if self.checked and bool(present.all()) else present

    def good(self) -> Tensor:
        """[B, 1] bool: the rows that could be chosen from."""
        good = super().good()
        return good if self.present is None else good & (self.present.sum(1, keepdim=True) >= self.k)

    def standardised(self, keys: Tensor | None = None, dtype: torch.dtype | None = None) -> Tensor:
        """keys (default: the rows) over the temperature, finite: at most 0, masked ones far below all others.

        A shift changes nothing for any layer here, so the largest is brought to 0, as a constant.
        """
        keys = self.rows if keys is None else keys
        keys = keys if dtype is None else keys.to(dtype)
        largest = keys.detach().amax(1, keepdim=True)
        if self.present is not None:  # before the division, whose gradient by the temperature would be 0 * inf
            keys = torch.where(self.present, keys, largest)
        temperature = self.temperature
        if isinstance(temperature, Tensor):
            temperature = temperature.to(keys.dtype)
        # for 1e30 / 1e-30 and the like: sums of n differences stay finite
        limit = torch.finfo(keys.dtype).max / (16 * max(self.n, 1) ** 2)
        theta = ((keys - largest) / temperature).clamp(min=-limit)
        if self.present is None:
            return theta
        # far enough that exponentials of the distance vanish, also where 2000 is less than a rounding error
        return torch.where(self.present, theta, 2 * theta.detach().amin(1, keepdim=True) - 2000)

    def finish(self, soft: Callable[[], Tensor], hard: Callable[[], Tensor] | None = None) -> Tensor:
        """The result in the input's shape.

        Args:
            soft: makes the relaxed membership [B, n]; called only where there is something to choose.
            hard: makes the exact one; default the k largest rows.
        """
        if self.certain or self.size == 0:
            nothing = torch.zeros_like(self.rows, dtype=torch.bool)
            return self.restore(torch.where(nothing, self.rows, 1.0 if self.k else 0.0))  # zero gradient
        result = soft().to(self.rows.dtype)
        if self.present is not None:
            # where k elements are present, they are the members
            full = self.present.sum(1, keepdim=True) == self.k
            result = torch.where(full, 1.0, result)
            result = torch.where(self.present, result, 0.0)
        if self.hard:
            result = hardened(best(self.rows, self.k) if hard is None else hard(), result)
        return self.restore(result)


class SubsetModule(ChoiceModule):
    """Base of the modules that choose k: remembers k and `hard` too."""

    def __init__(self, k: int, temperature: Temperature | Schedule = 1.0, *, hard: bool = False, dim: int = -1) -> None:
        super().__init__(temperature, dim=dim)
        self.k = _checks.integer(self.function, "k", k, minimum=0)
        self.hard = _checks.boolean(self.function, "hard", hard)

    def extra_repr(self) -> str:
        """The settings, as repr shows them."""
        return f"k={self.k}, {super().extra_repr()}, hard={self.hard}"
