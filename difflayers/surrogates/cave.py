"""Cone-aligned vector estimation: predicted costs must lie in the cone for which the true solution is optimal."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import _checks
from ._constraints import TIGHT, LinearConstraints
from ._loss import DecisionLoss, checked_costs, companion, eager_or_raise, on_host

__all__ = ["CaVE"]

PROJECTIONS = ("exact", "inner", "average")


class CaVE(DecisionLoss):
    r"""The angle between predicted costs and the cone of costs for which the observed solution is optimal.

    With K the cone of the normals of the constraints that bind at the observed solution w, w is optimal for $\hat c$
    over these constraints iff $-\hat c \in K$, and

    $$\ell(\hat c, w) = 1 - \cos\left(-\hat c, t\right), \qquad \text{exact: } t = \operatorname{proj}_K(-\hat c), \quad
    \text{inner: } t = (1 - \alpha) \frac{\operatorname{proj}_K(-\hat c)}{\|\operatorname{proj}_K(-\hat c)\|}
    + \alpha a, \quad \text{average: } t = -(1 - \alpha) \frac{\hat c}{\|\hat c\|} + \alpha a,$$

    where a is the mean of the binding inequalities' unit normals and no gradient flows through t (for "exact" none is
    lost: the gradient is that of the value). "exact" is zero once $\hat c$ is in the cone, at its boundary already, so
    that ties remain; "inner" pulls on into the inside, which serves regret better, and "average" does so without a
    projection. The scale of the costs does not matter and is not learned.

    Args:
        A_ub, b_ub, A_eq, b_eq, bounds: the constraints, as scipy.optimize.linprog takes them: default bounds (0, None);
            for 0-1 programs those of the relaxation, with bounds (0, 1). For integer programs whose relaxation has
            other vertices, the cone is smaller than that of all good costs.
        cost_shape: if solutions are not vectors; their flattened entries are the columns of A.
        projection: "exact", "inner" or "average".
        inner_ratio: $\alpha \in [0, 1]$.
        solve_ratio: the share of the batches that are projected, in [0, 1]; others use "average" (hybrid).
        reduction: "mean", "sum", or "none" (one loss a row).

    Returns:
        Of a call with `(predicted_costs, true_solutions)`, both `[..., *cost_shape]`: the loss in the dtype of the
        predictions, in [0, 1] for "exact" and in [0, 2] in general. Costs of zero have loss 1 and no gradient.

    Raises:
        TypeError: the costs are not floating-point tensors, the constraints not arrays.
        ValueError: NaN or infinite costs, solutions that are infeasible, shapes that do not fit, settings out of range.
        ImportError: SciPy is missing, for a projection.

    Cost:
        A non-negative least-squares problem a row (scipy, active set) with as many unknowns as inequalities bind.

    Transforms:
        backward, DDP, checkpointing. torch.compile breaks the graph, and refuses with fullgraph=True; torch.func and
        torch.export raise UnsupportedOperationError.

    References:
        Tang, Khalil, "CaVE: A Cone-Aligned Approach for Fast Predict-then-optimize with Binary Linear Programs",
        CPAIOR 2024, arXiv 2312.07718, Section 4. They reach the inside of the cone by stopping an interior-point
        method early, which "inner" replaces.

    Example:
        >>> import torch, difflayers as dl
        >>> simplex = {"A_eq": torch.ones(1, 2), "b_eq": torch.ones(1), "bounds": (0, 1)}
        >>> loss = dl.surrogates.CaVE(**simplex, projection="exact")
        >>> first = torch.tensor([1.0, 0.0])
        >>> loss(torch.tensor([1.0, 2.0]), first), loss(torch.tensor([1.0, -1.0]), first)
        (tensor(0.), tensor(1.))
    """

    def __init__(
        self,
        *,
        A_ub: Any = None,
        b_ub: Any = None,
        A_eq: Any = None,
        b_eq: Any = None,
        bounds: Any = None,
        cost_shape: tuple[int, ...] | None = None,
        projection: str = "inner",
        inner_ratio: float = 0.2,
        solve_ratio: float = 1.0,
        reduction: str = "mean",
    ) -> None:
        super().__init__(reduction=reduction)
        self.projection = _checks.choice(self.name, "projection", projection, PROJECTIONS)
        self.inner_ratio = _checks.number(self.name, "inner_ratio", inner_ratio, minimum=0.0, maximum=1.0)
        self.solve_ratio = _checks.number(self.name, "solve_ratio", solve_ratio, minimum=0.0, maximum=1.0)
        self._given = given = LinearConstraints(
            self.name, A_ub=A_ub, b_ub=b_ub, A_eq=A_eq, b_eq=b_eq, bounds=bounds, cost_shape=cost_shape
        )
        # an orthonormal basis of what equalities span: cost directions in which every solution costs the same
        _, sizes, directions = np.linalg.svd(given.A_eq, full_matrices=False)
        self._free = directions[sizes > 1e-9 * sizes.max(initial=1.0)]

    @on_host
    def forward(self, predicted_costs: Tensor, true_solutions: Tensor) -> Tensor:
        """The loss of predicted costs."""
        eager_or_raise(self.name)
        predicted = checked_costs(self.name, "predicted_costs", predicted_costs, self._given.cost_shape)
        best = companion(self.name, "true_solutions", true_solutions, predicted)
        lead = predicted.shape[: predicted.dim() - len(self._given.cost_shape)]
        wanted = -predicted.reshape(lead.numel(), self._given.n)
        projection = self.projection
        if self.solve_ratio < 1 and torch.rand(()).item() >= self.solve_ratio:
            projection = "average"
        on_host = self._given.on_host
        target = self._targets(on_host("predicted_costs", wanted), on_host("true_solutions", best), projection)
        target = torch.from_numpy(target).to(wanted)
        lengths = wanted.norm(dim=1), target.norm(dim=1)
        zero = (lengths[0] == 0) | (lengths[1] == 0)
        product = torch.where(zero, 1.0, lengths[0] * lengths[1])
        cosine = torch.where(zero, 0.0, (wanted * target).sum(1) / product)
        return self._reduce((1 - cosine).clamp(min=0.0).reshape(lead), predicted_costs.dtype)

    def extra_repr(self) -> str:
        """The settings, as repr shows them."""
        return f"n={self._given.n}, projection={self.projection!r}, reduction={self.reduction!r}"

    def _targets(self, wanted: np.ndarray, best: np.ndarray, projection: str) -> np.ndarray:
        given = self._given
        slack, above, below = given.slacks(best)
        scale = TIGHT * (1 + np.abs(best).max(1, initial=0.0))
        targets = np.empty_like(wanted)
        for i, direction in enumerate(wanted):
            low, high = np.flatnonzero(above[i] <= scale[i]), np.flatnonzero(below[i] <= scale[i])
            normals = np.zeros((len(low) + len(high), given.n))
            normals[np.arange(len(low)), low] = -1.0
            normals[len(low) + np.arange(len(high)), high] = 1.0
            binding = given.A_ub[slack[i] <= scale[i]]
            binding = binding / np.maximum(np.linalg.norm(binding, axis=1, keepdims=True), 1e-12)  # rows of zeros
            normals = np.vstack([normals, binding])
            near = direction if projection == "average" else self._project(direction, normals)
            if projection != "exact":
                size = np.linalg.norm(near)
                mean = normals.mean(0) if len(normals) else np.zeros(given.n)
                near = (1 - self.inner_ratio) * near / (size if size > 0 else 1.0) + self.inner_ratio * mean
            targets[i] = near
        return targets

    def _project(self, direction: np.ndarray, normals: np.ndarray) -> np.ndarray:
        """The nearest point of the cone of the normals, plus all that equalities span."""
        try:
            from scipy.optimize import nnls
        except ImportError as error:
            raise ImportError(f"{self.name} needs SciPy: pip install 'difflayers[solvers]'") from error
        inside = self._free.T @ (self._free @ direction)
        if not len(normals):
            return inside
        across = normals - (normals @ self._free.T) @ self._free
        # between 1 and 10 in size: nnls has absolute tolerances
        size = float(np.abs(direction - inside).max(initial=0.0))
        if size == 0:
            return inside
        weights, _ = nnls(across.T, (direction - inside) / size, maxiter=100 * across.shape[0] + 100)
        return inside + size * (weights @ across)
