"""What every k-of-n layer shares: one call's logits and k, its result, and the module base."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .. import _checks, _random
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

    def scaled(self, keys: Tensor | None = None, dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor]:
        """keys (default: the rows) over the temperature, and the temperature.

        A shift changes nothing for any layer here, so the k-th largest is brought to 0, as a constant: rounding
        then spares the elements whose membership is in question. All are finite, masked ones far below the others.
        A temperature at which they would overflow is raised to where they do not, which is as hard.

        Returns:
            theta [B, n] and the temperature [B, 1], in dtype (default: that of the keys).
        """
        keys = self.rows if keys is None else keys
        keys = keys if dtype is None else keys.to(dtype)
        limits = torch.finfo(keys.dtype)
        middle = self.middle(keys)
        if self.present is not None:  # before the division, whose gradient by the temperature would be 0 * inf
            keys = torch.where(self.present, keys, middle)
        limit = limits.max / (16 * max(self.n, 1) ** 2)  # sums of n differences stay finite
        least, most = torch.aminmax(keys.detach(), dim=1, keepdim=True)
        lowest = (most / limit - least / limit).clamp(min=limits.tiny)
        temperature = torch.as_tensor(self.temperature, dtype=keys.dtype, device=keys.device)
        temperature = torch.where(temperature < lowest, lowest, temperature)  # NaN stays
        theta = (keys - middle).clamp(min=limits.min, max=limits.max) / temperature
        if self.present is None:
            return theta, temperature
        # far enough that exponentials of the distance vanish, also where 2000 is less than a rounding error
        furthest = theta.detach().abs().amax(1, keepdim=True)
        return torch.where(self.present, theta, -2 * furthest - 2000), temperature

    def middle(self, keys: Tensor) -> Tensor:
        """[B, 1] the k-th largest key (the median where there is no k), a constant."""
        rank = self.k if self.k > 0 else (self.n + 1) // 2
        ranked = keys.detach().topk(rank, dim=1).values
        return torch.where(ranked[:, -1:] > -math.inf, ranked[:, -1:], ranked[:, :1])

    def standardised(self, dtype: torch.dtype | None = None) -> Tensor:
        """The rows over the temperature, see `scaled`."""
        return self.scaled(dtype=dtype)[0]

    def finish(self, soft: Callable[[], Tensor], hard: Callable[[], Tensor] | None = None) -> Tensor:
        """The result in the input's shape.

        Args:
            soft: makes the relaxed membership [B, n]; called only where there is something to choose.
            hard: makes the exact one; default the k largest rows.
        """
        if self.certain or self.size == 0:
            nothing = torch.zeros_like(self.rows, dtype=torch.bool)
            return self.restore(torch.where(nothing, self.rows, 1.0 if self.k else 0.0))  # zero gradient
        if self.hard and not self._may_be_differentiated():
            return self.restore(best(self.rows, self.k) if hard is None else hard())
        result = soft().to(self.rows.dtype)
        if self.present is not None:
            # where k elements are present, they are the members
            full = self.present.sum(1, keepdim=True) == self.k
            result = torch.where(full, 1.0, result)
            result = torch.where(self.present, result, 0.0)
        if self.hard:
            result = hardened(best(self.rows, self.k) if hard is None else hard(), result)
        return self.restore(result)

    def _may_be_differentiated(self) -> bool:
        if _random.transformed() or forward_ad._current_level >= 0:
            return True
        wanted = self.rows.requires_grad or (isinstance(self.temperature, Tensor) and self.temperature.requires_grad)
        return torch.is_grad_enabled() and wanted


class SubsetModule(ChoiceModule):
    """Base of the modules that choose k: remembers k and `hard` too."""

    def __init__(self, k: int, temperature: Temperature | Schedule = 1.0, *, hard: bool = False, dim: int = -1) -> None:
        super().__init__(temperature, dim=dim)
        self.k = _checks.integer(self.function, "k", k, minimum=0)
        self.hard = _checks.boolean(self.function, "hard", hard)

    def extra_repr(self) -> str:
        """The settings, as repr shows them."""
        return f"k={self.k}, {super().extra_repr()}, hard={self.hard}"
