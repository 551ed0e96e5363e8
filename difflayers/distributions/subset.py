"""The distribution of exactly k of n, with rsample by SIMPLE."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution, constraints, register_kl

from .. import _checks
from .._choice import Temperature
from ..subsets import marginals, sample_subset, simple, subset_entropy, subset_log_prob
from .constraint import checked_temperature

__all__ = ["KSubset"]


class _KHot(constraints.Constraint):
    """Zeros and ones, k ones."""

    is_discrete = True
    event_dim = 1

    def __init__(self, k: int) -> None:
        self.k = k

    def check(self, value: Tensor) -> Tensor:
        """Whether each row belongs."""
        return ((value == 0) | (value == 1)).all(-1) & (value.sum(-1) == self.k)


class KSubset(Distribution):
    r"""Exactly k of n: $P(z) \propto \exp(\theta \cdot z / \tau)$ on the z in {0, 1}^n that sum to k.

    The law of n independent yes/no variables with log-odds $\theta / \tau$, given that k of them are yes.

    Args:
        k: in [0, n]; at most the number of elements that are not masked.
        logits: `[..., n]`; -inf = masked, never a member.
        temperature: larger is closer to uniform; a positive number or a tensor broadcastable to logits with size 1 in
            the last place.
        validate_args: as in torch.distributions.

    Returns:
        A torch.distributions.Distribution over `[..., n]` with `sample`, `rsample` (an exact sample with SIMPLE's
        gradient), `log_prob`, `entropy`, `mean` (the marginals), `variance`, `mode`, `enumerate_support`, and
        `kl_divergence` with another KSubset of the same k.

    Raises:
        TypeError, ValueError: as `difflayers.subsets.marginals`.

    Cost, transforms:
        As the functions of `difflayers.subsets`. Pass validate_args=False under torch.func and torch.compile.

    References:
        See `difflayers.subsets.simple`.

    Example:
        >>> import torch
        >>> from difflayers.distributions import KSubset
        >>> committee = KSubset(2, torch.zeros(4))
        >>> committee.mean, committee.log_prob(committee.sample()).exp()
        (tensor([0.5000, 0.5000, 0.5000, 0.5000]), tensor(0.1667))
    """

    arg_constraints = {}  # noqa: RUF012 (as torch declares it; the functions check) # pyright: ignore
    has_rsample = True
    has_enumerate_support = True

    def __init__(
        self, k: int, logits: Tensor, temperature: Temperature = 1.0, *, validate_args: bool | None = None
    ) -> None:
        name = "difflayers.distributions.KSubset"
        self.logits = _checks.tensor(name, "logits", logits)
        _checks.dimension(name, "logits", logits, -1)
        self.k = _checks.integer(name, "k", k, minimum=0, maximum=logits.shape[-1])
        self.temperature = checked_temperature(name, temperature, logits)
        super().__init__(logits.shape[:-1], logits.shape[-1:], validate_args=validate_args)

    @property
    def support(self) -> constraints.Constraint:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Zeros and ones, k ones."""
        return _KHot(self.k)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Any:
        """The same distribution with its batch dimensions broadcast to batch_shape."""
        new: Any = self._get_checked_instance(KSubset, _instance)
        new.k, new.temperature = self.k, self.temperature
        new.logits = self.logits.expand(*batch_shape, *self.event_shape)
        Distribution.__init__(new, torch.Size(batch_shape), self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def sample(self, sample_shape: Any = (), *, generator: torch.Generator | None = None) -> Tensor:
        """Exact samples `[*sample_shape, *batch_shape, n]`."""
        with torch.no_grad():
            return sample_subset(
                self.logits, self.k, self.temperature, sample_shape=tuple(sample_shape), generator=generator
            )

    def rsample(self, sample_shape: Any = (), *, generator: torch.Generator | None = None) -> Tensor:
        """Exact samples through which the marginals' gradient flows to the logits."""
        logits = self.logits.expand(self._extended_shape(torch.Size(sample_shape)))
        return simple(logits, self.k, self.temperature, generator=generator)

    def log_prob(self, value: Tensor) -> Tensor:
        """The log-probability of zeros and ones `[..., n]`; -inf where a masked element is a member."""
        if self._validate_args:
            self._validate_sample(value)
        return subset_log_prob(self.logits, value, self.k, self.temperature)

    def entropy(self) -> Tensor:
        """In nats, `[*batch_shape]`."""
        return subset_entropy(self.logits, self.k, self.temperature)

    @property
    def mean(self) -> Tensor:
        """The marginals: each element's probability to be a member."""
        return marginals(self.logits, self.k, self.temperature)

    @property
    def variance(self) -> Tensor:
        """Of each element's membership."""
        mean = self.mean
        return mean * (1 - mean)

    @property
    def mode(self) -> Tensor:
        """The k largest logits."""
        best = self.logits.detach().topk(self.k, dim=-1).indices
        return torch.zeros_like(self.logits).scatter(-1, best, 1.0)

    def enumerate_support(self, expand: bool = True) -> Tensor:
        """All C(n, k) subsets, `[C(n, k), *batch_shape, n]` (masked elements included, at log-probability -inf)."""
        (n,) = self.event_shape
        chosen = torch.tensor(list(combinations(range(n), self.k)), device=self.logits.device, dtype=torch.int64)
        values = self.logits.new_zeros(len(chosen), n).scatter(1, chosen.reshape(len(chosen), self.k), 1.0)
        values = values.reshape(len(chosen), *[1] * len(self.batch_shape), n)
        return values.expand(-1, *self.batch_shape, n) if expand else values


@register_kl(KSubset, KSubset)
def _kl(p: KSubset, q: KSubset) -> Tensor:
    if p.k != q.k or p.event_shape != q.event_shape:
        raise ValueError(
            f"difflayers.distributions.KSubset: kl_divergence must be between subsets of the same size, "
            f"got {p.k} of {p.event_shape[0]} and {q.k} of {q.event_shape[0]}"
        )
    # E log q is linear in the sample but for q's constant, which the log-probability of any subset holds
    mean, any_subset, theta = p.mean, q.mode, q.logits / q.temperature
    constant = torch.where(any_subset > 0, theta, 0.0).sum(-1) - subset_log_prob(
        q.logits, any_subset, q.k, q.temperature
    )
    return constant - torch.where(mean > 0, mean * torch.where(mean > 0, theta, 0.0), 0.0).sum(-1) - p.entropy()
