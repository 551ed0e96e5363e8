"""Fenchel-Young losses of perturbed and of regularised minimisation."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .. import _checks
from ..oracles import Oracle
from ..rules import FrankWolfe
from ._loss import OracleLoss, companion, dot, mask_rows, on_host

__all__ = ["FenchelYoung"]

PERTURBATIONS = ("additive", "multiplicative")


class FenchelYoung(OracleLoss):
    r"""Pulls the smoothed solution of the predicted costs to the true one; needs true solutions, not costs.

    Perturbed, with $Z \sim N(0, I)$ and the smoothed optimum
    $F(\hat c) = \mathbb{E} \min_x \hat c_Z^\top x$,

    $$\ell(\hat c, w) = \hat c^\top w - F(\hat c), \qquad
    \text{additive: } \hat c_Z = \hat c + \sigma Z,\ \nabla = w - \mathbb{E}\,x_Z, \qquad
    \text{multiplicative: } \hat c_Z = \hat c \odot e^{\sigma Z - \sigma^2 / 2},\
    \nabla = w - \mathbb{E}\,e^{\sigma Z - \sigma^2 / 2} \odot x_Z,$$

    with `samples` draws in the place of $\mathbb{E}$ (the gradient is that of the value so estimated). Regularised,
    with $x_\Omega = \arg\min_{x \in \operatorname{conv}} \hat c^\top x + \Omega(x)$,

    $$\ell(\hat c, w) = \hat c^\top w + \Omega(w) - \hat c^\top x_\Omega - \Omega(x_\Omega) \ge 0, \qquad
    \nabla = w - x_\Omega,$$

    zero iff $x_\Omega = w$. All are convex in $\hat c$. The perturbed value leaves out a constant that depends on w
    alone; it is not negative in expectation, nor ever with antithetic additive noise.

    Args:
        oracle: what is minimised; see `difflayers.oracles`. If its cost domain is "nonnegative", additive noise is
            clamped there; multiplicative noise keeps signs.
        perturbation: "additive" (default) or "multiplicative".
        samples: solves a row.
        sigma: amplitude of the noise, > 0.
        antithetic: draws noise in pairs Z, -Z; samples must then be even.
        regularisation: in the place of a perturbation, a rule `rule(oracle, costs, generator=...)` whose forward is
            $x_\Omega$ (Frank-Wolfe, say).
        regulariser: $\Omega$, `[..., *cost_shape] -> [...]`; default the rule's method of this name.
        reduction: "mean", "sum", or "none" (one loss a row).

    Returns:
        Of a call with `(predicted_costs, true_solutions, generator=None)`, both `[..., *cost_shape]`: the loss in the
        dtype of the predictions. Gradients flow to the predicted costs only. Rows that an oracle with on_failure="nan"
        could not solve are NaN without a gradient.

    Raises:
        TypeError: oracle is not an oracle, the costs are not floating-point tensors, regularisation without Omega.
        ValueError: NaN or infinite costs, shapes that do not fit, settings out of range, both kinds of smoothing.
        What the oracle raises.

    Cost:
        `samples` solves a row forward, none backward; regularised, those of the rule.

    Transforms:
        backward, DDP, checkpointing. torch.compile breaks the graph, and refuses with fullgraph=True; torch.func and
        torch.export raise UnsupportedOperationError.

    References:
        Blondel, Martins, Niculae, "Learning with Fenchel-Young Losses", JMLR 2020, arXiv 1901.02324, Definition 2;
        Berthet et al., "Learning with Differentiable Perturbed Optimizers", NeurIPS 2020, arXiv 2002.08676, Section 4;
        Dalle, Baty, Bouvier, Parmentier, "Learning with Combinatorial Optimization Layers: a Probabilistic Approach",
        2022, arXiv 2207.13513, Sections 4 and 5 (multiplicative; regularised).

    Example:
        >>> import torch, difflayers as dl
        >>> loss = dl.surrogates.FenchelYoung(dl.oracles.TopK(3, 1), samples=4, sigma=0.01)
        >>> predicted = torch.tensor([[2.0, 1.0, 3.0]], requires_grad=True)
        >>> loss(predicted, torch.tensor([[1.0, 0.0, 0.0]])).backward()
        >>> predicted.grad
        tensor([[ 1., -1.,  0.]])
    """

    def __init__(
        self,
        oracle: Oracle,
        *,
        perturbation: str | None = None,
        samples: int = 10,
        sigma: float = 1.0,
        antithetic: bool = False,
        regularisation: Any = None,
        regulariser: Callable[[Tensor], Tensor] | None = None,
        reduction: str = "mean",
    ) -> None:
        super().__init__(oracle, reduction=reduction)
        name = self.name
        self.samples = _checks.integer(name, "samples", samples, minimum=1)
        self.sigma = _checks.number(name, "sigma", sigma, above=0.0)
        self.antithetic = _checks.boolean(name, "antithetic", antithetic)
        if antithetic and samples % 2:
            raise ValueError(f"{name}: argument 'samples' must be even with antithetic=True, got {samples}")
        self.regularisation = regularisation
        self.regulariser: Any = None
        if regularisation is None:
            kind = "additive" if perturbation is None else perturbation
            self.perturbation: str | None = _checks.choice(name, "perturbation", kind, PERTURBATIONS)
            return
        if perturbation is not None:
            raise ValueError(f"{name}: pass either 'perturbation' or 'regularisation', got both; leave one out")
        omega: Any = getattr(regularisation, "regulariser", None) if regulariser is None else regulariser
        if regulariser is None and isinstance(regularisation, FrankWolfe):
            omega = partial(regularisation.regulariser, dimensions=self._event)
        if not callable(regularisation) or not callable(omega):
            raise TypeError(
                f"{name}: argument 'regularisation' must be a rule that has a method 'regulariser', got "
                f"{type(regularisation).__name__}; pass its Omega as regulariser=lambda x: ..."
            )
        self.perturbation, self.regulariser = None, omega

    @on_host
    def forward(
        self, predicted_costs: Tensor, true_solutions: Tensor, *, generator: torch.Generator | None = None
    ) -> Tensor:
        """The loss of predicted costs."""
        predicted = self._costs("predicted_costs", predicted_costs)
        best = companion(self.name, "true_solutions", true_solutions, predicted)
        rows = (self._regularised if self.perturbation is None else self._perturbed)(predicted, best, generator)
        return self._reduce(rows, predicted_costs.dtype)

    def _perturbed(self, predicted: Tensor, best: Tensor, generator: torch.Generator | None) -> Tensor:
        generator = _checks.generator(self.name, generator, predicted.device)
        drawn = self.samples // 2 if self.antithetic else self.samples
        shape = (drawn, *predicted.shape)  # samples first: per-instance parameters of the oracle then broadcast
        noise = torch.randn(shape, generator=generator, device=predicted.device, dtype=predicted.dtype)
        noise = torch.cat([noise, -noise]) if self.antithetic else noise
        if self.perturbation == "additive":
            costs = predicted + self.sigma * noise
        else:
            costs = predicted * (self.sigma * noise - self.sigma**2 / 2).exp()
        found = self._solve(costs)
        smoothed = dot(costs, found.nan_to_num(), self._event).mean(0)
        return mask_rows(dot(predicted, best, self._event) - smoothed, found.sum(0), self._event)

    def _regularised(self, predicted: Tensor, best: Tensor, generator: torch.Generator | None) -> Tensor:
        with torch.no_grad():
            found = self.regularisation(self.oracle, predicted.detach(), generator=generator)
            filled = found.nan_to_num()
            constant = self.regulariser(best) - self.regulariser(filled)
        if constant.shape != predicted.shape[: predicted.dim() - self._event]:
            raise ValueError(
                f"{self.name}: argument 'regulariser' must return one number a row, shape "
                f"{tuple(predicted.shape[: predicted.dim() - self._event])}, got {tuple(constant.shape)}"
            )
        return mask_rows(dot(predicted, best - filled, self._event) + constant, found, self._event)
