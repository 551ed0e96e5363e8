"""OneHotCategorical with rsample: a one-hot sample with the gradient of an estimator."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributions import OneHotCategorical, constraints, register_kl

from .. import _checks
from .._choice import Temperature
from ..estimators import gumbel_rao, gumbel_softmax, reinmax, straight_through
from .constraint import checked_temperature, exact_logits, simplex

__all__ = [
    "OneHotCategoricalGumbelRao",
    "OneHotCategoricalGumbelSoftmax",
    "OneHotCategoricalReinMax",
    "OneHotCategoricalStraightThrough",
]


class EstimatedOneHotCategorical(OneHotCategorical):
    """Base: torch's OneHotCategorical, whose rsample is drawn by an estimator.

    The probabilities, `entropy`, `enumerate_support`, `mode` and so on are torch's; `sample` is `rsample` without the
    gradient (safe in half precision, never a class of probability 0).
    """

    arg_constraints = {"probs": simplex, "logits": constraints.real_vector}  # noqa: RUF012 (as torch declares it)
    has_rsample = True
    settings = ("temperature", "by_probs")  # what expand copies

    def __init__(
        self,
        temperature: Temperature = 1.0,
        probs: Tensor | None = None,
        logits: Tensor | None = None,
        validate_args: bool | None = None,
    ) -> None:
        self.by_probs = probs is not None
        super().__init__(probs, logits, validate_args)
        self.temperature = checked_temperature(self._name(), temperature, self.logits)

    @classmethod
    def _name(cls) -> str:
        return f"difflayers.distributions.{cls.__name__}"

    @property
    def logits(self) -> Tensor:
        """Log-probabilities `[..., n]`; -inf for a class of probability 0."""
        return exact_logits(self._categorical, self.by_probs)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Any:
        """The same distribution with its batch dimensions broadcast to batch_shape."""
        new = self._get_checked_instance(type(self), _instance)
        for name in self.settings:
            setattr(new, name, getattr(self, name))
        return super().expand(batch_shape, _instance=new)

    def _draw(self, logits: Tensor, generator: torch.Generator | None) -> Tensor:
        raise NotImplementedError

    def rsample(self, sample_shape: Any = (), *, generator: torch.Generator | None = None) -> Tensor:
        """One-hot samples `[*sample_shape, *batch_shape, n]` through which gradients flow to the parameters."""
        return self._draw(self.logits.expand(self._extended_shape(torch.Size(sample_shape))), generator)

    def sample(self, sample_shape: Any = (), *, generator: torch.Generator | None = None) -> Tensor:
        """`rsample` without gradient."""
        with torch.no_grad():
            return self.rsample(sample_shape, generator=generator)

    def log_prob(self, value: Tensor) -> Tensor:
        r"""$\sum_i z_i \log \pi_i$ of one-hot z, differentiable by z as well.

        torch's own looks up the index and has no gradient by z, so that a sampled E log q(z) lacks the part that
        comes through the sample. This form is linear in z, for which the estimators are exact at temperature 1.
        """
        if self._validate_args:
            self._validate_sample(value)
        # a masked class that is not chosen: 0 * -inf
        absent = (self.logits == -torch.inf) & (value.detach() == 0)
        return (value * torch.where(absent, 0.0, self.logits)).sum(-1)


@register_kl(EstimatedOneHotCategorical, OneHotCategorical)
def _kl(p: EstimatedOneHotCategorical, q: OneHotCategorical) -> Tensor:
    """torch's own has a gradient of NaN where a class is masked in both."""
    present = p.logits > -torch.inf
    ratio = torch.where(present, p.logits, 0.0) - torch.where(present, q.logits, 0.0)
    return torch.where(present, p.probs * ratio, 0.0).sum(-1)


class OneHotCategoricalReinMax(EstimatedOneHotCategorical):
    """One-hot categorical distribution whose rsample has ReinMax's gradient: second order, `difflayers.reinmax`.

    Args:
        temperature: of the backward pass; a positive number or a tensor broadcastable to logits with size 1 in the
            last place, that does not require a gradient.
        probs: `[..., n]` probabilities; or
        logits: `[..., n]` unnormalised log-probabilities; -inf masks a class out.
        validate_args: as in torch.distributions.

    Returns:
        A `torch.distributions.OneHotCategorical` with `rsample(sample_shape, generator=None)`; `log_prob(z)` is
        differentiable by z; `kl_divergence` with any OneHotCategorical works, masks included.

    Raises:
        TypeError: a tensor is not floating-point.
        ValueError: the temperature is not positive or does not fit; what torch.distributions raises.

    Cost, transforms:
        rsample: as `difflayers.reinmax`. Under torch.func and torch.compile pass validate_args=False.

    References:
        See `difflayers.reinmax`.

    Example:
        >>> import torch
        >>> from difflayers.distributions import OneHotCategoricalReinMax
        >>> q = OneHotCategoricalReinMax(logits=torch.zeros(5, 3, requires_grad=True))
        >>> q.rsample((2,)).shape, q.log_prob(q.rsample()).shape
        (torch.Size([2, 5, 3]), torch.Size([5]))
    """

    def _draw(self, logits: Tensor, generator: torch.Generator | None) -> Tensor:
        return reinmax(logits, self.temperature, generator=generator)


class OneHotCategoricalStraightThrough(EstimatedOneHotCategorical):
    """One-hot categorical distribution whose rsample has the gradient of a softmax: `difflayers.straight_through`.

    At temperature 1 it does what torch's class of this name does, where gradients are concerned.

    Args:
        temperature: of the backward pass; a positive number or a tensor broadcastable to logits with size 1 in the
            last place (it gets a gradient).
        probs: `[..., n]` probabilities; or
        logits: `[..., n]` unnormalised log-probabilities; -inf masks a class out.
        validate_args: as in torch.distributions.

    Returns:
        As `OneHotCategoricalReinMax`.

    Raises:
        As `OneHotCategoricalReinMax`.

    Cost, transforms:
        rsample: as `difflayers.straight_through`. Under torch.func and torch.compile pass validate_args=False.

    References:
        See `difflayers.straight_through`.

    Example:
        >>> import torch
        >>> from difflayers.distributions import OneHotCategoricalStraightThrough
        >>> OneHotCategoricalStraightThrough(logits=torch.zeros(5, 3)).rsample().sum(-1)
        tensor([1., 1., 1., 1., 1.])
    """

    def _draw(self, logits: Tensor, generator: torch.Generator | None) -> Tensor:
        return straight_through(logits, self.temperature, generator=generator)


class OneHotCategoricalGumbelSoftmax(EstimatedOneHotCategorical):
    """One-hot categorical distribution whose rsample has the relaxed sample's gradient: `gumbel_softmax(hard=True)`.

    Args:
        temperature: larger is softer; a positive number or a tensor broadcastable to logits with size 1 in the last
            place (it gets a gradient).
        probs: `[..., n]` probabilities; or
        logits: `[..., n]` unnormalised log-probabilities; -inf masks a class out.
        validate_args: as in torch.distributions.

    Returns:
        As `OneHotCategoricalReinMax`.

    Raises:
        As `OneHotCategoricalReinMax`.

    Cost, transforms:
        rsample: as `difflayers.gumbel_softmax`. Under torch.func and torch.compile pass validate_args=False.

    References:
        See `difflayers.gumbel_softmax`.

    Example:
        >>> import torch
        >>> from difflayers.distributions import OneHotCategoricalGumbelSoftmax
        >>> OneHotCategoricalGumbelSoftmax(0.5, logits=torch.zeros(5, 3)).rsample().sum(-1)
        tensor([1., 1., 1., 1., 1.])
    """

    def _draw(self, logits: Tensor, generator: torch.Generator | None) -> Tensor:
        return gumbel_softmax(logits, self.temperature, hard=True, generator=generator)


class OneHotCategoricalGumbelRao(EstimatedOneHotCategorical):
    """One-hot categorical distribution whose rsample has the gradient averaged over noise: `difflayers.gumbel_rao`.

    Args:
        temperature: larger is softer; a positive number or a tensor broadcastable to logits with size 1 in the last
            place.
        probs: `[..., n]` probabilities; or
        logits: `[..., n]` unnormalised log-probabilities; -inf masks a class out.
        validate_args: as in torch.distributions.
        samples: of the noise, to average over.

    Returns:
        As `OneHotCategoricalReinMax`.

    Raises:
        As `OneHotCategoricalReinMax`.

    Cost, transforms:
        rsample: as `difflayers.gumbel_rao`. Under torch.func and torch.compile pass validate_args=False.

    References:
        See `difflayers.gumbel_rao`.

    Example:
        >>> import torch
        >>> from difflayers.distributions import OneHotCategoricalGumbelRao
        >>> OneHotCategoricalGumbelRao(0.5, logits=torch.zeros(5, 3), samples=4).mean.shape
        torch.Size([5, 3])
    """

    settings = ("temperature", "by_probs", "samples")

    def __init__(
        self,
        temperature: Temperature = 1.0,
        probs: Tensor | None = None,
        logits: Tensor | None = None,
        validate_args: bool | None = None,
        *,
        samples: int = 10,
    ) -> None:
        super().__init__(temperature, probs, logits, validate_args)
        self.samples = _checks.integer(self._name(), "samples", samples, minimum=1)

    def _draw(self, logits: Tensor, generator: torch.Generator | None) -> Tensor:
        return gumbel_rao(logits, self.temperature, samples=self.samples, generator=generator)
