"""The table of the one-of-n estimators: how each is called, and its surrogate written again, independently.

Adding a `Case` puts an estimator through every check of test_estimators.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from difflayers import _random, estimators


def softmax(x: Tensor) -> Tensor:
    weights = (x - x.detach().amax(1, keepdim=True)).exp()
    return weights / weights.sum(1, keepdim=True)


@dataclass(frozen=True)
class Case:
    """An estimator.

    Attributes:
        name: for the test's id.
        run: the function.
        module: makes the module that does the same.
        surrogate: `surrogate(x, temperature, sample, origin)` for rows x [B, n]: what the gradient is the derivative
            of, the sample [B, n] that was drawn being given and everything that counts as a constant being computed
            at `origin`; the noise is drawn again, by `Noise`.
        hard: the sample is exactly one-hot.
        learns: whether the temperature may require a gradient.
    """

    name: str
    run: Callable[..., Tensor]
    module: Callable[..., torch.nn.Module]
    surrogate: Callable[..., Tensor]
    hard: bool = True
    learns: bool = True


class Noise:
    """Replaces what `_random` draws by the same numbers at every call, whatever transform is at work."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(5)
        self.table = torch.randint(2**31 - 1, (4096,), generator=generator, dtype=torch.int64).to(torch.int32)

    def bits(self, shape, device=None, generator=None):
        return self.table[: math.prod(shape)].reshape(shape)

    def uniform(self, shape, *, device=None, generator=None):
        return _random.uniform_of(self.bits(shape).flip(0), torch.float64)

    def install(self, monkeypatch) -> None:
        monkeypatch.setattr(_random, "bits", self.bits)
        monkeypatch.setattr(_random, "uniform", self.uniform)


def gumbel(x: Tensor, temperature, sample: Tensor, origin: Tensor) -> Tensor:
    return softmax((x + _random.gumbel_of(Noise().bits(x.shape), x.dtype)) / temperature)


def straight_through(x: Tensor, temperature, sample: Tensor, origin: Tensor) -> Tensor:
    return softmax(x / temperature)


def reinmax(x: Tensor, temperature, sample: Tensor, origin: Tensor) -> Tensor:
    constant = ((softmax(origin / temperature) + sample) / 2).log() - origin
    return 2 * softmax(x + constant) - softmax(x) / 2


def gumbel_rao(x: Tensor, temperature, sample: Tensor, origin: Tensor, samples: int = 10) -> Tensor:
    noise = -torch.log1p(-_random.uniform_of(Noise().bits((samples, *x.shape)), x.dtype))
    total = 0.0
    for exponential in noise:  # the published form, in plain numbers
        weights = origin.exp()
        normaliser = weights.sum(1, keepdim=True)
        chosen = (exponential * sample).sum(1, keepdim=True)
        keys = torch.where(
            sample == 1, normaliser.log() - chosen.log(), -(exponential / weights + chosen / normaliser).log()
        )
        total = total + softmax((x + (keys - origin).detach()) / temperature)
    return total / samples


def gapped(x: Tensor, temperature, sample: Tensor, origin: Tensor, gap: float | str = 1.0) -> Tensor:
    largest = origin.amax(1, keepdim=True)
    if gap == "probability":
        p = (softmax(origin) * sample).sum(1, keepdim=True)
        gap = -(1 - p).log() / p
    rise = (largest - origin) * sample
    fall = (origin - largest + gap).clamp(min=0) * (1 - sample)
    return softmax((x + rise - fall) / temperature)


CASES = (
    Case("gumbel_softmax", estimators.gumbel_softmax, estimators.GumbelSoftmax, gumbel, hard=False),
    Case(
        "gumbel_softmax hard",
        lambda *a, **s: estimators.gumbel_softmax(*a, hard=True, **s),
        lambda *a, **s: estimators.GumbelSoftmax(*a, hard=True, **s),
        gumbel,
    ),
    Case("straight_through", estimators.straight_through, estimators.StraightThrough, straight_through),
    Case("reinmax", estimators.reinmax, estimators.ReinMax, reinmax, learns=False),
    Case("gumbel_rao", estimators.gumbel_rao, estimators.GumbelRao, gumbel_rao),
    Case(
        "gumbel_rao of 3",
        lambda *a, **s: estimators.gumbel_rao(*a, samples=3, **s),
        lambda *a, **s: estimators.GumbelRao(*a, samples=3, **s),
        lambda *a: gumbel_rao(*a, samples=3),
    ),
    Case("gapped", estimators.gapped_straight_through, estimators.GappedStraightThrough, gapped),
    Case(
        "gapped by probability",
        lambda *a, **s: estimators.gapped_straight_through(*a, gap="probability", **s),
        lambda *a, **s: estimators.GappedStraightThrough(*a, gap="probability", **s),
        lambda *a: gapped(*a, gap="probability"),
    ),
)


def name_of(case: Case) -> str:
    return case.name
