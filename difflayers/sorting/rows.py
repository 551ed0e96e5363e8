"""One call's input as rows: checked, `dim` last, batch flattened, in the dtype that is computed in."""

from __future__ import annotations

import math
from typing import Union

import torch
from torch import Tensor

from .. import _checks, _ops
from . import networks, reference, swaps
from .networks import Network
from .steepness import RelativeSteepness
from .swaps import Swap

Steepness = Union[float, Tensor, RelativeSteepness]  # noqa: UP007 (evaluated at run time on Python 3.10)

_HALF = (torch.float16, torch.bfloat16)


class Rows:
    """The scores x as B rows of n, with the settings under which they are to be transported.

    Attributes:
        scores: [B, n], float32 or float64, in wire order; absent elements hold `absent`.
        filled: the same in the input's order.
        present: [B, n] bool, or None when everything is.
        count: [B, 1] number of present elements, or None.
        n: number of elements of a row.
    """

    def __init__(
        self,
        function: str,
        x: Tensor,
        *,
        network: str | Network,
        swap: str | Swap,
        steepness: Steepness,
        hard: bool,
        mask: Tensor | None,
        dim: int,
        absent: float = math.inf,
        compute_dtype: torch.dtype | None = None,
    ) -> None:
        x = _checks.tensor(function, "x", x)
        self.dim = _checks.dimension(function, "x", x, dim)
        self.hard = _checks.boolean(function, "hard", hard)
        self.swap = swaps.resolve(function, swap)
        self.dtype = x.dtype
        if compute_dtype is None:
            compute_dtype = torch.float32 if x.dtype in _HALF else x.dtype
        moved = x if self.dim == -1 else x.movedim(self.dim, -1)
        self.lead = moved.shape[:-1]
        self.n = moved.shape[-1]
        self.network = networks.resolve(function, network, self.n)
        self.size = math.prod(self.lead)
        scores = moved if moved.dim() == 2 else moved.reshape(self.size, self.n)
        if x.dtype != compute_dtype:
            scores = scores.to(compute_dtype)
        self.present = self.count = self.inverse = None
        self.filled = scores
        if mask is not None:
            self.present = self._rows_of_mask(function, x, mask)
            self.count = self.present.sum(dim=1, keepdim=True)
            scores = torch.where(self.present, scores, absent)
            self.filled = scores
            # An infinity that is present must come before the absent elements, which look the same: such rows
            # enter with the absent ones on the wires where they end, from which no comparator moves them.
            clash = (self.present & (scores == absent)).any(dim=1, keepdim=True)
            last = ~self.present if absent > 0 else self.present
            self.order = (clash & last).to(torch.int8).argsort(dim=1, stable=True)
            self.inverse = self.order.argsort(dim=1)
            scores = scores.gather(1, self.order)
        self.scores = scores
        self.steepness, self.constant = self._rows_of_steepness(function, x, steepness)

    def _rows_of_mask(self, function: str, x: Tensor, mask: Tensor) -> Tensor:
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
            got = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
            raise TypeError(f"{function}: argument 'mask' must be a bool tensor (True = present), got {got}")
        try:
            mask = mask.expand(x.shape)
        except RuntimeError:
            raise ValueError(
                f"{function}: argument 'mask' must be broadcastable to the input's shape {tuple(x.shape)}, "
                f"got {tuple(mask.shape)}"
            ) from None
        return mask.movedim(self.dim, -1).reshape(self.size, self.n)

    def _rows_of_steepness(self, function: str, x: Tensor, steepness: Steepness) -> tuple[Tensor | None, float]:
        """The steepness of each row, or None and the one number for all."""
        scores = self.scores
        if isinstance(steepness, RelativeSteepness):
            return steepness.of(scores), 1.0
        if not isinstance(steepness, Tensor):
            limit = torch.finfo(scores.dtype).max
            return None, _checks.number(function, "steepness", steepness, above=0.0, maximum=limit)
        steepness = _checks.tensor(function, "steepness", steepness)
        shape = list(x.shape)
        shape[self.dim] = 1
        try:
            rows = steepness.expand(shape)
        except RuntimeError:
            raise ValueError(
                f"{function}: argument 'steepness' must be broadcastable to the input's shape with size 1 at "
                f"dim {self.dim}, {tuple(shape)}, got {tuple(steepness.shape)}; use keepdim form"
            ) from None
        if _checks.contents_are_checked(steepness) and not bool(((steepness > 0) & steepness.isfinite()).all()):
            bad = steepness.detach()[~((steepness > 0) & steepness.isfinite())].flatten()[0].item()
            raise ValueError(f"{function}: argument 'steepness' must be positive and finite everywhere, got {bad}")
        rows = rows.to(device=scores.device, dtype=scores.dtype)
        if self.dim != -1:
            rows = rows.movedim(self.dim, -1)
        rows = rows.reshape(self.size)
        # where contents go unchecked, a steepness that is not positive makes its row NaN instead of nonsense
        return torch.where(rows > 0, rows, torch.nan), 1.0

    def transport(self, what: str, payload: Tensor | None = None, first: int = 0, last: int | None = None) -> Tensor:
        """See `reference.transport`; runs the kernel of the device where there is one."""
        last = self.n if last is None else last
        if self.inverse is not None and what == "carry":
            assert payload is not None
            payload = payload.expand(self.size, -1, -1)
            payload = payload.gather(1, self.order[..., None].expand_as(payload))
        result = self._transport(what, payload, first, last)
        if self.inverse is not None and what == "matrix":
            result = result.gather(2, self.inverse[:, None].expand_as(result))
        if self.inverse is not None and what == "carry_transposed":
            result = result.gather(1, self.inverse[..., None].expand_as(result))
        return result

    def _transport(self, what: str, payload: Tensor | None, first: int, last: int) -> Tensor:
        if self.swap.compiled and _ops.has_kernel("transport", self.scores.device):
            return _ops.transport(
                self.scores, self.steepness, payload, what, self.network, first, last,
                self.swap.name, self.swap.parameter, self.constant, self.hard,
            )  # fmt: skip
        return reference.transport(
            self.scores, self.steepness, payload, what, self.network, first, last, self.swap, self.constant, self.hard
        )

    def occupied(self, first: int = 0, last: int | None = None) -> Tensor:
        """[B, last - first] bool: the output positions that a present element fills (absent ones come last)."""
        assert self.count is not None
        return torch.arange(self.n, device=self.scores.device)[None, first:last] < self.count

    def restore(self, result: Tensor) -> Tensor:
        """[B, k] -> the input's shape with k at dim, in the input's dtype."""
        if len(self.lead) != 1:
            result = result.reshape(*self.lead, result.shape[1])
        if result.dtype != self.dtype:
            result = result.to(self.dtype)
        return result if self.dim == -1 else result.movedim(-1, self.dim)
