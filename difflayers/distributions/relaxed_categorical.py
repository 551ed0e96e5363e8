"""The relaxed one-hot categorical (concrete) distribution, and the distribution of its logarithm."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Categorical, Distribution, constraints

from .._choice import Choice, Temperature
from .constraint import checked_temperature, exact_logits, simplex

__all__ = ["LogRelaxedOneHotCategorical", "RelaxedOneHotCategorical"]


class _Relaxed(Distribution):
    """Parameters and sampling of both; logarithms are kept in float32 or float64."""

    arg_constraints = {"probs": simplex, "logits": constraints.real_vector}  # noqa: RUF012 # pyright: ignore
    has_rsample = True

    def __init__(
        self,
        temperature: Temperature = 1.0,
        probs: Tensor | None = None,
        logits: Tensor | None = None,
        validate_args: bool | None = None,
    ) -> None:
        self._categorical: Any = Categorical(probs, logits)
        self.by_probs = probs is not None
        parameter = self._categorical._param
        self.temperature = checked_temperature(self._name(), temperature, parameter)
        super().__init__(self._categorical.batch_shape, parameter.shape[-1:], validate_args=validate_args)

    @classmethod
    def _name(cls) -> str:
        return f"difflayers.distributions.{cls.__name__}"

    def expand(self, batch_shape: Any, _instance: Any = None) -> Any:
        """The same distribution with its batch dimensions broadcast to batch_shape."""
        new: Any = self._get_checked_instance(type(self), _instance)
        new.by_probs = self.by_probs
        new._categorical = self._categorical.expand(torch.Size(batch_shape))
        new.temperature = self.temperature
        Distribution.__init__(new, torch.Size(batch_shape), self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    @property
    def probs(self) -> Tensor:
        """The probability of each class of being the largest, `[..., n]`."""
        return self._categorical.probs

    @property
    def logits(self) -> Tensor:
        """Their logarithms; -inf for a class of probability 0."""
        return exact_logits(self._categorical, self.by_probs)

    def _keys(self, sample_shape: Any, generator: torch.Generator | None) -> tuple[Choice, Tensor]:
        """The checked choice and (logits + Gumbel noise) / temperature as rows [B, n], float32 or float64."""
        logits = self.logits.expand(self._extended_shape(torch.Size(sample_shape)))
        choice = Choice(self._name(), logits, self.temperature, generator=generator)
        return choice, (choice.rows + choice.gumbel()) / choice.temperature

    def rsample(self, sample_shape: Any = (), *, generator: torch.Generator | None = None) -> Tensor:
        """Samples `[*sample_shape, *batch_shape, n]`."""
        raise NotImplementedError

    def sample(self, sample_shape: Any = (), *, generator: torch.Generator | None = None) -> Tensor:
        """`rsample` without gradient."""
        with torch.no_grad():
            return self.rsample(sample_shape, generator=generator)

    def _log_prob_of_logarithm(self, logarithm: Tensor) -> tuple[Tensor, Tensor]:
        """The log-density of x = log y, and the sum of x over the classes that are present; [..., 1] each."""
        logits = self.logits.to(logarithm.dtype)
        temperature = self.temperature
        if isinstance(temperature, Tensor):
            temperature, log_temperature = temperature.to(logits.dtype), temperature.to(logits.dtype).log()
        else:
            log_temperature = math.log(temperature)
        logits, logarithm = torch.broadcast_tensors(logits, logarithm)
        present = logits > -torch.inf
        inside = ((logarithm == -torch.inf) | present).all(-1, keepdim=True)  # nothing on classes that are absent
        logarithm = torch.where(present, logarithm, 0.0)
        score = torch.where(present, logits, 0.0) - temperature * logarithm
        total = torch.where(present, score, -torch.inf).logsumexp(-1, keepdim=True)
        count = present.sum(-1, keepdim=True).to(logits.dtype)
        density = torch.lgamma(count) + (count - 1) * log_temperature
        density = density + torch.where(present, score - total, 0.0).sum(-1, keepdim=True)
        return torch.where(inside, density, -torch.inf), logarithm.sum(-1, keepdim=True)


class LogRelaxedOneHotCategorical(_Relaxed):
    r"""The logarithm of a relaxed one-hot sample: the concrete distribution where nothing underflows.

    $$x = \log \operatorname{softmax}\left(\frac{\theta + G}{\tau}\right), \quad
    \log p(x) = \log \Gamma(n) + (n - 1) \log \tau + \sum_i s_i - n \log \sum_i e^{s_i}, \quad
    s_i = \theta_i - \tau x_i.$$

    Where a model needs log-densities at low temperature (a relaxed variational bound), sample x here, use x.exp(),
    and take densities of x: ratios of densities are the same for x and y = exp(x).

    Args:
        temperature: larger is softer; a positive number or a tensor broadcastable to logits with size 1 in the last
            place (it gets a gradient).
        probs: `[..., n]` probabilities; or
        logits: `[..., n]` unnormalised log-probabilities; -inf masks a class out (and its x is -inf).
        validate_args: as in torch.distributions.

    Returns:
        A distribution with `rsample`, `sample` and `log_prob`, all of `[..., n]`; half precision is computed in
        float32 and rounded once.

    Raises:
        TypeError: a tensor is not floating-point.
        ValueError: the temperature is not positive or does not fit; what torch.distributions raises.

    Cost:
        O(n) a sample.

    Transforms:
        As `difflayers.gumbel_softmax`; under torch.func and torch.compile pass validate_args=False.

    References:
        Maddison, Mnih, Teh, "The Concrete Distribution", ICLR 2017, arXiv 1611.00712, appendix C.3 (ExpConcrete).

    Example:
        >>> import torch
        >>> from difflayers.distributions import LogRelaxedOneHotCategorical
        >>> q = LogRelaxedOneHotCategorical(0.01, logits=torch.randn(7, 1000))
        >>> bool(q.log_prob(q.rsample()).isfinite().all())
        True
    """

    support = constraints.real_vector  # pyright: ignore[reportAssignmentType, reportIncompatibleMethodOverride]

    def rsample(self, sample_shape: Any = (), *, generator: torch.Generator | None = None) -> Tensor:
        """Samples `[*sample_shape, *batch_shape, n]`, whose exponentials sum to 1."""
        choice, keys = self._keys(sample_shape, generator)
        return choice.restore(torch.log_softmax(keys, -1))

    def log_prob(self, value: Tensor) -> Tensor:
        """The log-density at x."""
        if self._validate_args:
            self._validate_sample(value)
        wide = value.float() if value.dtype in (torch.float16, torch.bfloat16) else value
        return self._log_prob_of_logarithm(wide)[0].squeeze(-1).to(value.dtype)


class RelaxedOneHotCategorical(_Relaxed):
    r"""The relaxed one-hot categorical (concrete) distribution: Gumbel-Softmax samples with their density.

    $$y = \operatorname{softmax}\left(\frac{\theta + G}{\tau}\right), \quad
    \log p(y) = \log p_x(\log y) - \sum_i \log y_i$$

    with $p_x$ of `LogRelaxedOneHotCategorical`. Unlike torch's class of this name it samples the right law in half
    precision, takes a temperature per row, accepts its own samples, and knows masks.

    At low temperature most of y underflows to 0, where the density is infinite or 0. The density of the sample
    last drawn is therefore taken from its logarithm, which is remembered: `q.log_prob(y)` of that very tensor is exact.
    Of other tensors, entries below the smallest normal number are taken to be that number.

    Args:
        temperature: larger is softer; a positive number or a tensor broadcastable to logits with size 1 in the last
            place (it gets a gradient).
        probs: `[..., n]` probabilities; or
        logits: `[..., n]` unnormalised log-probabilities; -inf masks a class out (and its y is 0).
        validate_args: as in torch.distributions.

    Returns:
        A distribution with `rsample`, `sample` and `log_prob`; half precision is computed in float32 and rounded
        once.

    Raises:
        TypeError: a tensor is not floating-point.
        ValueError: the temperature is not positive or does not fit; what torch.distributions raises.

    Cost:
        O(n) a sample; the last sample and its logarithm are kept.

    Transforms:
        As `difflayers.gumbel_softmax`; under torch.func and torch.compile pass validate_args=False.

    References:
        Maddison, Mnih, Teh, "The Concrete Distribution", ICLR 2017, arXiv 1611.00712, equation 10.

    Example:
        >>> import torch
        >>> from difflayers.distributions import RelaxedOneHotCategorical
        >>> temperature = torch.tensor([[0.1], [1.0]])  # one for each row
        >>> q = RelaxedOneHotCategorical(temperature, logits=torch.randn(2, 1000))
        >>> log_prob = q.log_prob(q.rsample((5,)))
        >>> log_prob.shape, bool(log_prob.isfinite().all())
        (torch.Size([5, 2]), True)
    """

    support = simplex  # pyright: ignore[reportAssignmentType, reportIncompatibleMethodOverride]
    _last: tuple[Tensor, Tensor] | None = None  # a sample and its logarithm

    def rsample(self, sample_shape: Any = (), *, generator: torch.Generator | None = None) -> Tensor:
        """Samples `[*sample_shape, *batch_shape, n]`, the same as `difflayers.gumbel_softmax` would draw."""
        choice, keys = self._keys(sample_shape, generator)
        sample = choice.restore(torch.softmax(keys, -1))
        self._last = sample, torch.log_softmax(keys, -1).reshape(sample.shape)
        return sample

    def log_prob(self, value: Tensor) -> Tensor:
        """The log-density at y, with respect to the first n - 1 coordinates."""
        if self._validate_args:
            self._validate_sample(value)
        if self._last is not None and self._last[0] is value:
            logarithm = self._last[1]
        else:
            wide = value.float() if value.dtype in (torch.float16, torch.bfloat16) else value
            positive = wide.clamp(min=torch.finfo(wide.dtype).tiny).log()
            logarithm = torch.where((wide > 0) | (self.logits > -torch.inf), positive, -torch.inf)
        density, total = self._log_prob_of_logarithm(logarithm)
        return (density - total).squeeze(-1).to(value.dtype)
