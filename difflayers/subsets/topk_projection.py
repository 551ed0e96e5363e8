"""Top-k membership by projection onto the permutahedron of k ones."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _checks
from .._choice import Temperature
from ..schedules import Schedule
from ._base import Subset
from .isotonic import project
from .projections import Projection, is_entropic


def projection_topk(
    logits: Tensor,
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
        logits: scores x `[..., n]`, any floating dtype; -inf = masked, never a member.
        k: in [0, n], at most the number of elements that are not masked.
        temperature: in (0, inf), larger = softer; a number or a tensor broadcastable to logits with size 1 at dim.
        regularization: "l2" (Euclidean) or "kl" (entropic).
        hard: the exact indicator of the k largest (of ties, the first) forward, with the relaxed gradient.
        dim: the dimension of the n elements.
        generator: accepted so that the subset layers can be exchanged; nothing is drawn.

    Returns:
        The shape and dtype of logits, summing to k.

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
    choice = Subset(function, logits, k, temperature, hard=hard, dim=dim, generator=generator)

    def exact() -> Tensor:  # of ties the first, as the projection shares k among them in that order
        first = choice.rows.detach().argsort(dim=1, descending=True, stable=True)[:, : choice.k]
        return torch.zeros_like(choice.rows).scatter(1, first, 1.0)

    return choice.finish(lambda: project(choice.rows, choice.temperature, "topk", entropic, choice.k)[0], exact)


class ProjectionTopK(Projection):
    """`projection_topk` with its settings remembered.

    Args:
        k, temperature, regularization, hard, dim: see `projection_topk`; the temperature may be a schedule.
        learnable: makes the temperature a parameter.

    Returns:
        Of a call with logits (and optionally a generator, which is not used): the membership, in their shape and
        dtype.

    Raises:
        As `projection_topk`, at construction where the input is not needed.

    Cost, transforms, references: as `projection_topk`.

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
