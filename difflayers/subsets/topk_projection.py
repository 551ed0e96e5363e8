"""Top-k membership by projection onto the permutahedron of k ones."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _checks
from .._choice import Choice, Temperature, hardened
from ..schedules import Schedule
from .isotonic import project
from .projections import Projection, is_entropic


def projection_topk(
    x: Tensor,
    k: int,
    temperature: Temperature = 1.0,
    *,
    regularization: str = "l2",
    hard: bool = False,
    dim: int = -1,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""Membership in the k largest by projection: sparse with "l2", in [0, 1] and with the sum k.

    $$ m = \operatorname*{argmin}_{0 \le z \le 1,\ \sum z = k}
           \tfrac12 \lVert z - x / \text{temperature} \rVert^2 $$

    and for "kl" the argmin of $\mathrm{KL}(z, e^{x / \text{temperature}})$ over the same set,
    $m_i = \min(1, c\, e^{x_i / \text{temperature}})$: softmax when k = 1, as "l2" is sparsemax. With "l2" the
    membership is exact once the k-th and the next score are temperature apart.

    Args:
        x: scores [..., n, ...] at `dim`, floating point; -inf = masked, never a member.
        k: in [0, n], at most the number of elements that are not masked.
        temperature: in (0, inf), larger = softer; a number or a tensor broadcastable to x with size 1 at dim.
        regularization: "l2" (Euclidean) or "kl" (entropic).
        hard: the exact indicator of the k largest (of ties, the first) forward, with the relaxed gradient.
        dim: the dimension of the n elements.
        generator: accepted so that the subset layers can be exchanged; nothing is drawn.

    Returns:
        The shape and dtype of x. Where contents go unchecked and fewer than k elements are present, the
        present ones are all members.

    Raises:
        TypeError, ValueError: for arguments outside the above; NaN and +inf raise.

    Cost:
        As `soft_sort`.

    Transforms:
        As `soft_sort`.

    References:
        Blondel, Teboul, Berthet, Djolonga, "Fast Differentiable Sorting and Ranking", ICML 2020, arXiv 2002.08871,
        proposition 3; Sander, Puigcerver, Djolonga, Peyré, Blondel, "Fast, Differentiable and Sparse Top-k: a Convex
        Analysis Perspective", ICML 2023, arXiv 2302.01425, section 4.

    Example:
        >>> import torch
        >>> from difflayers import subsets
        >>> subsets.projection_topk(torch.tensor([0.3, 2.0, 0.5, 0.1]), 2, 0.25)
        tensor([0.1000, 1.0000, 0.9000, 0.0000])
        >>> subsets.projection_topk(torch.tensor([0.3, 2.0, 0.5, 0.1]), 2, hard=True)
        tensor([0., 1., 1., 0.])
    """
    function = "difflayers.subsets.projection_topk"
    entropic = is_entropic(function, regularization)
    hard = _checks.boolean(function, "hard", hard)
    x = _checks.tensor(function, "x", x)
    n = x.shape[_checks.dimension(function, "x", x, dim)]
    k = _checks.integer(function, "k", k, minimum=0, maximum=n)
    choice = Choice(function, x, temperature, dim=dim, generator=generator, name="x", present=k)
    membership, order = project(choice.rows, choice.temperature, "topk", entropic, k)
    if hard:
        exact = torch.zeros_like(membership).scatter(1, order[:, :k].long(), 1.0)
        if not choice.checked:
            exact = torch.where(choice.rows > -torch.inf, exact, 0.0)
        membership = hardened(exact, membership)
    return choice.restore(membership)


class ProjectionTopK(Projection):
    """`projection_topk` with its settings remembered.

    Args:
        k, temperature, regularization, hard, dim: see `projection_topk`; the temperature may be a schedule.
        learnable: makes the temperature a parameter.

    Example:
        >>> import torch
        >>> from difflayers import subsets
        >>> subsets.ProjectionTopK(2, 0.25)(torch.tensor([0.3, 2.0, 0.5, 0.1]))
        tensor([0.1000, 1.0000, 0.9000, 0.0000])
    """

    function = "difflayers.subsets.ProjectionTopK"

    def __init__(
        self,
        k: int,
        temperature: Temperature | Schedule = 1.0,
        *,
        regularization: str = "l2",
        hard: bool = False,
        learnable: bool = False,
        dim: int = -1,
    ) -> None:
        super().__init__(temperature, regularization=regularization, learnable=learnable, dim=dim)
        self.k = _checks.integer(self.function, "k", k, minimum=0)
        self.hard = _checks.boolean(self.function, "hard", hard)

    def forward(self, logits: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """The membership, in the shape of the scores."""
        return projection_topk(
            logits,
            self.k,
            self.temperature,
            regularization=self.regularization,
            hard=self.hard,
            dim=self.dim,
            generator=generator,
        )

    def extra_repr(self) -> str:
        """The settings, as repr shows them."""
        return f"k={self.k}, {super().extra_repr()}, hard={self.hard}"
