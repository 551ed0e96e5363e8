"""Adaptive IMLE: the length of the step follows from how many entries of the gradient are not zero."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .. import _checks
from .imle import IMLE

__all__ = ["AdaptiveIMLE"]


class AdaptiveIMLE(IMLE, nn.Module):
    r"""`IMLE` whose step adapts so that each sample changes about one entry of its solution.

    The length of the step is $\lambda = \beta \lVert c \rVert / \lVert g \rVert$, norms over the whole batch. After
    every backward pass, with N the number of non-zero entries in the difference of the solutions, *per sample and row*,

    $$ \bar N \leftarrow \gamma \bar N + (1 - \gamma) N, \qquad
       \beta \leftarrow \max(0, \beta + s) \text{ if } \bar N < t \text{ else } \max(0, \beta - s). $$

    N is a number of entries, not a fraction of them (with a fraction, which never exceeds 1, $\beta$ only grows).
    As in `IMLE`, samples are averaged and the difference is divided by $\lambda$. Rows without a solution count
    for nothing; rows without an incoming gradient count as N = 0; a batch without any gradient changes nothing.

    The rule is a module without parameters: $\beta$ and $\bar N$ are in its `state_dict`, and so in that of the
    `SolverLayer` and the model that it is part of; training goes on from a checkpoint as if it had not stopped.

    Args:
        beta: the initial $\beta \ge 0$; the attribute `beta` is the current one.
        step: s.
        decay: $\gamma$, of the running mean $\bar N$ (attribute `nonzeros`, initially 1).
        target: t.
        k, sigma, samples, terms, symmetric: see `IMLE`.

    Returns:
        Of a call with an oracle and costs `[..., *cost_shape]`: the mean of the samples' solutions, in that
        shape and dtype.

    Raises:
        TypeError, ValueError: arguments out of range.

    Cost, transforms:
        As `IMLE`. A backward pass changes the rule, so it should not be shared between layers.

    References:
        Minervini, Franceschi, Niepert, "Adaptive Perturbation-Based Gradient Estimation for Discrete Latent Variable
        Models", AAAI 2023, arXiv 2209.04862.

    Example:
        >>> import torch, difflayers as dl
        >>> rule = dl.rules.AdaptiveIMLE(beta=2.0, step=0.5, sigma=0.0, samples=1)
        >>> costs = torch.tensor([1.0, 2.0, 4.0], requires_grad=True)
        >>> dl.SolverLayer(dl.oracles.TopK(3, 1), rule=rule)(costs)[0].backward()  # 2 entries change: too many
        >>> rule.beta
        1.5
    """

    name = "difflayers.rules.AdaptiveIMLE"

    def __init__(
        self,
        *,
        beta: float = 1.0,
        step: float = 1e-4,
        decay: float = 0.9,
        target: float = 1.0,
        k: float = 1.0,
        sigma: float = 1.0,
        samples: int = 10,
        terms: int = 10,
        symmetric: bool = False,
    ) -> None:
        nn.Module.__init__(self)  # before anything is set
        IMLE.__init__(self, 1.0, k=k, sigma=sigma, samples=samples, terms=terms, symmetric=symmetric)
        self.beta = _checks.number(self.name, "beta", beta, minimum=0.0)
        self.step = _checks.number(self.name, "step", step, above=0.0)
        self.decay = _checks.number(self.name, "decay", decay, minimum=0.0, below=1.0)
        self.target = _checks.number(self.name, "target", target, above=0.0)
        self.nonzeros = 1.0

    def __repr__(self) -> str:
        return (
            f"AdaptiveIMLE(beta={self.beta:g}, step={self.step:g}, decay={self.decay:g}, target={self.target:g}, "
            f"k={self.k:g}, sigma={self.sigma:g}, samples={self.samples}, terms={self.terms}, "
            f"symmetric={self.symmetric})"
        )

    def get_extra_state(self) -> Tensor:
        """Beta and the running mean of changed entries, in float64 whatever the model is cast to."""
        return torch.tensor([self.beta, self.nonzeros], dtype=torch.float64)

    def set_extra_state(self, state: Tensor) -> None:
        """Goes on from what `get_extra_state` returned."""
        self.beta, self.nonzeros = state.tolist()

    def _length(self, costs: Tensor, gradient: Tensor) -> float:
        costs, gradient = costs.cpu().double(), gradient.cpu().double()  # squares of small float32 numbers are 0
        return self.beta * (torch.linalg.vector_norm(costs) / torch.linalg.vector_norm(gradient)).item()

    def _observe(self, difference: Tensor, solved: Tensor, event: tuple[int, ...]) -> None:
        known = solved & ~difference.isnan()
        changed = torch.where(known, difference, 0.0).count_nonzero().item()
        count = changed / (self.samples * max(1, int(solved.sum())))
        self.nonzeros = self.decay * self.nonzeros + (1.0 - self.decay) * count
        self.beta = max(0.0, self.beta + (self.step if self.nonzeros < self.target else -self.step))
