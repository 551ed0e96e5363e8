"""torch.distributions of yes and no (and a little of each) that can be sampled with a gradient."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Bernoulli, Distribution, constraints
from torch.distributions.utils import broadcast_all
from torch.nn.functional import logsigmoid

from .. import _checks
from .._choice import Temperature
from ..estimators.bernoulli import reinmax_bernoulli, relaxed_bernoulli, straight_through_bernoulli
from ..estimators.hard_concrete import (
    checked_interval,
    hard_concrete,
    hard_concrete_gate,
    hard_concrete_open_probability,
)

__all__ = ["BernoulliReinMax", "BernoulliStraightThrough", "HardConcrete", "RelaxedBernoulli"]

_HALF = (torch.float16, torch.bfloat16)


def _checked_temperature(cls: type, temperature: Temperature, batch_shape: torch.Size) -> Temperature:
    """A positive number, or a tensor that broadcasts to the batch."""
    function = f"difflayers.distributions.{cls.__name__}"
    if not isinstance(temperature, Tensor):
        return _checks.number(function, "temperature", temperature, above=0.0)
    temperature = _checks.positive_tensor(function, "temperature", temperature)
    try:
        temperature.expand(batch_shape)
    except RuntimeError:
        raise ValueError(
            f"{function}: argument 'temperature' must be broadcastable to the batch shape, {tuple(batch_shape)}, "
            f"got {tuple(temperature.shape)}; expand the distribution first"
        ) from None
    return temperature


def _exact_logits(distribution: Any) -> Tensor:
    """The logits to sample with: probabilities of 0 and 1, which torch moves away from the ends, are certain."""
    logits = distribution.logits
    if "logits" in distribution.__dict__ and distribution._param is distribution.__dict__["logits"]:
        return logits
    probs = distribution.probs.detach()
    return torch.where(probs <= 0, -torch.inf, torch.where(probs >= 1, torch.inf, logits))


def _log_concrete(logits: Tensor, temperature: Temperature, s: Tensor) -> Tensor:
    """The logarithm of the binary concrete density at s in (0, 1)."""
    # every term stays accurate for any logits: the textbook form is a ratio of powers of s that overflow
    log_s, log_rest = s.log(), torch.log1p(-s)
    height = logits - temperature * (log_s - log_rest)
    log_temperature = temperature.log() if isinstance(temperature, Tensor) else math.log(temperature)
    return log_temperature + logsigmoid(height) + logsigmoid(-height) - log_s - log_rest


class _DiscreteBernoulli(Bernoulli):
    """A Bernoulli whose samples, exactly 0 or 1, carry a surrogate gradient."""

    has_rsample = True

    def __init__(
        self,
        temperature: Temperature = 1.0,
        probs: Tensor | float | None = None,
        logits: Tensor | float | None = None,
        validate_args: bool | None = None,
    ) -> None:
        super().__init__(probs, logits, validate_args=validate_args)  # pyright: ignore[reportArgumentType]
        self.temperature = _checked_temperature(type(self), temperature, self._batch_shape)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Any:
        """The same distribution, its batch expanded."""
        new: Any = self._get_checked_instance(type(self), _instance)
        new.temperature = self.temperature
        return super().expand(batch_shape, _instance=new)

    def sample(self, sample_shape: Any = torch.Size(), *, generator: torch.Generator | None = None) -> Tensor:  # noqa: B008
        """What `rsample` draws, without gradient."""
        with torch.no_grad():
            return self.rsample(sample_shape, generator=generator)  # pyright: ignore[reportCallIssue]


class BernoulliReinMax(_DiscreteBernoulli):
    """torch.distributions.Bernoulli with `rsample` by ReinMax: `difflayers.estimators.reinmax_bernoulli`.

    Args:
        temperature: of the backward pass; a positive number or a tensor broadcastable to the batch that does
            not require a gradient.
        probs, logits: as in torch.distributions.Bernoulli; exactly one of them.
        validate_args: as in torch.distributions.

    Returns:
        A `torch.distributions.Bernoulli` with `rsample(sample_shape)`; probabilities, `entropy`, `log_prob`,
        `kl_divergence` and so on are torch's.

    Raises:
        ValueError: a temperature that is not positive or does not fit the batch; parameters as torch checks them.

    Cost, transforms:
        rsample: as `difflayers.estimators.reinmax_bernoulli`. Under torch.func and torch.compile pass
        validate_args=False.

    References:
        Liu, Dong, Liu, Yu, Gao, "Bridging Discrete and Backpropagation: Straight-Through and Beyond", NeurIPS 2023,
        arXiv 2304.08612.

    Example:
        >>> import torch
        >>> from difflayers.distributions.bernoulli import BernoulliReinMax
        >>> logits = torch.zeros(2, requires_grad=True)
        >>> BernoulliReinMax(logits=logits).rsample().sum().backward()
        >>> logits.grad
        tensor([0.2500, 0.2500])
    """

    def rsample(self, sample_shape: Any = torch.Size(), *, generator: torch.Generator | None = None) -> Tensor:  # noqa: B008
        """Zeros and ones with ReinMax's gradient, `[*sample_shape, *batch_shape]`."""
        logits = _exact_logits(self).expand(self._extended_shape(sample_shape))
        return reinmax_bernoulli(logits, self.temperature, generator=generator)


class BernoulliStraightThrough(_DiscreteBernoulli):
    """torch.distributions.Bernoulli with `rsample` by `difflayers.estimators.straight_through_bernoulli`.

    Args:
        temperature: of the backward pass; a positive number or a tensor broadcastable to the batch.
        probs, logits: as in torch.distributions.Bernoulli; exactly one of them.
        validate_args: as in torch.distributions.

    Returns:
        A `torch.distributions.Bernoulli` with `rsample(sample_shape)`; probabilities, `entropy`, `log_prob`,
        `kl_divergence` and so on are torch's.

    Raises:
        ValueError: a temperature that is not positive or does not fit the batch; parameters as torch checks them.

    Cost, transforms:
        rsample: as `difflayers.estimators.straight_through_bernoulli`. Under torch.func and torch.compile pass
        validate_args=False.

    References:
        Bengio, Léonard, Courville, "Estimating or Propagating Gradients Through Stochastic Neurons for Conditional
        Computation", 2013, arXiv 1308.3432.

    Example:
        >>> import torch
        >>> from difflayers.distributions.bernoulli import BernoulliStraightThrough
        >>> logits = torch.zeros(2, requires_grad=True)
        >>> BernoulliStraightThrough(logits=logits).rsample((3,)).mean(0).sum().backward()
        >>> logits.grad
        tensor([0.2500, 0.2500])
    """

    def rsample(self, sample_shape: Any = torch.Size(), *, generator: torch.Generator | None = None) -> Tensor:  # noqa: B008
        """Zeros and ones with the straight-through gradient, `[*sample_shape, *batch_shape]`."""
        logits = _exact_logits(self).expand(self._extended_shape(sample_shape))
        return straight_through_bernoulli(logits, self.temperature, generator=generator)


class _Gate(Distribution):
    """What the continuous distributions on [0, 1] share: logits, a temperature, batches."""

    support = constraints.unit_interval  # pyright: ignore[reportAssignmentType, reportIncompatibleMethodOverride]
    has_rsample = True

    def __init__(
        self,
        probs: Tensor | float | None,
        logits: Tensor | float | None,
        temperature: Temperature,
        validate_args: bool | None,
    ) -> None:
        self._base: Any = Bernoulli(probs, logits, validate_args=False)  # pyright: ignore[reportArgumentType]
        batch_shape = self._base.batch_shape
        self.temperature = _checked_temperature(type(self), temperature, batch_shape)
        super().__init__(batch_shape, validate_args=validate_args)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(batch_shape: {tuple(self.batch_shape)}, temperature: {self.temperature})"

    @property
    def logits(self) -> Tensor:
        """The log-odds."""
        return self._base.logits

    def expand(self, batch_shape: Any, _instance: Any = None) -> Any:
        """The same distribution, its batch expanded."""
        new: Any = self._get_checked_instance(type(self), _instance)
        new._base = self._base.expand(batch_shape)
        new.temperature = self.temperature
        self._copy(new)
        Distribution.__init__(new, new._base.batch_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def sample(self, sample_shape: Any = torch.Size(), *, generator: torch.Generator | None = None) -> Tensor:  # noqa: B008
        """What `rsample` draws, without gradient."""
        with torch.no_grad():
            return self.rsample(sample_shape, generator=generator)  # pyright: ignore[reportCallIssue]

    def _copy(self, new: Any) -> None:
        """More settings, for `expand`."""

    def _in(self, value: Tensor) -> tuple[Tensor, Tensor, Temperature, torch.dtype]:
        """Logits and value broadcast, and the temperature, in float32 at least; the dtype of the result."""
        if self._validate_args:
            self._validate_sample(value)
        logits, value = broadcast_all(self.logits, value)
        dtype = logits.dtype
        wide = torch.float32 if dtype in _HALF else dtype
        temperature = self.temperature.to(wide) if isinstance(self.temperature, Tensor) else self.temperature
        return logits.to(wide), value.to(wide), temperature, dtype


class RelaxedBernoulli(_Gate):
    r"""The binary concrete distribution, sampled by `difflayers.estimators.relaxed_bernoulli`.

    $$\log p(y) = \log \tau + \log\sigma(h) + \log\sigma(-h) - \log y - \log(1 - y), \qquad
    h = \theta - \tau \operatorname{logit} y.$$

    Unlike torch.distributions.RelaxedBernoulli its noise is not cut off in half precision, and the temperature
    may be any tensor that broadcasts to the batch.

    Args:
        temperature: larger is softer; a positive number or a tensor broadcastable to the batch.
        probs, logits: of y > 1/2; exactly one of them.
        validate_args: as in torch.distributions.

    Returns:
        A distribution on [0, 1] with `rsample`, `log_prob` and `cdf`.

    Raises:
        ValueError: both or none of probs and logits; a temperature that is not positive or does not fit the batch.

    Cost, transforms:
        rsample: as `difflayers.estimators.relaxed_bernoulli`. Under torch.func and torch.compile pass
        validate_args=False.

    References:
        Maddison, Mnih, Teh, "The Concrete Distribution", ICLR 2017, arXiv 1611.00712, Appendix B.

    Example:
        >>> import torch
        >>> from difflayers.distributions.bernoulli import RelaxedBernoulli
        >>> RelaxedBernoulli(logits=torch.zeros(2)).log_prob(torch.tensor([0.5, 0.9]))  # uniform
        tensor([0., 0.])
    """

    arg_constraints = {"logits": constraints.real, "probs": constraints.unit_interval}  # noqa: RUF012 # pyright: ignore

    def __init__(
        self,
        temperature: Temperature = 1.0,
        probs: Tensor | float | None = None,
        logits: Tensor | float | None = None,
        validate_args: bool | None = None,
    ) -> None:
        super().__init__(probs, logits, temperature, validate_args)

    @property
    def probs(self) -> Tensor:
        """The probability of y > 1/2."""
        return self._base.probs

    def rsample(self, sample_shape: Any = torch.Size(), *, generator: torch.Generator | None = None) -> Tensor:  # noqa: B008
        """Numbers in [0, 1] with their gradient, `[*sample_shape, *batch_shape]`."""
        logits = _exact_logits(self._base).expand(self._extended_shape(sample_shape))
        return relaxed_bernoulli(logits, self.temperature, generator=generator)

    def log_prob(self, value: Tensor) -> Tensor:
        """The logarithm of the density; at 0 and 1, that of the nearest number on the inside."""
        logits, value, temperature, dtype = self._in(value)
        limits = torch.finfo(value.dtype)
        # samples round to 0 and 1, where the density has no finite value
        inside = value.clamp(limits.tiny, 1 - limits.eps)
        return _log_concrete(logits, temperature, inside).to(dtype)

    def cdf(self, value: Tensor) -> Tensor:
        """The probability of a sample of at most this value."""
        logits, value, temperature, dtype = self._in(value)
        return torch.sigmoid(temperature * torch.logit(value) - logits).to(dtype)


class HardConcrete(_Gate):
    r"""Gates in [0, 1] with point masses at both ends, sampled by `difflayers.estimators.hard_concrete`.

    `log_prob` is the logarithm of the probability at 0 and at 1, and that of the density between them.

    Args:
        logits: a number or a tensor.
        temperature: larger is softer; a positive number or a tensor broadcastable to the batch.
        lower, upper: the interval that a binary concrete sample is stretched to; lower < 0 and upper > 1.
        validate_args: as in torch.distributions.

    Returns:
        A distribution on [0, 1] with `rsample`, `log_prob`, `open_probability`, `gate`, `mean` and `variance`.

    Raises:
        ValueError: a temperature that is not positive or does not fit the batch; lower or upper out of range.

    Cost, transforms:
        rsample: as `difflayers.estimators.hard_concrete`. Under torch.func and torch.compile pass
        validate_args=False.

    References:
        Louizos, Welling, Kingma, "Learning Sparse Neural Networks through L0 Regularization", ICLR 2018,
        arXiv 1712.01312.

    Example:
        >>> import torch
        >>> from difflayers.distributions.bernoulli import HardConcrete
        >>> gates = HardConcrete(torch.tensor([0.0, 3.0]))
        >>> gates.log_prob(torch.ones(2)).exp()  # closed, a little open, or (here) open
        tensor([0.1682, 0.8024])
        >>> gates.mean
        tensor([0.5000, 0.9396])
    """

    arg_constraints = {"logits": constraints.real}  # noqa: RUF012 # pyright: ignore

    def __init__(
        self,
        logits: Tensor | float,
        temperature: Temperature = 2 / 3,
        *,
        lower: float = -0.1,
        upper: float = 1.1,
        validate_args: bool | None = None,
    ) -> None:
        self.lower, self.upper = checked_interval("difflayers.distributions.HardConcrete", lower, upper)
        super().__init__(None, logits, temperature, validate_args)

    def _copy(self, new: Any) -> None:
        new.lower, new.upper = self.lower, self.upper

    def rsample(self, sample_shape: Any = torch.Size(), *, generator: torch.Generator | None = None) -> Tensor:  # noqa: B008
        """Gates with their gradient, `[*sample_shape, *batch_shape]`."""
        logits = self.logits.expand(self._extended_shape(sample_shape))
        return hard_concrete(logits, self.temperature, lower=self.lower, upper=self.upper, generator=generator)

    def log_prob(self, value: Tensor) -> Tensor:
        """The logarithm of the probability of exactly 0 or 1, or of the density between them."""
        logits, value, temperature, dtype = self._in(value)
        width = self.upper - self.lower
        closed = logsigmoid(temperature * math.log(-self.lower / self.upper) - logits)
        opened = logsigmoid(logits - temperature * math.log((1 - self.lower) / (self.upper - 1)))
        s = (value.clamp(0, 1) - self.lower) / width  # in (0, 1): the interval is larger than [0, 1]
        between = _log_concrete(logits, temperature, s) - math.log(width)
        return torch.where(value <= 0, closed, torch.where(value >= 1, opened, between)).to(dtype)

    @property
    def open_probability(self) -> Tensor:
        """The probability that a gate is not 0; its sum is the L0 penalty."""
        return hard_concrete_open_probability(self.logits, self.temperature, lower=self.lower, upper=self.upper)

    @property
    def gate(self) -> Tensor:
        """The gates without noise, for use after training."""
        return hard_concrete_gate(self.logits, lower=self.lower, upper=self.upper)

    def _moment(self, order: int) -> Tensor:
        """E[z^order], the integral of order t^(order - 1) P(z > t) over [0, 1], by Gauss-Legendre quadrature.

        The integrand is smooth, as the interval is larger than [0, 1].
        """
        nodes, weights = np.polynomial.legendre.leggauss(64)
        nodes, weights = (nodes + 1) / 2, weights / 2
        logits, _, temperature, dtype = self._in(torch.zeros_like(self.logits))
        t, w = (torch.tensor(a, dtype=logits.dtype, device=logits.device) for a in (nodes, order * weights))
        if isinstance(temperature, Tensor):
            temperature = temperature.unsqueeze(-1)
        exceeds = torch.sigmoid(
            logits.unsqueeze(-1) - temperature * torch.logit((t - self.lower) / (self.upper - self.lower))
        )
        return (exceeds * w * t ** (order - 1)).sum(-1).to(dtype)

    @property
    def mean(self) -> Tensor:
        """The expected gate: an integral without a closed form, to the precision of the dtype."""
        return self._moment(1)

    @property
    def variance(self) -> Tensor:
        """The variance of the gate."""
        return (self._moment(2) - self._moment(1).square()).clamp(min=0)
