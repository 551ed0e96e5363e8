"""Solutions that were seen before, kept for losses and for guesses without a solve."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import _checks
from .base import Oracle

__all__ = ["SolutionPool"]

DECIMALS = 9  # solutions that agree to so many are the same one; solvers of linear programs vary beyond


class SolutionPool:
    """A bounded memory of the distinct feasible solutions of an oracle; the least recently used one is forgotten first.

    Args:
        oracle: whose solutions they are; rules and losses take both together.
        size: how many to keep, for each key.

    Where rows differ in their feasible sets, `keys` says which row is which instance: a solution of one is not
    feasible for another.

    Returns:
        Of `add`, how many were new; of `best`, the cheapest known solution of every row of costs `[..., *cost_shape]`.

    Raises:
        TypeError, ValueError: size is not a positive integer; shapes that do not fit; NaN or infinite costs.

    Cost:
        Of `add`, one hash a row; of `best`, one matrix product.

    Transforms:
        none: it has no gradient.

    References:
        Mulamba, Mandi, Diligenti, Lombardi, Bucarey, Guns, "Contrastive Losses and Solution Caching for
        Predict-and-Optimize", IJCAI 2021, arXiv 2011.05354, section 3.4.

    Example:
        >>> import torch, difflayers as dl
        >>> pool = dl.oracles.SolutionPool(dl.oracles.TopK(3, 1), 2)
        >>> pool.add(torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [1.0, 0.0, 0.0]]))
        2
        >>> pool.best(torch.tensor([3.0, 2.0, 1.0]))
        tensor([0., 1., 0.])
    """

    name = "difflayers.oracles.SolutionPool"

    def __init__(self, oracle: Oracle, size: int = 1024) -> None:
        if not isinstance(oracle, Oracle):
            raise TypeError(f"{self.name}: argument 'oracle' must be an oracle, got {type(oracle).__name__}")
        self.oracle = oracle
        self.size = _checks.integer(self.name, "size", size, minimum=1)
        self._seen: dict[Hashable, OrderedDict[bytes, np.ndarray]] = {}
        self._stacked: dict[Hashable, Tensor] = {}
        self._like: dict[str, Any] = {"dtype": torch.get_default_dtype(), "device": torch.device("cpu")}

    def add(self, solutions: Tensor, *, keys: Sequence[Hashable] | None = None) -> int:
        """Remembers solutions; rows with NaN, which are none, are passed over.

        Args:
            solutions: `[..., *cost_shape]`. Tensors come out of the pool in the dtype and on the device of the last.
            keys: the instance of each row of the flattened batch.

        Returns:
            How many were new.
        """
        solutions = _checks.tensor(self.name, "solutions", solutions)
        self._like = {"dtype": solutions.dtype, "device": solutions.device}
        rows = self._rows("solutions", solutions).numpy()
        new = 0
        for row, key in zip(rows, self._keys(keys, len(rows)), strict=True):
            if not np.isfinite(row).all():
                continue
            seen = self._seen.setdefault(key, OrderedDict())
            code = (np.round(row, DECIMALS) + 0.0).tobytes()  # + 0.0: no negative zeros
            if code not in seen:
                seen[code] = row.copy()
                new += 1
                if len(seen) > self.size:
                    seen.popitem(last=False)
            seen.move_to_end(code)
            self._stacked.pop(key, None)
        return new

    def __len__(self) -> int:
        return sum(map(len, self._seen.values()))

    @property
    def solutions(self) -> Tensor:
        """Those without a key, `[P, *cost_shape]`, the least recently used one first."""
        return self.of(None)

    def of(self, key: Hashable) -> Tensor:
        """Those of one instance, `[P, *cost_shape]`, the least recently used one first."""
        if key not in self._stacked:
            seen = self._seen.get(key, {})
            stacked = np.stack(list(seen.values())) if seen else np.zeros((0, *self.oracle.cost_shape))
            self._stacked[key] = torch.from_numpy(stacked.reshape(-1, *self.oracle.cost_shape))
        return self._stacked[key].to(**self._like)

    def best(self, costs: Tensor, *, keys: Sequence[Hashable] | None = None) -> Tensor:
        """The cheapest known solution for each row of costs, which counts as a use of it.

        Args:
            costs: `[..., *cost_shape]`.
            keys: the instance of each row of the flattened batch.

        Returns:
            Solutions in the shape, dtype and device of costs; NaN in rows whose instance has none yet.
        """
        costs = _checks.tensor(self.name, "costs", costs)
        rows = self._rows("costs", costs)
        if not bool(rows.isfinite().all()):
            raise ValueError(f"{self.name}: argument 'costs' must be finite, got NaN or infinity")
        found = torch.full_like(rows, float("nan"))
        places: dict[Hashable, list[int]] = {}
        for i, key in enumerate(self._keys(keys, len(rows))):
            places.setdefault(key, []).append(i)
        for key, which in places.items():
            known = list(self._seen.get(key, {}).items())
            if not known:
                continue
            table = torch.from_numpy(np.stack([row for _, row in known]))
            index = (rows[which] @ table.T).argmin(dim=1)
            found[which] = table[index]
            for i in index.unique().tolist():
                self._seen[key].move_to_end(known[i][0])
            self._stacked.pop(key, None)
        return found.reshape(costs.shape).to(dtype=costs.dtype, device=costs.device)

    def clear(self) -> None:
        """Forgets everything."""
        self._seen.clear()
        self._stacked.clear()

    def _rows(self, name: str, value: Tensor) -> Tensor:
        """A batch as float64 rows on the host."""
        event = self.oracle.cost_shape
        if value.dim() < len(event) or tuple(value.shape[value.dim() - len(event) :]) != event:
            raise ValueError(
                f"{self.name}: argument '{name}' must have shape [..., *{event}], got {tuple(value.shape)}"
            )
        lead = value.shape[: value.dim() - len(event)]
        return value.detach().to(device="cpu", dtype=torch.float64).reshape(lead.numel(), -1 if value.numel() else 0)

    def _keys(self, keys: Sequence[Hashable] | None, count: int) -> Sequence[Hashable]:
        if keys is None:
            return [None] * count
        if len(keys) != count:
            raise ValueError(f"{self.name}: argument 'keys' must name each of the {count} rows, got {len(keys)}")
        return keys
