"""The expected loss by enumeration of all states: what every estimator estimates."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from .. import _checks
from .._choice import Choice
from .loss_function import LossFunction

__all__ = ["Exact"]


class Exact:
    r"""Enumeration, for `expectation`: the exact value and gradient, where there are few enough states.

    $$\mathbb{E} f(D) = \sum_{s} p_\theta(s) f(s)$$

    over all joint states of the choices that one loss depends on: n for a loss per row, $n^L$ where the loss sums
    over L rows. Masked classes are left out, and f never sees one. As the sum itself is differentiated, derivatives
    of every order are exact.

    Args:
        max_states: more joint states than this raise.
        chunk: how many states are evaluated at once by `torch.func.vmap`; 1 calls the loss plainly, state by state,
            which any loss allows (data-dependent control flow, in-place statistics).

    Returns:
        An estimator for `expectation(..., estimator=Exact())`.

    Raises:
        TypeError: a setting is not an integer.
        ValueError: a setting is below 1; when used: more than max_states joint states.
        UnsupportedOperationError: when used: the loss does not allow vmap and chunk is not 1.

    Cost:
        One evaluation of the loss per joint state, all of them kept for backward.

    Transforms:
        backward, double backward, torch.func.grad/vmap/jacrev, torch.compile. Where contents cannot be looked at
        (under torch.func and torch.compile), masked states are evaluated too, and given the weight 0.

    References:
        None needed: the definition of the expectation.

    Example:
        >>> import torch
        >>> from difflayers.estimators import Exact, expectation
        >>> logits = torch.zeros(3, 2, requires_grad=True)  # three yes-or-no choices
        >>> value = expectation(lambda sample: sample[:, 1].sum().square(), logits, estimator=Exact())
        >>> value.backward()
        >>> value.item(), logits.grad[0]
        (3.0, tensor([-0.7500,  0.7500]))
    """

    def __init__(self, *, max_states: int = 65536, chunk: int = 1024) -> None:
        self.max_states = _checks.integer("difflayers.estimators.Exact", "max_states", max_states, minimum=1)
        self.chunk = _checks.integer("difflayers.estimators.Exact", "chunk", chunk, minimum=1)

    def __repr__(self) -> str:
        return f"Exact(max_states={self.max_states}, chunk={self.chunk})"

    def expectation(
        self,
        loss_fn: Callable[[Tensor], Tensor],
        logits: Tensor,
        *,
        dim: int = -1,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """The expected loss; what `expectation` calls. The generator is not used: nothing is random."""
        function = "difflayers.expectation"
        choice = Choice(function, logits, dim=dim, generator=generator)
        loss = LossFunction(function, loss_fn, logits, choice.dim)
        if choice.n == 0:
            return loss(logits.detach())  # nothing to choose from: the one state is the empty one
        rows = choice.rows.detach()
        present = rows > -math.inf
        order = torch.argsort(~present, dim=1, stable=True)  # the present classes first
        counts = present.sum(1, keepdim=True)

        def choose(digits: Tensor) -> tuple[Tensor, Tensor]:
            """The number of a present class, [S, B, 1] (or beyond: then the last) -> indices [S, B, 1], samples."""
            many = digits.shape[0]
            index = order.expand(many, -1, -1).gather(2, digits.clamp(max=(counts - 1).clamp(min=0)))
            one_hot = torch.zeros_like(rows).expand(many, -1, -1).scatter(2, index, 1.0)
            return index, one_hot.reshape(many, *choice.lead, choice.n).to(logits.dtype).movedim(-1, choice.dim)

        # the first state is a state whatever the loss depends on, and tells what it depends on
        first = loss(choose(torch.zeros_like(counts)[None])[1][0])
        shape = first.shape
        length = math.prod(loss.lead[first.dim() :])
        groups = math.prod(shape)
        sizes = self._sizes(choice, counts, groups, length)
        total = math.prod(sizes)
        if total > self.max_states:
            raise ValueError(
                f"{function}: argument 'logits' must have at most max_states = {self.max_states} joint states for "
                f"Exact, got {_shown(total)} ({length} choices in each loss); return one loss per row, raise "
                f"max_states, or use RLOO"
            )
        logarithms = torch.log_softmax(choice.rows, 1)
        result = torch.zeros(shape, dtype=rows.dtype, device=rows.device)
        for start, stop in [(0, 1), *_ranges(1, total, self.chunk)]:
            digits = _digits(start, stop, sizes, rows.device)[:, None].expand(-1, groups, -1)
            digits = digits.reshape(stop - start, choice.size, 1)
            index, samples = choose(digits)
            chosen = logarithms.expand(stop - start, -1, -1).gather(2, index)
            # a state that a row does not have may have any loss, even an infinite one
            weight = torch.where(digits < counts, chosen, -math.inf)
            weight = weight.reshape(stop - start, *shape, length).sum(-1).exp()
            values = first[None] if start == 0 else loss.together(samples, self.chunk)
            result = result + (weight * torch.where(weight > 0, values, 0.0)).sum(0)
        if not choice.checked:
            good = choice.good().reshape(*shape, length).all(-1)
            result = torch.where(good, result, math.nan)
        return result.to(first.dtype)

    @staticmethod
    def _sizes(choice: Choice, counts: Tensor, groups: int, length: int) -> list[int]:
        """How many classes each of the `length` joint choices has, at most over the groups."""
        if groups == 0:
            return [1] * length
        if not choice.checked:
            return [choice.n] * length
        return counts.reshape(groups, length).amax(0).tolist()


def _ranges(start: int, stop: int, step: int) -> list[tuple[int, int]]:
    """start to stop in pieces of at most step."""
    return [(at, min(at + step, stop)) for at in range(start, stop, step)]


def _digits(start: int, stop: int, sizes: list[int], device: torch.device) -> Tensor:
    """The numbers start, ..., stop - 1 in the mixed radix `sizes`: [stop - start, len(sizes)]."""
    number = torch.arange(start, stop, device=device)
    digits = []
    for size in sizes:
        digits.append(number % size)
        number = number // size
    return torch.stack(digits, 1) if digits else number[:, None][:, :0]


def _shown(count: int) -> str:
    """A count, in powers of ten where it is long."""
    return str(count) if count < 10**9 else f"about 10^{math.log10(count):.0f}"
