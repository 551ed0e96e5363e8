"""Soft sorting and ranking by projection onto permutahedra."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _checks
from .._choice import Choice, ChoiceModule, Temperature
from ..schedules import Schedule
from .isotonic import project

_REGULARIZATIONS = ("l2", "kl")


def soft_sort(
    x: Tensor,
    temperature: Temperature = 1.0,
    *,
    regularization: str = "l2",
    descending: bool = False,
    dim: int = -1,
) -> Tensor:
    r"""Sorted values by projection: exact where neighbours are far apart, means of groups where they are close.

    With the weights w = (n, ..., 1) and P(v) the permutahedron of v (the convex hull of all its permutations), the
    ascending result is

    $$ y = -\operatorname*{argmin}_{z \in P(-x)} \tfrac12 \lVert z - w / \text{temperature} \rVert^2 $$

    and for "kl" the argmin of $\mathrm{KL}(e^z, e^{w / \text{temperature}})$ over the z with $e^z \in P(e^{-x})$.
    "l2" keeps the sum of x; its result is piecewise linear in x and equals the exact sort once temperature times
    the largest gap between neighbours is at most 1. "kl" is smooth within its groups; its groups are soft minima
    (of -x), so ascending and descending projections differ, and `descending` flips the ascending one.

    Args:
        x: [..., n, ...] at `dim`, floating point, finite.
        temperature: in (0, inf), larger = softer; a number or a tensor broadcastable to x with size 1 at dim.
            It is compared with 1 / (gaps of x), as the weights w are 1 apart.
        regularization: "l2" (Euclidean) or "kl" (entropic).
        descending: flips the result along dim.
        dim: the dimension of the n elements.

    Returns:
        The shape and dtype of x, ascending along dim (descending: flipped).

    Raises:
        TypeError, ValueError: for arguments outside the above; infinities raise, as no group can hold them.

    Cost:
        Time O(n log n) for sorting, then O(n); memory O(n): two integers per element are kept for backward. Without
        compiled kernels the groups are found by repeated passes, O(n^2) at worst.

    Transforms:
        backward, double backward, torch.func (forward mode too), torch.compile, autocast. Under torch.func it runs
        on plain PyTorch in float64 but for the search for groups.

    References:
        Blondel, Teboul, Berthet, Djolonga, "Fast Differentiable Sorting and Ranking", ICML 2020, arXiv 2002.08871,
        section 4 (definitions), propositions 3 and 4 (isotonic regression, Jacobians).

    Example:
        >>> import torch
        >>> from difflayers import subsets
        >>> subsets.soft_sort(torch.tensor([3.0, 1.0, 2.0]), 0.1)
        tensor([1., 2., 3.])
        >>> subsets.soft_sort(torch.tensor([3.0, 1.0, 2.0]), 2.0)
        tensor([1.5000, 2.0000, 2.5000])
    """
    return _ordered("difflayers.subsets.soft_sort", "sort", x, temperature, regularization, descending, dim)


def soft_rank(
    x: Tensor,
    temperature: Temperature = 1.0,
    *,
    regularization: str = "l2",
    descending: bool = False,
    dim: int = -1,
) -> Tensor:
    r"""Ranks by projection, 1-based, 1 = smallest: whole numbers where neighbours are far apart.

    With the weights w = (n, ..., 1) and P(w) their permutahedron (the convex hull of all permutations of w),

    $$ r = \operatorname*{argmin}_{z \in P(w)} \tfrac12 \lVert z - x / \text{temperature} \rVert^2 $$

    and for "kl" the argmin of $\mathrm{KL}(z, e^{x / \text{temperature}})$ over the same set. Both keep the sum
    n (n + 1) / 2; ties share the mean of their ranks. With "l2" the ranks are exact once neighbours are temperature
    apart.

    Args:
        x: [..., n, ...] at `dim`, floating point, finite.
        temperature: in (0, inf), larger = softer; a number or a tensor broadcastable to x with size 1 at dim.
        regularization: "l2" (Euclidean) or "kl" (entropic).
        descending: n + 1 - rank, so that 1 = largest.
        dim: the dimension of the n elements.

    Returns:
        The shape and dtype of x, in [1, n].

    Raises:
        TypeError, ValueError: for arguments outside the above; infinities raise (`difflayers.rank` takes a mask).

    Cost:
        As `soft_sort`.

    Transforms:
        As `soft_sort`.

    References:
        Blondel, Teboul, Berthet, Djolonga, "Fast Differentiable Sorting and Ranking", ICML 2020, arXiv 2002.08871,
        section 4 (definitions), propositions 3 and 4 (isotonic regression, Jacobians).

    Example:
        >>> import torch
        >>> from difflayers import subsets
        >>> subsets.soft_rank(torch.tensor([3.0, 1.0, 1.5]), 1.0)
        tensor([3.0000, 1.2500, 1.7500])
    """
    return _ordered("difflayers.subsets.soft_rank", "rank", x, temperature, regularization, descending, dim)


def is_entropic(function: str, regularization: str) -> bool:
    """Whether "kl" instead of "l2", checked."""
    return _checks.choice(function, "regularization", regularization, _REGULARIZATIONS) == "kl"


def _ordered(
    function: str, task: str, x: Tensor, temperature: Temperature, regularization: str, descending: bool, dim: int
) -> Tensor:
    entropic = is_entropic(function, regularization)
    descending = _checks.boolean(function, "descending", descending)
    choice = Choice(function, x, temperature, dim=dim, name="x")
    if choice.checked and x.numel() > 0:
        least = choice.rows.detach().amin()
        if bool(least == -torch.inf):
            raise ValueError(
                f"{function}: argument 'x' must be finite, got {int((x == -torch.inf).sum())} elements that are "
                f"-inf; leave them out, or use difflayers.{task} with a mask"
            )
    result, _ = project(choice.rows, choice.temperature, task, entropic)
    if not choice.checked:
        result = torch.where(choice.rows.detach().isfinite().all(1, keepdim=True), result, torch.nan)
    if descending:
        result = result.flip(1) if task == "sort" else choice.n + 1 - result
    return choice.restore(result)


class Projection(ChoiceModule):
    """A projection as a module: remembers the regularisation too."""

    def __init__(self, temperature: Temperature | Schedule, *, regularization: str, learnable: bool, dim: int) -> None:
        super().__init__(temperature, learnable=learnable, dim=dim)
        is_entropic(self.function, regularization)
        self.regularization = regularization

    def extra_repr(self) -> str:
        """The settings, as repr shows them."""
        return f"{super().extra_repr()}, regularization={self.regularization!r}"


class _Ordered(Projection):
    def __init__(
        self,
        temperature: Temperature | Schedule = 1.0,
        *,
        regularization: str = "l2",
        descending: bool = False,
        learnable: bool = False,
        dim: int = -1,
    ) -> None:
        super().__init__(temperature, regularization=regularization, learnable=learnable, dim=dim)
        self.descending = _checks.boolean(self.function, "descending", descending)

    def extra_repr(self) -> str:
        """The settings, as repr shows them."""
        return f"{super().extra_repr()}, descending={self.descending}"


class PermutahedronSort(_Ordered):
    """`soft_sort` with its settings remembered.

    Args:
        temperature, regularization, descending, dim: see `soft_sort`; the temperature may be a schedule.
        learnable: makes the temperature a parameter.

    Returns:
        Of a call with x: the sorted values, in the shape and dtype of x.

    Raises:
        As `soft_sort`, at construction where the input is not needed.

    Cost, transforms, references: as `soft_sort`.

    Example:
        >>> import torch
        >>> from difflayers import subsets
        >>> subsets.PermutahedronSort(2.0)(torch.tensor([3.0, 1.0, 2.0]))
        tensor([1.5000, 2.0000, 2.5000])
    """

    function = "difflayers.subsets.PermutahedronSort"

    def forward(self, x: Tensor) -> Tensor:
        """The sorted values, in the shape of x."""
        return soft_sort(
            x, self.temperature, regularization=self.regularization, descending=self.descending, dim=self.dim
        )


class PermutahedronRank(_Ordered):
    """`soft_rank` with its settings remembered.

    Args:
        temperature, regularization, descending, dim: see `soft_rank`; the temperature may be a schedule.
        learnable: makes the temperature a parameter.

    Returns:
        Of a call with x: the ranks, in the shape and dtype of x.

    Raises:
        As `soft_rank`, at construction where the input is not needed.

    Cost, transforms, references: as `soft_rank`.

    Example:
        >>> import torch
        >>> from difflayers import subsets
        >>> subsets.PermutahedronRank()(torch.tensor([3.0, 1.0, 1.5]))
        tensor([3.0000, 1.2500, 1.7500])
    """

    function = "difflayers.subsets.PermutahedronRank"

    def forward(self, x: Tensor) -> Tensor:
        """The ranks, in the shape of x."""
        return soft_rank(
            x, self.temperature, regularization=self.regularization, descending=self.descending, dim=self.dim
        )
