"""Implicit maximum likelihood: solutions of perturbed costs, compared with those of moved perturbed costs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import _checks
from ..oracles import Oracle
from . import noise as _noise
from .base import Incoming, Rule, computable, dims, over_row, solve_invented

__all__ = ["IMLE"]


class IMLE(Rule):
    r"""Implicit maximum-likelihood estimation: Blackbox differentiation under shared noise.

    Forward $\frac1M \sum_m y(c - \sigma \epsilon_m)$, with y(c) the solution that minimises c and $\epsilon$
    sum-of-gamma noise; backward, with g the incoming gradient and the same noise,

    $$ -\frac{1}{M \lambda} \sum_m \left( y(c - \sigma \epsilon_m) - y(c + \lambda g - \sigma \epsilon_m) \right). $$

    Two choices differ from the paper's: its samples are averaged (the paper passes each on; a loss that is to see
    single samples takes `samples=1` and repeats its batch), and the difference is divided by lambda, as a finite
    difference is, so that lambda does not scale the gradient and `sigma=0` is `Blackbox(lam)`; the paper does not.

    Args:
        lam: the length $\lambda > 0$ of the step to the target's costs.
        k: the number of ones in a solution (k of n: k; a permutation of n: n; a path: its usual length): the noise of
            k elements then sums to Gumbel noise. 1 is Gumbel noise for every element.
        sigma: the size of the noise, in the units of the costs; 0 = none.
        samples: M.
        terms: of the sum of gammas.
        symmetric: takes the difference of the solutions at $\pm \lambda g$, divided by $2\lambda$; less biased, and M
            more solves a row.

    Returns:
        Of a call with an oracle and costs `[..., *cost_shape]`: the mean of the samples' solutions, in that
        shape and dtype.

    Raises:
        TypeError, ValueError: arguments out of range.

    Cost:
        M solves a row forward in one batch, and M (2 M if symmetric) backward in one batch.

    Transforms:
        backward; see `SolverLayer`. The second derivative raises.

    References:
        Niepert, Minervini, Franceschi, "Implicit MLE: Backpropagating Through Discrete Exponential Family
        Distributions", NeurIPS 2021, arXiv 2106.01798, Algorithm 1; symmetric: arXiv 2209.04862.

    Example:
        >>> import torch, difflayers as dl
        >>> layer = dl.SolverLayer(dl.oracles.TopK(3, 1), rule=dl.rules.IMLE(4.0, sigma=0.0, samples=1))
        >>> costs = torch.tensor([1.0, 2.0, 4.0], requires_grad=True)
        >>> (layer(costs) * torch.tensor([1.0, 0.0, 0.0])).sum().backward()  # item 0 was taken, and ought not
        >>> costs.grad
        tensor([-0.2500,  0.2500,  0.0000])
    """

    name = "difflayers.rules.IMLE"

    def __init__(
        self,
        lam: float,
        *,
        k: float = 1.0,
        sigma: float = 1.0,
        samples: int = 10,
        terms: int = 10,
        symmetric: bool = False,
    ) -> None:
        self.lam = _checks.number(self.name, "lam", lam, above=0.0)
        self.k = _checks.number(self.name, "k", k, above=0.0)
        self.sigma = _checks.number(self.name, "sigma", sigma, minimum=0.0)
        self.samples = _checks.integer(self.name, "samples", samples, minimum=1)
        self.terms = _checks.integer(self.name, "terms", terms, minimum=1)
        self.symmetric = _checks.boolean(self.name, "symmetric", symmetric)

    def __repr__(self) -> str:
        return (
            f"IMLE({self.lam:g}, k={self.k:g}, sigma={self.sigma:g}, samples={self.samples}, terms={self.terms}, "
            f"symmetric={self.symmetric})"
        )

    def _differentiable(self, oracle: Oracle, costs: Tensor, generator: torch.Generator | None) -> Tensor:
        exact = computable(costs.detach())
        noise = exact.new_zeros((self.samples, *exact.shape))
        if self.sigma > 0:
            noise = -self.sigma * _noise.sum_of_gamma(self.samples, exact, self.k, self.terms, generator)
        return _IMLE.apply(costs, noise, oracle, self)  # pyright: ignore[reportReturnType]

    def _length(self, costs: Tensor, gradient: Tensor) -> float:
        """Lambda for this batch."""
        return self.lam

    def _observe(self, difference: Tensor, solved: Tensor, event: tuple[int, ...]) -> None:
        """Looks at a batch's differences of solutions, of the rows that have one."""


class _IMLE(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, costs: Tensor, noise: Tensor, oracle: Oracle, rule: IMLE) -> Tensor:
        solutions = solve_invented(oracle, computable(costs) + noise, remember=True)
        ctx.save_for_backward(costs, noise, solutions)
        ctx.oracle, ctx.rule = oracle, rule
        return solutions.mean(0).to(costs.dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        costs, noise, solutions = ctx.saved_tensors
        oracle, rule, event = ctx.oracle, ctx.rule, dims(ctx.oracle)
        solved = over_row(solutions.isfinite(), event, "all").all(0)
        incoming = Incoming(gradient, solved, event)
        result = torch.zeros_like(incoming.gradient)
        if bool(incoming.active.any()):
            exact = computable(costs)
            length = rule._length(torch.where(solved, exact, 0.0), incoming.gradient)
            move, perturbed = length * incoming.gradient, exact + noise
            if rule.symmetric:
                better, worse = solve_invented(oracle, torch.stack([perturbed + move, perturbed - move]))
                difference = (better - worse) / 2
            else:
                difference = solve_invented(oracle, perturbed + move) - solutions
            difference = torch.where(incoming.active, difference, 0.0)
            rule._observe(difference, solved, event)
            if length > 0:
                result = difference.mean(0) / length
        return incoming.passed(result, costs.dtype), None, None, None
