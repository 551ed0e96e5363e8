"""One call's logits as rows, and the module base: what every estimator and every subset layer shares."""

from __future__ import annotations

import math
from typing import Union

import torch
from torch import Tensor, nn

from . import _checks, _random
from .schedules import Schedule

Temperature = Union[float, Tensor]  # noqa: UP007 (evaluated at run time on Python 3.10)

_HALF = (torch.float16, torch.bfloat16)


class Choice:
    """The logits (or scores) of one call as B rows of n, checked, with the temperature of each row.

    Attributes:
        rows: [B, n], float32 or float64, `dim` last.
        temperature: a float, or [B, 1] in the dtype of rows.
        n: number of elements to choose from.
        generator: as given, checked.
        checked: whether the contents were checked; if not, `restore` makes bad rows NaN.
    """

    def __init__(
        self,
        function: str,
        logits: Tensor,
        temperature: Temperature = 1.0,
        *,
        dim: int = -1,
        generator: torch.Generator | None = None,
        name: str = "logits",
        present: int = 1,
    ) -> None:
        """Checks everything.

        Args:
            name: of the argument, in messages.
            present: how many elements of a row must not be masked (-inf); rows of n = 0 elements pass.
        """
        logits = _checks.tensor(function, name, logits)
        self.function = function
        self.dim = _checks.dimension(function, name, logits, dim)
        self.dtype = logits.dtype
        moved = logits if self.dim == -1 else logits.movedim(self.dim, -1)
        self.lead = moved.shape[:-1]
        self.n = moved.shape[-1]
        self.size = math.prod(self.lead)
        rows = moved if moved.dim() == 2 else moved.reshape(self.size, self.n)
        self.rows = rows.float() if logits.dtype in _HALF else rows
        self.generator = _checks.generator(function, generator, logits.device)
        self.temperature = self._rows_of_temperature(logits, temperature)
        self.checked = _checks.contents_are_checked(self.rows)
        if self.checked and self.rows.numel() > 0:
            self._check_contents(name, present)

    def _rows_of_temperature(self, logits: Tensor, temperature: Temperature) -> Temperature:
        if not isinstance(temperature, Tensor):
            limit = torch.finfo(self.rows.dtype).max
            return _checks.number(self.function, "temperature", temperature, above=0.0, maximum=limit)
        temperature = _checks.positive_tensor(self.function, "temperature", temperature)
        rows = _checks.keepdim(self.function, "temperature", temperature, logits, self.dim)
        rows = rows.to(device=self.rows.device, dtype=self.rows.dtype)
        if self.dim != -1:
            rows = rows.movedim(self.dim, -1)
        rows = rows.reshape(self.size, 1)
        # where contents go unchecked, a temperature that is not positive makes its row NaN instead of nonsense
        return rows if _checks.contents_are_checked(temperature) else torch.where(rows > 0, rows, torch.nan)

    def _check_contents(self, name: str, present: int) -> None:
        rows = self.rows.detach()
        largest = rows.amax(1)  # propagates NaN
        if not bool(largest.isfinite().all()):
            where = f"{self.function}: argument '{name}' must"
            if bool(largest.isnan().any()):
                raise ValueError(f"{where} not contain NaN, got {int(rows.isnan().sum())} of them")
            if bool((largest == math.inf).any()):
                raise ValueError(f"{where} not contain +inf, got {int((rows == math.inf).sum())} of them")
            raise ValueError(
                f"{where} leave something to choose in every slice along dim {self.dim}, "
                f"got {int((largest == -math.inf).sum())} of {self.size} slices that are -inf throughout"
            )
        if present > 1:
            least = int((rows > -math.inf).sum(1).min())
            if least < present:
                raise ValueError(
                    f"{self.function}: argument 'k' must be at most the number of elements that are not masked "
                    f"(-inf) in every slice along dim {self.dim}, got k = {present} where {least} are present"
                )

    def good(self) -> Tensor:
        """[B, 1] bool: the rows that could be chosen from; for where contents go unchecked."""
        if self.n == 0:
            return torch.ones(self.size, 1, dtype=torch.bool, device=self.rows.device)
        return self.rows.detach().amax(1, keepdim=True).isfinite()

    def gumbel(self, *more: int) -> Tensor:
        """Gumbel noise [*more, B, n] in the dtype of rows."""
        return _random.gumbel(
            (*more, self.size, self.n), dtype=self.rows.dtype, device=self.rows.device, generator=self.generator
        )

    def uniform(self, *more: int) -> Tensor:
        """Uniform noise [*more, B, 1] in float64."""
        return _random.uniform((*more, self.size, 1), device=self.rows.device, generator=self.generator)

    def restore(self, result: Tensor) -> Tensor:
        """[B, m] -> the input's shape with m at dim, in the input's dtype; bad rows that went unchecked are NaN."""
        if not self.checked:
            result = torch.where(self.good(), result, torch.nan)
        if len(self.lead) != 1:
            result = result.reshape(*self.lead, result.shape[1])
        if result.dtype != self.dtype:
            result = result.to(self.dtype)
        return result if self.dim == -1 else result.movedim(-1, self.dim)


def hardened(hard: Tensor, soft: Tensor) -> Tensor:
    """`hard` forward, the gradient of `soft` backward; exactly `hard`, as what is added to it is exactly 0."""
    return hard.detach() + (soft - soft.detach())


class ChoiceModule(nn.Module):
    """Base of the modules that choose: remembers the temperature and `dim`.

    The temperature may be a number, a tensor (kept as a buffer), or a schedule of `difflayers.schedules`, whose
    current value is used at every call. With learnable=True it is the exponential of the parameter
    `log_temperature`, so no step can make it negative.
    """

    function: str  # the name in messages
    fixed_temperature: Tensor | None
    log_temperature: nn.Parameter | None

    def __init__(self, temperature: Temperature | Schedule = 1.0, *, learnable: bool = False, dim: int = -1) -> None:
        super().__init__()
        self.dim = _checks.integer(self.function, "dim", dim)
        self.register_buffer("fixed_temperature", None)
        self.register_parameter("log_temperature", None)
        self.given_temperature: float | Schedule | None = None
        if _checks.boolean(self.function, "learnable", learnable):
            if isinstance(temperature, Schedule):
                raise ValueError(
                    f"{self.function}: argument 'temperature' must be a number or a tensor when learnable=True, "
                    f"got {temperature!r}; pass learnable=False or the number {temperature.value:g}"
                )
            if isinstance(temperature, Tensor):
                start = _checks.positive_tensor(self.function, "temperature", temperature).detach().clone()
            else:
                start = torch.tensor(_checks.number(self.function, "temperature", temperature, above=0.0))
            self.log_temperature = nn.Parameter(start.log())
        else:
            self.temperature = temperature

    @property
    def temperature(self) -> Temperature:
        """The temperature in use now."""
        if self.log_temperature is not None:
            half = self.log_temperature.dtype in _HALF
            logarithm = self.log_temperature.float() if half else self.log_temperature
            limits = torch.finfo(logarithm.dtype)
            # a diverged parameter must not round to 0 or inf, which are not temperatures
            return logarithm.exp().clamp(limits.tiny, limits.max)
        if self.fixed_temperature is not None:
            return self.fixed_temperature
        assert self.given_temperature is not None
        given = self.given_temperature
        return given.value if isinstance(given, Schedule) else given

    @temperature.setter
    def temperature(self, value: Temperature | Schedule) -> None:
        if self.log_temperature is not None:
            raise AttributeError(f"{self.function}: the temperature is learnable; set log_temperature.data instead")
        if isinstance(value, Tensor):
            value = _checks.positive_tensor(self.function, "temperature", value)
            if value.requires_grad:
                raise ValueError(
                    f"{self.function}: argument 'temperature' must not require a gradient in a module, got a tensor "
                    f"that does; use learnable=True where the module has it, or pass it to the function"
                )
            self.fixed_temperature, self.given_temperature = value, None
        else:
            if not isinstance(value, Schedule):
                value = _checks.number(self.function, "temperature", value, above=0.0)
            self.fixed_temperature, self.given_temperature = None, value

    def extra_repr(self) -> str:
        """The settings, as repr shows them."""
        if self.log_temperature is not None:
            shown = "learnable"
        elif self.fixed_temperature is not None:
            shown = f"tensor of shape {tuple(self.fixed_temperature.shape)}"
        else:
            given = self.given_temperature
            shown = repr(given) if isinstance(given, Schedule) else f"{given:g}"
        return f"temperature={shown}, dim={self.dim}"
