r"""The distribution of exactly k of n: $P(z) \propto \exp(\text{logits} \cdot z / \tau)$ on the z that sum to k.

It is the law of n independent yes/no variables given that k of them are yes. Everything here is exact.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .. import _checks, _random
from .._choice import Temperature
from . import kernels
from ._base import Subset, precise

__all__ = ["marginals", "sample_subset", "subset_entropy", "subset_log_prob"]


def marginals(logits: Tensor, k: int, temperature: Temperature = 1.0, *, dim: int = -1) -> Tensor:
    r"""The probability of each element to be among exactly k.

    $$\mu_i = P(z_i = 1) = \frac{\partial}{\partial \theta_i} \log e_k(\exp \theta), \qquad
    P(z) = \frac{\exp(\theta \cdot z)}{e_k(\exp \theta)} \text{ for } \textstyle\sum_i z_i = k, \qquad
    \theta = \text{logits} / \tau,$$

    where e_k is the elementary symmetric polynomial.

    Args:
        logits: `[..., n]`, any floating dtype: log-odds of independent yes/no variables; -inf = masked.
        k: in [0, n]; at most the number of elements that are not masked.
        temperature: larger is softer; a positive number or a tensor broadcastable to logits with size 1 at `dim` (it
            gets a gradient).
        dim: the dimension to choose along.

    Returns:
        The shape and dtype of logits, in [0, 1], summing to k.

    Raises:
        TypeError: logits or a tensor temperature is not a floating-point tensor; an argument has the wrong type.
        ValueError: k, temperature or dim out of range; NaN or +inf logits; fewer than k elements present.

    Cost:
        O(n min(k, n - k)) time per row, backward about 3 times forward; the logits are kept for backward.
        Scratch O(min(k, n - k) sqrt(n)) per thread. On devices without a kernel O(n k) memory per row.

    Transforms:
        backward to any order, torch.func.grad/vmap/jacrev, torch.compile(fullgraph=True). Forward mode (jvp) raises.

    References:
        Chen and Liu, "Statistical applications of the Poisson-binomial and conditional Bernoulli distributions",
        Statistica Sinica 1997; Ahmed, Zeng, Niepert, Van den Broeck, "SIMPLE: A Gradient Estimator for k-Subset
        Sampling", ICLR 2023, arXiv 2210.01941.

    Example:
        >>> import torch, difflayers as dl
        >>> from difflayers import subsets
        >>> subsets.marginals(torch.tensor([0.3, 0.6, 0.5, 0.2]).logit(), 2).round(decimals=4)
        tensor([0.3568, 0.7622, 0.6595, 0.2216])
    """
    choice = Subset("difflayers.subsets.marginals", logits, k, temperature, dim=dim)
    return choice.finish(lambda: kernels.marginals(choice.standardised(), choice.k))


def draw(choice: Subset, samples: int) -> Tensor:
    """Exact samples [B, samples, n] in the dtype of the rows; no gradient."""
    rows = choice.rows.detach()
    if choice.certain or choice.size == 0:
        return torch.full_like(rows[:, None], 1.0 if choice.k else 0.0).expand(-1, samples, -1)
    noise = _random.uniform((choice.size, samples, choice.n), device=rows.device, generator=choice.generator)
    members = kernels.sample(choice.standardised().detach(), noise, choice.k)
    if choice.present is not None:
        # where k elements are present, they are the members
        full = choice.present.sum(1, keepdim=True) == choice.k
        members = torch.where(full[:, None], choice.present[:, None].to(rows.dtype), members)
    return members


def sample_subset(
    logits: Tensor,
    k: int,
    temperature: Temperature = 1.0,
    *,
    sample_shape: tuple[int, ...] = (),
    dim: int = -1,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""Exact independent samples of k of n, $P(z) \propto \exp(\text{logits} \cdot z / \tau)$, without gradient.

    Walks the table of the count's distribution backwards. (Taking the k largest of logits with Gumbel noise samples
    without replacement, which is another distribution, with other marginals.)

    Args:
        logits, k, temperature, dim: see `marginals`.
        sample_shape: a tuple of sizes, as in torch.distributions: so many samples of every row.
        generator: of the noise, on the logits' device.

    Returns:
        `[*sample_shape, ..., n]` of exact zeros and ones, k ones along `dim`, in the dtype of logits.

    Raises:
        As `marginals`; TypeError or ValueError when sample_shape is not a tuple of sizes, or the generator is on
        another device.

    Cost:
        As `marginals` once per row, and O(n) per sample.

    Transforms:
        Gives no gradient: see `simple` for one. torch.func.vmap with randomness="different", torch.compile.

    References:
        Chen and Liu, "Statistical applications of the Poisson-binomial and conditional Bernoulli distributions",
        Statistica Sinica 1997; arXiv 2210.01941.

    Example:
        >>> import torch, difflayers as dl
        >>> from difflayers import subsets
        >>> generator = torch.Generator().manual_seed(0)
        >>> z = subsets.sample_subset(torch.zeros(5), 2, sample_shape=(1000,), generator=generator)
        >>> z.shape, z.sum(-1).unique()
        (torch.Size([1000, 5]), tensor([2.]))
    """
    function = "difflayers.subsets.sample_subset"
    if not isinstance(sample_shape, tuple):
        raise TypeError(
            f"{function}: argument 'sample_shape' must be a tuple of sizes, got {type(sample_shape).__name__}"
        )
    shape = tuple(_checks.integer(function, "sample_shape", size, minimum=0) for size in sample_shape)
    choice = Subset(function, logits, k, temperature, dim=dim, generator=generator)
    samples = draw(choice, math.prod(shape))
    if not shape:
        return choice.restore(samples[:, 0])
    if not choice.checked:
        samples = torch.where(choice.good()[:, None], samples, torch.nan)
    samples = samples.movedim(1, 0).reshape(*shape, *choice.lead, choice.n).to(choice.dtype)
    return samples.movedim(-1, choice.dim)


def subset_log_prob(
    logits: Tensor, members: Tensor, k: int, temperature: Temperature = 1.0, *, dim: int = -1
) -> Tensor:
    r"""The log-probability of given members.

    $$\log P(z) = \theta \cdot z - \log e_k(\exp \theta), \qquad \theta = \text{logits} / \tau.$$

    Args:
        logits, k, temperature, dim: see `marginals`.
        members: zeros and ones, k ones along `dim`; broadcastable with logits (samples in front, as
            `sample_subset` gives them); any dtype; it gets no gradient.

    Returns:
        The broadcast shape without `dim`, in the dtype of logits; -inf where a masked element is a member.
        The gradient by the logits is (members - marginals) / temperature.

    Raises:
        As `marginals`; ValueError when members do not broadcast, are not zeros and ones, or do not sum to k.

    Cost:
        O(n min(k, n - k)) time per row of logits, O(n) per row of members, in float64.

    Transforms:
        As `marginals`.

    References:
        arXiv 2210.01941.

    Example:
        >>> import torch, difflayers as dl
        >>> from difflayers import subsets
        >>> subsets.subset_log_prob(torch.zeros(4), torch.tensor([1.0, 0.0, 1.0, 0.0]), 2).exp()
        tensor(0.1667)
    """
    function = "difflayers.subsets.subset_log_prob"
    choice = Subset(function, logits, k, temperature, dim=dim)
    members = _members(choice, members, tuple(logits.shape))
    theta, constant = _theta_and_constant(choice)
    if choice.present is not None:
        theta = torch.where(choice.present, theta, 0.0)
    theta = theta.reshape(*choice.lead, choice.n)
    result = (theta * members).sum(-1) - constant.reshape(choice.lead)
    if choice.present is not None:
        absent = ~choice.present.reshape(*choice.lead, choice.n)
        result = torch.where((absent & (members != 0)).any(-1), -math.inf, result)
    if not choice.checked:
        result = torch.where(choice.good().reshape(choice.lead), result, torch.nan)
    return result.to(choice.dtype)


def _theta_and_constant(choice: Subset) -> tuple[Tensor, Tensor]:
    """theta [B, n] in float64, masked ones far below, and the logarithm of the normalising constant [B]."""
    dtype = precise(choice.rows.device)
    if choice.rows.numel() == 0:
        return choice.rows.to(dtype), choice.rows.to(dtype).sum(1)
    theta = choice.standardised(dtype=dtype)
    if choice.k == 0:
        return theta, theta.sum(1) * 0.0
    if choice.k == choice.n:
        return theta, theta.sum(1)
    return theta, kernels.log_normalizer(theta, choice.k)


def _members(choice: Subset, members: object, shape: tuple[int, ...]) -> Tensor:
    """The members, checked, with the elements last, in the dtype that is computed in."""
    where = f"{choice.function}: argument 'members' must"
    if not isinstance(members, Tensor):
        raise TypeError(f"{where} be a torch.Tensor, got {type(members).__name__}")
    if members.layout is not torch.strided:
        raise TypeError(f"{where} be a dense tensor, got one of layout {members.layout}; take its to_dense()")
    try:
        shape = tuple(torch.broadcast_shapes(tuple(members.shape), shape))
    except RuntimeError:
        shape = ()
    if len(shape) < -choice.dim or shape[choice.dim] != choice.n:
        raise ValueError(
            f"{where} be broadcastable with the logits, {choice.n} elements along dim {choice.dim}, "
            f"got shape {tuple(members.shape)}"
        )
    members = members.detach().expand(shape).movedim(choice.dim, -1)
    if _checks.contents_are_checked(members):
        if not bool(((members == 0) | (members == 1)).all()):
            raise ValueError(f"{where} consist of zeros and ones, got other numbers")
        counts = members.sum(-1)
        if not bool((counts == choice.k).all()):
            raise ValueError(f"{where} sum to k = {choice.k}, got {counts[counts != choice.k].flatten()[0].item():g}")
    return members.to(precise(members.device))


def subset_entropy(logits: Tensor, k: int, temperature: Temperature = 1.0, *, dim: int = -1) -> Tensor:
    r"""The entropy of the distribution over k of n, $\log e_k(\exp \theta) - \theta \cdot \mu(\theta)$, in nats.

    Args:
        logits, k, temperature, dim: see `marginals`.

    Returns:
        The shape of logits without `dim`, in its dtype.

    Raises:
        As `marginals`.

    Cost:
        Twice that of `marginals`, in float64.

    Transforms:
        As `marginals`.

    References:
        arXiv 2210.01941.

    Example:
        >>> import math, torch, difflayers as dl
        >>> from difflayers import subsets
        >>> subsets.subset_entropy(torch.zeros(4), 2).exp()  # 6 subsets
        tensor(6.)
    """
    choice = Subset("difflayers.subsets.subset_entropy", logits, k, temperature, dim=dim)
    theta, constant = _theta_and_constant(choice)
    if choice.certain or choice.size == 0:
        result = theta.sum(1) * 0.0
    else:
        mean = kernels.marginals(theta, choice.k)
        # differences to a score near the threshold: what is summed is then no larger than it must be
        middle = theta.detach().topk(choice.k, dim=1).values[:, -1:]
        result = (constant - choice.k * middle[:, 0]) - ((theta - middle) * mean).sum(1)
        result = result.clamp(min=0.0)  # rounding
    if not choice.checked:
        result = torch.where(choice.good()[:, 0], result, torch.nan)
    return result.reshape(choice.lead).to(choice.dtype)
