"""Temperature schedules: plain objects that say how soft a layer is at each step of training.

A schedule has a current `value`, moves on with `step()`, and is saved with `state_dict()`, like a learning-rate
scheduler. Give one to any module of `difflayers.estimators` or `difflayers.subsets` in place of the temperature,
or pass `schedule.value` (or `schedule(t)`, the value at step t) to a function.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from . import _checks

__all__ = ["Cosine", "EntropyAdaptive", "Exponential", "Schedule"]


class Schedule:
    """Base of the schedules: a value that changes with `step()`.

    Attributes:
        steps_done: how often `step` was called.
    """

    steps_done: int = 0

    @property
    def value(self) -> float:
        """The temperature now."""
        raise NotImplementedError

    def step(self) -> float:
        """Moves on by one step and returns the new value."""
        self.steps_done += 1
        return self.value

    def state_dict(self) -> dict[str, Any]:
        """Everything that changes with time, for a checkpoint."""
        return {"steps_done": self.steps_done}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes back to where `state_dict` was taken."""
        for name in self.state_dict():
            if name not in state:
                raise KeyError(
                    f"{type(self).__name__}.load_state_dict: the state must have {name!r}, got {sorted(state)}"
                )
            setattr(self, name, state[name])


class _Between(Schedule):
    """From `start` to `end` in `steps` steps, then constant."""

    def __init__(self, start: float, end: float, steps: int) -> None:
        name = f"difflayers.schedules.{type(self).__name__}"
        self.start = _checks.number(name, "start", start, above=0.0)
        self.end = _checks.number(name, "end", end, above=0.0)
        self.steps = _checks.integer(name, "steps", steps, minimum=1)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.start:g}, {self.end:g}, steps={self.steps})"

    @property
    def value(self) -> float:
        """The temperature now."""
        return self(self.steps_done)

    def __call__(self, step: int) -> float:
        """The temperature at this step."""
        name = f"difflayers.schedules.{type(self).__name__}"
        return self._at(min(_checks.integer(name, "step", step, minimum=0) / self.steps, 1.0))

    def _at(self, fraction: float) -> float:
        raise NotImplementedError


class Exponential(_Between):
    r"""$\tau_t = \text{start}\,(\text{end} / \text{start})^{t / \text{steps}}$, then `end`: the usual annealing.

    Args:
        start: the temperature at step 0; above 0.
        end: the temperature from step `steps` on; above 0.
        steps: at least 1.

    Raises:
        TypeError: start or end is not a number, or steps not an integer.
        ValueError: one of them is out of range; on a call, a step below 0.

    Example:
        >>> import difflayers as dl
        >>> schedule = dl.schedules.Exponential(1.0, 0.25, steps=2)
        >>> [schedule.value, schedule.step(), schedule.step(), schedule.step()]
        [1.0, 0.5, 0.25, 0.25]
    """

    def _at(self, fraction: float) -> float:
        return self.start * (self.end / self.start) ** fraction


class Cosine(_Between):
    r"""$\tau_t = \text{end} + (\text{start} - \text{end})(1 + \cos(\pi t / \text{steps})) / 2$, then `end`.

    Args:
        start: the temperature at step 0; above 0.
        end: the temperature from step `steps` on; above 0.
        steps: at least 1.

    Raises:
        TypeError: start or end is not a number, or steps not an integer.
        ValueError: one of them is out of range; on a call, a step below 0.

    Example:
        >>> import difflayers as dl
        >>> schedule = dl.schedules.Cosine(1.0, 0.5, steps=2)
        >>> [schedule(t) for t in range(4)]
        [1.0, 0.75, 0.5, 0.5]
    """

    def _at(self, fraction: float) -> float:
        return self.end + (self.start - self.end) * (1 + math.cos(math.pi * fraction)) / 2


class EntropyAdaptive(Schedule):
    r"""Keeps the mean entropy of softmax(logits / temperature) at a wanted share of its maximum log n.

    A feedback controller in log-temperature: with H the mean over the rows of the entropy divided by the
    logarithm of the number of present classes, $\log \tau \leftarrow \log \tau + \text{rate}\,(\text{target} - H)$.
    As H increases with $\tau$, it settles where H = target, and follows when the logits grow during training,
    which is what a schedule in time has to guess.

    Args:
        target: the wanted entropy as a share of log n, in (0, 1).
        start: the first temperature; above 0.
        rate: of the feedback; above 0.
        minimum, maximum: bounds of the temperature; above 0.

    Raises:
        TypeError: a setting is not a number.
        ValueError: a setting is out of range.

    Example:
        >>> import torch, difflayers as dl
        >>> schedule = dl.schedules.EntropyAdaptive(0.5, rate=1.0)
        >>> logits = torch.tensor([[4.0, 2.0, 0.0, 1.0]])
        >>> for _ in range(100):
        ...     temperature = schedule.step(logits)
        >>> round(schedule.entropy(logits), 3)
        0.5
    """

    def __init__(
        self,
        target: float = 0.5,
        *,
        start: float = 1.0,
        rate: float = 0.1,
        minimum: float = 1e-3,
        maximum: float = 1e3,
    ) -> None:
        name = "difflayers.schedules.EntropyAdaptive"
        self.target = _checks.number(name, "target", target, above=0.0, below=1.0)
        self.rate = _checks.number(name, "rate", rate, above=0.0)
        self.minimum = _checks.number(name, "minimum", minimum, above=0.0)
        self.maximum = _checks.number(name, "maximum", maximum, minimum=self.minimum)
        self.temperature = _checks.number(name, "start", start, minimum=self.minimum, maximum=self.maximum)

    def __repr__(self) -> str:
        return f"EntropyAdaptive({self.target:g}, rate={self.rate:g})"

    @property
    def value(self) -> float:
        """The temperature now."""
        return self.temperature

    def entropy(self, logits: Tensor, dim: int = -1) -> float:
        """The mean entropy of softmax(logits / value) as a share of the logarithm of the number of classes."""
        logits = _checks.tensor("difflayers.schedules.EntropyAdaptive.entropy", "logits", logits)
        dim = _checks.dimension("difflayers.schedules.EntropyAdaptive.entropy", "logits", logits, dim)
        with torch.no_grad():
            logarithms = torch.log_softmax(logits.double() / self.temperature, dim)
            classes = (logits != -math.inf).sum(dim)
            # not where the logarithm is -inf, so that NaN shows
            entropy = -torch.where(logarithms == -math.inf, 0.0, logarithms.exp() * logarithms).sum(dim)
            share = entropy[classes > 1] / classes[classes > 1].log()  # where there is no choice there is no entropy
            return float(share.mean()) if share.numel() else self.target

    def step(self, logits: Tensor | None = None, dim: int = -1) -> float:
        """Moves the temperature by what these logits show and returns it.

        Args:
            logits: `[..., n]`, this step's.
            dim: the dimension of the classes.

        Raises:
            ValueError: no logits, or logits whose entropy is not finite (NaN, +inf, a row of -inf).
        """
        name = "difflayers.schedules.EntropyAdaptive.step"
        if logits is None:
            raise ValueError(f"{name}: argument 'logits' must be this step's logits, got None")
        share = self.entropy(logits, dim)
        if not math.isfinite(share):
            raise ValueError(f"{name}: argument 'logits' must have finite entropy, got {share}; look for NaN or +inf")
        moved = self.temperature * math.exp(self.rate * (self.target - share))
        self.temperature = min(max(moved, self.minimum), self.maximum)
        return super().step()

    def state_dict(self) -> dict[str, Any]:
        """Everything that changes with time, for a checkpoint."""
        return {**super().state_dict(), "temperature": self.temperature}
