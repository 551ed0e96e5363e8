"""Perturbed optimisers: the mean solution of randomly perturbed costs, which is differentiable."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import _checks
from ..oracles import Oracle
from . import noise as _noise
from .base import Incoming, Rule, computable, dims, over_row, solve_invented

__all__ = ["Perturbed", "PerturbedMultiplicative"]


class Perturbed(Rule):
    r"""The mean solution of costs with additive noise, with an unbiased estimate of its gradient.

    Forward, with y(c) the solution that minimises c and Z noise with density proportional to $e^{-\nu}$,

    $$ \frac1M \sum_{m=1}^M y(c + \sigma Z_m) \approx \mathbb{E}\, y(c + \sigma Z), $$

    a point of the convex hull of the solutions. Backward, with g the incoming gradient and $r_m = y_m \cdot g$,

    $$ \frac{1}{M \sigma} \sum_m (r_m - b_m)\, \nabla\nu(Z_m), $$

    the samples of the forward pass; the control variate $b_m$ is the mean of the other samples' r.
    On an oracle of nonnegative costs it is the expectation of $y(\max(c + \sigma Z, 0))$, and the estimate of its
    gradient is unbiased all the same; `PerturbedMultiplicative` keeps the signs instead.

    Args:
        sigma: the size of the noise, in the units of the costs; larger is smoother.
        samples: M, the number of solves a row, all in one batch.
        noise: "gaussian" ($\nabla\nu(z) = z$) or "gumbel" (c - sigma Gumbel; $\nabla\nu(z) = e^z - 1$). With "gumbel",
            choosing one of n is exactly softmax(-c / sigma) in expectation.
        control_variate: subtracts $b_m$ ("leave one out"); the estimate stays unbiased and varies far less.
        antithetic: draws the noise in pairs z, -z (Gaussian, an even number of samples). A control variate cancels
            within a pair, so it has no further effect.

    Returns:
        Of a call with an oracle and costs `[..., *cost_shape]`: the mean of the samples' solutions, in that
        shape and dtype.

    Raises:
        TypeError, ValueError: arguments out of range; control_variate=True with one sample.

    Cost:
        M solves a row forward, none backward; M times the memory of costs and solutions.

    Transforms:
        backward; see `SolverLayer`. The second derivative raises.

    References:
        Berthet, Blondel, Teboul, Cuturi, Vert, Bach, "Learning with Differentiable Perturbed Optimizers", NeurIPS 2020,
        arXiv 2002.08676, Proposition 3.1; control variate: Kool, van Hoof, Welling, "Buy 4 REINFORCE Samples, Get a
        Baseline for Free!", 2019.

    Example:
        >>> import torch, difflayers as dl
        >>> rule = dl.rules.Perturbed(1.0, samples=1000, noise="gumbel")
        >>> costs = torch.tensor([1.0, 2.0, 4.0], requires_grad=True)
        >>> mean = dl.SolverLayer(dl.oracles.TopK(3, 1), rule=rule)(costs)
        >>> bool((mean - torch.softmax(-costs, 0)).abs().max() < 0.1)
        True
    """

    name = "difflayers.rules.Perturbed"
    multiplicative = False

    def __init__(
        self,
        sigma: float = 1.0,
        *,
        samples: int = 10,
        noise: str = "gaussian",
        control_variate: bool = True,
        antithetic: bool = False,
    ) -> None:
        self.sigma = _checks.number(self.name, "sigma", sigma, above=0.0)
        self.samples = _checks.integer(self.name, "samples", samples, minimum=1)
        self.noise = _checks.choice(self.name, "noise", noise, _noise.DENSITIES)
        self.control_variate = _checks.boolean(self.name, "control_variate", control_variate)
        self.antithetic = _checks.boolean(self.name, "antithetic", antithetic)
        if self.antithetic and self.noise != "gaussian":
            raise ValueError(
                f"{self.name}: argument 'antithetic' must be False with noise={noise!r}, as it is not symmetric"
            )
        if self.antithetic and self.samples % 2:
            raise ValueError(f"{self.name}: argument 'samples' must be even with antithetic=True, got {samples}")
        if self.control_variate and self.samples == 1:
            raise ValueError(
                f"{self.name}: argument 'samples' must be at least 2 with control_variate=True, got 1; "
                f"pass control_variate=False"
            )

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({self.sigma:g}, samples={self.samples}, noise={self.noise!r}, "
            f"control_variate={self.control_variate}, antithetic={self.antithetic})"
        )

    def _differentiable(self, oracle: Oracle, costs: Tensor, generator: torch.Generator | None) -> Tensor:
        exact = computable(costs.detach())
        noise = _noise.draw(self.noise, self.samples, exact, generator, antithetic=self.antithetic)
        return _Perturbed.apply(costs, noise, oracle, self)  # pyright: ignore[reportReturnType]

    def _moved(self, costs: Tensor, noise: Tensor) -> Tensor:
        """The perturbed costs."""
        return costs + self.sigma * noise

    def _by_noise(self, costs: Tensor, noise: Tensor) -> Tensor:
        """What the rewards weigh: the derivative of minus the log-density of the perturbed costs, by the costs."""
        return _noise.score(self.noise, noise) / self.sigma


class PerturbedMultiplicative(Perturbed):
    r"""The mean solution of costs with multiplicative noise, which keeps every cost's sign.

    As `Perturbed`, with the perturbed costs $c \odot \exp(\sigma Z - \sigma^2 / 2)$, Z Gaussian, whose mean is c, and
    the gradient

    $$ \frac{1}{M \sigma c} \odot \sum_m (r_m - b_m)\, Z_m. $$

    A cost of exactly 0 is not perturbed and gets no gradient; close to 0 the estimate varies with 1 / c, so costs
    should be kept away from 0 (softplus plus a constant).

    Args:
        sigma: the size of the noise relative to the costs.
        samples, control_variate, antithetic: see `Perturbed`.

    Returns:
        Of a call with an oracle and costs `[..., *cost_shape]`: the mean of the samples' solutions, in that
        shape and dtype.

    Raises:
        As `Perturbed`.

    Cost, transforms:
        As `Perturbed`.

    References:
        Dalle, Baty, Bouvier, Parmentier, "Learning with Combinatorial Optimization Layers: a Probabilistic Approach",
        2022, arXiv 2207.13513 (multiplicative perturbation).

    Example:
        >>> import torch, difflayers as dl
        >>> layer = dl.SolverLayer(dl.oracles.TopK(3, 1), rule=dl.rules.PerturbedMultiplicative(0.1))
        >>> layer(torch.tensor([1.0, 2.0, 4.0]))  # so little noise never makes 1 larger than 2
        tensor([1., 0., 0.])
    """

    name = "difflayers.rules.PerturbedMultiplicative"
    multiplicative = True

    def __init__(
        self, sigma: float = 1.0, *, samples: int = 10, control_variate: bool = True, antithetic: bool = False
    ) -> None:
        super().__init__(sigma, samples=samples, control_variate=control_variate, antithetic=antithetic)

    def _moved(self, costs: Tensor, noise: Tensor) -> Tensor:
        return costs * torch.exp(self.sigma * noise - self.sigma**2 / 2)

    def _by_noise(self, costs: Tensor, noise: Tensor) -> Tensor:
        zero = costs == 0
        return torch.where(zero, 0.0, noise / (self.sigma * torch.where(zero, 1.0, costs)))


class _Perturbed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, costs: Tensor, noise: Tensor, oracle: Oracle, rule: Perturbed) -> Tensor:
        solutions = solve_invented(oracle, rule._moved(computable(costs), noise), remember=True)
        ctx.save_for_backward(costs, noise, solutions)
        ctx.rule, ctx.event = rule, dims(oracle)
        return solutions.mean(0).to(costs.dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        costs, noise, solutions = ctx.saved_tensors
        rule, event = ctx.rule, ctx.event
        solved = over_row(solutions.isfinite(), event, "all").all(0)
        incoming = Incoming(gradient, solved, event)
        rewards = over_row(torch.where(solved, solutions, 0.0) * incoming.gradient, event, "sum")
        if rule.control_variate and not rule.antithetic:
            rewards = (rewards - rewards.mean(0)) * (rule.samples / (rule.samples - 1))  # = minus the others' mean
        result = (rewards * rule._by_noise(computable(costs), noise)).mean(0)
        return incoming.passed(result, costs.dtype), None, None, None
