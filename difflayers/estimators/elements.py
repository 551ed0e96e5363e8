"""One call's logits where every element is a choice of its own (yes or no), and the module base of these."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _checks, _random
from .._choice import ChoiceModule, Temperature

_HALF = (torch.float16, torch.bfloat16)


class Elements:
    """The logits of yes-or-no choices, checked; +inf and -inf are certain choices.

    Attributes:
        values: the logits, float32 or float64, their shape unchanged.
        temperature: a float, or a tensor in the dtype of values that broadcasts to their shape.
        generator: as given, checked.
    """

    def __init__(
        self,
        function: str,
        logits: Tensor,
        temperature: Temperature = 1.0,
        *,
        generator: torch.Generator | None = None,
    ) -> None:
        logits = _checks.tensor(function, "logits", logits)
        self.function = function
        self.dtype = logits.dtype
        # vectorised and scalar sigmoids differ in the last bit, and which one is used depends on the strides
        self.values = (logits.float() if logits.dtype in _HALF else logits).contiguous()
        self.generator = _checks.generator(function, generator, logits.device)
        self.temperature = self._temperature(temperature)
        self.checked = _checks.contents_are_checked(self.values)
        if self.checked and bool(self.values.detach().isnan().any()):
            raise ValueError(
                f"{function}: argument 'logits' must not contain NaN, got {int(self.values.isnan().sum())} of them"
            )

    def _temperature(self, temperature: Temperature) -> Temperature:
        if not isinstance(temperature, Tensor):
            limit = torch.finfo(self.values.dtype).max
            return _checks.number(self.function, "temperature", temperature, above=0.0, maximum=limit)
        temperature = _checks.positive_tensor(self.function, "temperature", temperature)
        try:
            temperature.expand(self.values.shape)
        except RuntimeError:
            raise ValueError(
                f"{self.function}: argument 'temperature' must be broadcastable to the shape of the logits, "
                f"{tuple(self.values.shape)}, got {tuple(temperature.shape)}"
            ) from None
        temperature = temperature.to(device=self.values.device, dtype=self.values.dtype)
        # where contents go unchecked, a temperature that is not positive gives NaN instead of nonsense
        checked = _checks.contents_are_checked(temperature)
        return temperature if checked else torch.where(temperature > 0, temperature, torch.nan)

    def logistic(self) -> Tensor:
        """Logistic noise in the shape and dtype of values."""
        return _random.logistic(
            tuple(self.values.shape), dtype=self.values.dtype, device=self.values.device, generator=self.generator
        )

    def draw(self) -> Tensor:
        """1 with probability sigmoid(values), else 0: never what has probability 0."""
        uniform = _random.uniform(tuple(self.values.shape), device=self.values.device, generator=self.generator)
        return (uniform < torch.sigmoid(self.values.detach().to(uniform.dtype))).to(self.values.dtype)

    def restore(self, result: Tensor) -> Tensor:
        """In the input's dtype; what came from NaN that went unchecked is NaN."""
        if not self.checked:
            result = torch.where(self.values.detach().isnan(), torch.nan, result)
            if isinstance(self.temperature, Tensor):
                result = torch.where(self.temperature.detach().isnan(), torch.nan, result)
        return result.to(self.dtype)


class ElementModule(ChoiceModule):
    """Base of the modules that choose yes or no for every element: remembers the temperature."""

    def extra_repr(self) -> str:
        """The settings, as repr shows them."""
        return super().extra_repr().removesuffix(f", dim={self.dim}")
