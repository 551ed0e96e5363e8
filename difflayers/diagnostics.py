"""Bias, variance and cost of gradient estimators on one's own loss, against exact enumeration."""

from __future__ import annotations

import importlib
import itertools
import math
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from . import _checks
from ._report import Report, Row
from .estimators import RLOO, Exact
from .estimators.expectation import checked_estimator, draw
from .estimators.loss_function import LossFunction
from .protocols import ExpectationEstimator

__all__ = ["Report", "Row", "compare"]

FUNCTION = "difflayers.diagnostics.compare"


class _OneHot:
    """One of n along dim."""

    family = "difflayers.estimators"
    default = (
        ("straight_through", "straight_through", {}),
        ("gumbel_softmax(1, hard)", "gumbel_softmax", {"temperature": 1.0, "hard": True}),
        ("gumbel_softmax(0.5, hard)", "gumbel_softmax", {"temperature": 0.5, "hard": True}),
        ("gumbel_rao(0.5)", "gumbel_rao", {"temperature": 0.5}),
        ("gapped_straight_through", "gapped_straight_through", {}),
        ("reinmax", "reinmax", {}),
    )

    def __init__(self, logits: Tensor, dim: int) -> None:
        self.dim = _checks.dimension(FUNCTION, "logits", logits, dim)

    def encode(self, logits: Tensor) -> Tensor:
        """The logits of independent choices of one of n, n last."""
        return logits.movedim(self.dim, -1)

    def decode(self, one_hot: Tensor) -> Tensor:
        """A sample of encode(logits) -> a sample as loss_fn takes it."""
        return one_hot.movedim(-1, self.dim)

    def draw(self, estimator: Any, logits: Tensor, generator: torch.Generator | None) -> Tensor:
        """A sample of a sampling estimator."""
        return draw(FUNCTION, estimator, logits, dim=self.dim, generator=generator)


class _Bernoulli(_OneHot):
    """Yes or no for every element: one of two."""

    default = (
        ("straight_through_bernoulli", "straight_through_bernoulli", {}),
        ("relaxed_bernoulli(1, hard)", "relaxed_bernoulli", {"temperature": 1.0, "hard": True}),
        ("relaxed_bernoulli(0.5, hard)", "relaxed_bernoulli", {"temperature": 0.5, "hard": True}),
        ("reinmax_bernoulli", "reinmax_bernoulli", {}),
    )

    def __init__(self, logits: Tensor, dim: int) -> None:
        """dim has no meaning here."""

    def encode(self, logits: Tensor) -> Tensor:
        return torch.stack([logsigmoid(-logits), logsigmoid(logits)], -1)

    def decode(self, one_hot: Tensor) -> Tensor:
        return one_hot[..., 1]

    def draw(self, estimator: Any, logits: Tensor, generator: torch.Generator | None) -> Tensor:
        sample = estimator(logits, generator=generator)
        if not isinstance(sample, Tensor) or sample.shape != logits.shape:
            got = f"shape {tuple(sample.shape)}" if isinstance(sample, Tensor) else type(sample).__name__
            raise ValueError(
                f"{FUNCTION}: argument 'estimators' must return samples in the shape of the logits, "
                f"{tuple(logits.shape)}, got {got}"
            )
        return sample


class _Subset(_OneHot):
    """k of n along dim, as one of the n choose k subsets, whose logits are the sums of their members'."""

    family = "difflayers.subsets"
    default = (("simple", "simple", {}), ("gumbel_topk(0.5, hard)", "gumbel_topk", {"temperature": 0.5, "hard": True}))

    def __init__(self, logits: Tensor, dim: int, k: int, limit: int) -> None:
        super().__init__(logits, dim)
        n = logits.shape[self.dim]
        self.k = _checks.integer(FUNCTION, "kind", k, minimum=0, maximum=n)
        count = math.comb(n, self.k)
        if count > limit:
            raise ValueError(
                f"{FUNCTION}: argument 'logits' must have at most max_states = {limit} subsets of k = {k} elements, "
                f"got {count} (n = {n}); compare on fewer elements"
            )
        subsets = list(itertools.combinations(range(n), self.k))
        self.subsets = torch.tensor(subsets, device=logits.device, dtype=torch.int64).reshape(count, self.k)
        self.members = torch.zeros(count, n, dtype=logits.dtype, device=logits.device).scatter(1, self.subsets, 1.0)

    def encode(self, logits: Tensor) -> Tensor:
        return logits.movedim(self.dim, -1)[..., self.subsets].sum(-1)

    def decode(self, one_hot: Tensor) -> Tensor:
        return (one_hot @ self.members).movedim(-1, self.dim)

    def draw(self, estimator: Any, logits: Tensor, generator: torch.Generator | None) -> Tensor:
        own = getattr(estimator, "k", self.k) if isinstance(estimator, nn.Module) else self.k
        if own != self.k:
            raise ValueError(
                f"{FUNCTION}: argument 'estimators' must choose k = {self.k} elements, as kind says, got a "
                f"{type(estimator).__name__} of k = {own}"
            )
        return draw(FUNCTION, estimator, logits, self.k, dim=self.dim, generator=generator)


def compare(
    loss_fn: Callable[[Tensor], Tensor],
    logits: Tensor,
    estimators: Mapping[str, Any] | None = None,
    *,
    samples: int = 10_000,
    kind: str | int = "one_hot",
    dim: int = -1,
    generator: torch.Generator | None = None,
    chunk: int | None = None,
    max_states: int = 65536,
    progress: Callable[[str, int, int], None] | None = None,
) -> Report:
    r"""Measures bias, variance and cost of gradient estimators on a loss, against exact enumeration.

    For every estimator `samples` independent gradients g of the summed loss by the logits are drawn, and compared
    with the exact gradient $g^* = \nabla_\theta \mathbb{E} f(D)$:

    $$\text{bias} = \frac{\|\bar g - g^*\|}{\|g^*\|}, \quad
    \text{std} = \frac{\sqrt{\operatorname{tr} \operatorname{Cov} g}}{\|g^*\|}, \quad
    \text{rmse} = \frac{\sqrt{\mathbb{E} \|g - g^*\|^2}}{\|g^*\|}.$$

    The mean of finitely many gradients has noise, so that an unbiased estimator shows a bias of about
    std / sqrt(samples), which stands beside it as the standard error.

    Args:
        loss_fn: a function of a sample, as for `difflayers.expectation`: in the shape of the logits, discrete (or
            relaxed, where the estimator's samples are), returning a scalar or losses whose shape is a leading part of
            the logits' shape (without `dim`, for one_hot and subsets).
        logits: `[..., n]` floating; small enough to enumerate. Detached. float64 is best.
        estimators: name -> estimator; None is everything that applies. RLOO(K) works for every kind. Otherwise, for
            "one_hot", functions called as `f(logits, dim=, generator=)` and modules as `module(logits, generator=)`;
            for "bernoulli", both as `f(logits, generator=)`, elementwise; for subsets, functions as
            `f(logits, k, dim=, generator=)` and modules of that k as `module(logits, generator=)`.
        samples: gradients per estimator; at least 2.
        kind: "one_hot": one of n along `dim`. "bernoulli": yes or no for each element with probability
            sigmoid(logits). An integer k: k of n along `dim`, a subset's probability being proportional to the
            exponential of the sum of its logits.
        dim: the dimension to choose along; has no meaning for "bernoulli".
        generator: draws the samples; default PyTorch's global one.
        chunk: how many gradients (and states) are computed at once, the logits being repeated along a new first
            dimension, and the loss taken by `torch.func.vmap`; 1 calls everything plainly, which any loss and any
            estimator allows. None chooses by the size of the logits.
        max_states: more joint states than this raise.
        progress: called as `progress(name, gradients done, samples)`.

    Returns:
        A `Report`: `.rows`, `str(report)`, `.to_markdown()`, `.plot(path)`.

    Raises:
        TypeError: loss_fn or an estimator cannot be called, or loss_fn does not return a floating-point tensor.
        ValueError: too many states; samples or chunk out of range; an unknown kind; an exact gradient of 0, to which
            nothing is relative; estimators is empty or holds `Exact`; what `difflayers.expectation` raises.
        UnsupportedOperationError: loss_fn does not allow vmap and chunk is not 1.

    Cost:
        One evaluation of the loss per joint state, and `samples` times the estimator's own cost.

    Transforms:
        None: it returns numbers.

    References:
        The figures are those of Liu, Dong, Liu, Yu, Gao, "Bridging Discrete and Backpropagation: Straight-Through and
        Beyond", NeurIPS 2023, arXiv 2304.08612, section 5.

    Example:
        >>> import torch, difflayers as dl
        >>> from difflayers import diagnostics
        >>> logits = torch.randn(3, 4, dtype=torch.float64)
        >>> loss = lambda sample: (sample[:, 0].sum() - 0.3).square()
        >>> report = diagnostics.compare(
        ...     loss, logits, {"reinmax": dl.reinmax, "straight-through": dl.straight_through}, samples=2000
        ... )
        >>> report["reinmax"].significant, report["straight-through"].significant
        (False, True)
    """
    logits = _checks.tensor(FUNCTION, "logits", logits).detach()
    samples = _checks.integer(FUNCTION, "samples", samples, minimum=2)
    max_states = _checks.integer(FUNCTION, "max_states", max_states, minimum=1)
    generator = _checks.generator(FUNCTION, generator, logits.device)
    choice = _kind(kind, logits, dim, max_states)
    if chunk is None:
        chunk = min(max(2**20 // max(1, choice.encode(logits).numel()), 1), 1000)
    chunk = _checks.integer(FUNCTION, "chunk", chunk, minimum=1)
    problem = _Problem(loss_fn, logits, choice, generator, chunk)
    estimators = _defaults(choice) if estimators is None else _checked(estimators)
    exact = problem.exact(max_states)
    norm = float(exact.norm())
    if not 0 < norm < math.inf:
        raise ValueError(
            f"{FUNCTION}: argument 'loss_fn' must have an exact gradient that is neither 0 nor infinite, got one of "
            f"norm {norm}; figures are relative to it"
        )
    rows = []
    for name, estimator in estimators.items():
        say = None if progress is None else partial(progress, name)
        rows.append(_row(name, *problem.deviations(estimator, exact, samples, say), exact, norm, samples))
    return Report(rows, exact.to(logits.dtype), samples)


def _kind(kind: str | int, logits: Tensor, dim: int, max_states: int) -> _OneHot:
    if isinstance(kind, int) and not isinstance(kind, bool):
        return _Subset(logits, dim, kind, max_states)
    if kind == "one_hot":
        return _OneHot(logits, dim)
    if kind == "bernoulli":
        return _Bernoulli(logits, dim)
    error = ValueError if isinstance(kind, str) else TypeError
    raise error(
        f"{FUNCTION}: argument 'kind' must be 'one_hot', 'bernoulli', or the integer k of k-subsets, got {kind!r}"
    )


def _defaults(kind: _OneHot) -> dict[str, Any]:
    """Everything that applies to this kind of choice."""
    family = importlib.import_module(kind.family)
    found = {
        name: partial(getattr(family, function), **settings)
        for name, function, settings in kind.default
        if hasattr(family, function)
    }
    return {**found, "RLOO(2)": RLOO(2), "RLOO(4)": RLOO(4)}


def _checked(estimators: Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(estimators, Mapping) or not estimators:
        got = type(estimators).__name__ if not isinstance(estimators, Mapping) else "an empty one"
        raise TypeError(f"{FUNCTION}: argument 'estimators' must be a dict from names to estimators, got {got}")
    for name, estimator in estimators.items():
        if isinstance(checked_estimator(FUNCTION, estimator), Exact):
            raise ValueError(
                f"{FUNCTION}: argument 'estimators' must not hold Exact, which the others are compared with, got it "
                f"as {name!r}"
            )
    return dict(estimators)


class _Problem:
    """A loss and logits, of which estimators give gradients."""

    def __init__(
        self,
        loss_fn: Callable[[Tensor], Tensor],
        logits: Tensor,
        kind: _OneHot,
        generator: torch.Generator | None,
        chunk: int,
    ) -> None:
        self.logits, self.kind, self.generator, self.chunk = logits, kind, generator, chunk
        self.loss = LossFunction(FUNCTION, loss_fn, kind.encode(logits), -1)
        self.evaluations = 0

    def exact(self, max_states: int) -> Tensor:
        """The gradient of the expected loss, float64."""
        leaf = self.logits.clone().requires_grad_()
        exact = Exact(max_states=max_states, chunk=self.chunk)
        with torch.enable_grad():
            value = exact.expectation(lambda state: self.loss(self.kind.decode(state)), self.kind.encode(leaf))
            return torch.autograd.grad(value.sum(), leaf)[0].double()

    def gradients(self, estimator: Any, count: int) -> Tensor:
        """Independent gradients [count, *shape of the logits]; count = 1 if chunk = 1."""
        plain = self.chunk == 1
        leaf = self.logits.clone() if plain else self.logits.expand(count, *self.logits.shape).clone()
        leaf.requires_grad_()

        def losses(sample: Tensor) -> Tensor:
            self.evaluations += count
            return self.loss(sample) if plain else self.loss.together(sample, self.chunk)

        with torch.enable_grad():
            if isinstance(estimator, ExpectationEstimator):
                encoded = self.kind.encode(leaf)
                value = estimator.expectation(
                    lambda state: losses(self.kind.decode(state)), encoded, generator=self.generator
                )
            else:
                value = losses(self.kind.draw(estimator, leaf, self.generator))
            if not value.requires_grad:
                return torch.zeros(count, *self.logits.shape, dtype=leaf.dtype, device=leaf.device)
            (gradient,) = torch.autograd.grad(value.sum(), leaf, allow_unused=True, materialize_grads=True)
        return gradient.reshape(count, *self.logits.shape)

    def deviations(
        self, estimator: Any, exact: Tensor, samples: int, say: Callable[[int, int], None] | None
    ) -> tuple[Tensor, float, float, float]:
        """Of `samples` gradients minus the exact one: mean, mean squared norm; evaluations and seconds for each."""
        total, squares, fastest, done = torch.zeros_like(exact), 0.0, math.inf, 0
        self.evaluations = 0
        while done < samples:
            count = min(self.chunk, samples - done)
            start = time.perf_counter()
            gradients = self.gradients(estimator, count)
            if gradients.is_cuda:
                torch.cuda.synchronize(gradients.device)
            fastest = min(fastest, (time.perf_counter() - start) / count)
            away = gradients.double() - exact
            total += away.sum(0)
            squares += float(away.square().sum())
            done += count
            if say is not None:
                say(done, samples)
        return total / samples, squares / samples, self.evaluations / samples, fastest


def _row(
    name: str, mean: Tensor, square: float, evaluations: float, seconds: float, exact: Tensor, norm: float, samples: int
) -> Row:
    """The figures from the mean and the mean squared norm of the deviations from the exact gradient."""
    variance = max(square - float(mean.square().sum()), 0.0) * samples / (samples - 1)
    gradient = mean + exact
    length = float(gradient.norm())
    return Row(
        name=name,
        bias=float(mean.norm()) / norm,
        standard_error=math.sqrt(variance / samples) / norm,
        std=math.sqrt(variance) / norm,
        rmse=math.sqrt(square) / norm,
        # a gradient of 0 comes out as the rounding error of (0 - exact) + exact
        cosine=float((gradient * exact).sum()) / (length * norm) if length > 1e-12 * norm else 0.0,
        evaluations=evaluations,
        seconds=seconds,
    )
