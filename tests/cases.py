"""THE table: every layer of the library, what it is compared with, and what it claims.

Adding a `Case` puts a layer through test_shapes, test_dtypes, test_gradients, test_func, test_compile,
test_training and the property tests.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import difflayers as dl
from tests.sorting import naive

SWAPS = tuple(dl.swaps.SWAPS)
NETWORKS = tuple(dl.sorting.NETWORKS)
MONOTONIC = tuple(name for name, swap in dl.swaps.SWAPS.items() if swap.monotonic)
INSERTION = dl.Network([(i, i + 1) for end in range(6, 0, -1) for i in range(end)])  # a user's table, on 7 wires


@dataclass(frozen=True)
class Case:
    """A layer as a function of scores.

    Attributes:
        name: for the test's id.
        run: `run(x, **settings)`, settings being those of `dl.sort`; any shape, any dim.
        naive: the same on one row, 1-D float64, from the definitions in sorting/naive.py.
        place: where the result stands: "dim" (in place of the row), "end" (as last dimensions, the row
            being gone), "gone" (one number per row).
        kind: "values" (in the units of x) or "weights" (unchanged when x is shifted).
        smallest: the least n that it is defined for.
        trains_steepness: whether a steepness tensor that requires a gradient is accepted.
        condition: by how much the layer magnifies rounding errors of the permutation matrix.
    """

    name: str
    run: Callable[..., Tensor]
    naive: Callable[..., Tensor]
    place: str = "dim"
    kind: str = "values"
    smallest: int = 0
    trains_steepness: bool = True
    condition: float = 1.0

    def expected(self, x: Tensor, *, dim: int = -1, steepness: Any = 10.0, **settings: Any) -> Tensor:
        """The naive result for every row of x, in float64."""
        rows = x.double().movedim(dim, -1)
        lead, n = rows.shape[:-1], rows.shape[-1]
        steep = torch.as_tensor(steepness, dtype=torch.float64).expand(
            *[1 if d == dim % x.dim() else size for d, size in enumerate(x.shape)]
        )
        steep = steep.movedim(dim, -1).reshape(-1) if lead else steep.reshape(1)
        if math.prod(lead) == 0:
            return x.new_zeros(self.shape(x.shape, dim), dtype=torch.float64)
        results = [
            self.naive(row, steepness=s, **settings)
            for row, s in zip(rows.reshape(math.prod(lead), n), steep, strict=True)
        ]
        result = torch.stack(results).reshape((*lead, *results[0].shape))
        return result.movedim(-1, dim) if self.place == "dim" else result

    def shape(self, shape: torch.Size, dim: int = -1) -> tuple[int, ...]:
        """The shape of the result for an input of this shape."""
        lead = list(shape)
        n = lead.pop(dim)
        own = self.naive(torch.arange(float(n), dtype=torch.float64)).shape
        if self.place == "dim":
            lead.insert(dim % len(shape), own[0])
            return tuple(lead)
        return (*lead, *own)


def _fixed(n: int, *more: int) -> Tensor:
    """The same irregular numbers at every call; no generator, which vmap and compile would stop at."""
    count = n * math.prod(more)
    return torch.sin(1.7 * torch.arange(1, count + 1, dtype=torch.float64) ** 2).reshape(n, *more)


def payload(n: int) -> Tensor:
    return _fixed(n, 3)


def order(n: int) -> Tensor:
    return _fixed(n).argsort()


def ranks(n: int) -> Tensor:
    return order(n).argsort() + 1


def relevance(n: int) -> Tensor:
    return order(n) % 4


def _module(make: Callable[..., torch.nn.Module], pick: Callable[[Any], Tensor] = lambda result: result) -> Any:
    return lambda x, **settings: pick(make(x.shape[settings.get("dim", -1)], **settings)(x))


def _network(returns: str, pick: Callable[[Any], Tensor] = lambda result: result) -> Any:
    return _module(lambda n, **settings: dl.SortingNetwork(n, returns=returns, **settings), pick)


def _loss(make: Callable[..., torch.nn.Module], label: Callable[[int], Tensor]) -> Any:
    """One loss per row; the label is the same in every row."""

    def run(x: Tensor, **settings: Any) -> Tensor:
        dim = settings.get("dim", -1)
        target = label(x.shape[dim])
        if target.dim():  # one label for each score
            target = target.expand(x.movedim(dim, -1).shape).movedim(-1, dim)
        else:  # one label for each row
            target = target.expand(x.movedim(dim, -1).shape[:-1])
        return make(reduction="none", **settings)(x, target)

    return run


def _k(n: int) -> int:
    return min(2, n)


K_DISTRIBUTION = (0.5, 0.3, 0.2)
QUARTILES = torch.tensor([0.25, 0.5, 0.8], dtype=torch.float64)


def _sort_by(x: Tensor, **settings: Any) -> Tensor:
    return dl.sort_by(x, payload(x.shape[settings.get("dim", -1)]).to(x.dtype), **settings)


def _topk(x: Tensor, **settings: Any) -> dl.TopKResult:
    return dl.topk(x, _k(x.shape[settings.get("dim", -1)]), **settings)


FUNCTIONS = (
    Case("sort", dl.sort, naive.sort),
    Case("sort descending", lambda x, **s: dl.sort(x, descending=True, **s),
         lambda x, **s: naive.sort(x, descending=True, **s)),
    Case("permutation", dl.permutation, naive.permutation, place="end", kind="weights"),
    Case("permutation descending", lambda x, **s: dl.permutation(x, descending=True, **s),
         lambda x, **s: naive.permutation(x, descending=True, **s), place="end", kind="weights"),
    Case("rank", dl.rank, naive.rank, kind="weights"),
    Case("rank descending", lambda x, **s: dl.rank(x, descending=True, **s),
         lambda x, **s: naive.rank(x, descending=True, **s), kind="weights"),
    Case("sort_by", _sort_by, lambda x, **s: naive.sort_by(x, payload(len(x)), **s), place="end", kind="weights"),
    Case("sort_by inverse", lambda x, **s: _sort_by(x, inverse=True, **s),
         lambda x, **s: naive.sort_by(x, payload(len(x)), inverse=True, **s), place="end", kind="weights"),
    Case("sort_by descending", lambda x, **s: _sort_by(x, descending=True, **s),
         lambda x, **s: naive.sort_by(x, payload(len(x)), descending=True, **s), place="end", kind="weights"),
    Case("topk values", lambda x, **s: _topk(x, **s).values, lambda x, **s: naive.topk_values(x, _k(len(x)), **s)),
    Case("topk membership", lambda x, **s: _topk(x, **s).membership,
         lambda x, **s: naive.topk_membership(x, _k(len(x)), **s), kind="weights"),
    Case("topk smallest values", lambda x, **s: _topk(x, largest=False, **s).values,
         lambda x, **s: naive.topk_values(x, _k(len(x)), largest=False, **s)),
    Case("topk smallest membership", lambda x, **s: _topk(x, largest=False, **s).membership,
         lambda x, **s: naive.topk_membership(x, _k(len(x)), largest=False, **s), kind="weights"),
    Case("quantile", lambda x, **s: dl.quantile(x, 0.3, **s),
         lambda x, **s: naive.quantile(x, torch.tensor(0.3, dtype=torch.float64), **s), place="gone", smallest=1),
    Case("quantiles", lambda x, **s: dl.quantile(x, QUARTILES, **s).movedim(0, -1),
         lambda x, **s: naive.quantile(x, QUARTILES, **s), place="end", smallest=1),
    Case("median", dl.median, lambda x, **s: naive.quantile(x, torch.tensor(0.5), **s), place="gone", smallest=1),
)  # fmt: skip

MODULES = (
    Case("SortingNetwork values", _network("values"), naive.sort, trains_steepness=False),
    Case("SortingNetwork permutation", _network("permutation"), naive.permutation, place="end", kind="weights",
         trains_steepness=False),
    Case("SortingNetwork ranks", _network("ranks"), naive.rank, kind="weights", trains_steepness=False),
    Case("SortingNetwork both, values", _network("both", lambda both: both.values), naive.sort,
         trains_steepness=False),
    Case("SortingNetwork both, permutation", _network("both", lambda both: both.permutation), naive.permutation,
         place="end", kind="weights", trains_steepness=False),
    Case("Sort", _module(lambda n, **s: dl.Sort(**s)), naive.sort, trains_steepness=False),
    Case("Rank", _module(lambda n, **s: dl.Rank(**s)), naive.rank, kind="weights", trains_steepness=False),
    Case("TopK values", _module(lambda n, **s: dl.TopK(_k(n), **s), lambda result: result.values),
         lambda x, **s: naive.topk_values(x, _k(len(x)), **s), trains_steepness=False),
    Case("TopK membership", _module(lambda n, **s: dl.TopK(_k(n), **s), lambda result: result.membership),
         lambda x, **s: naive.topk_membership(x, _k(len(x)), **s), kind="weights", trains_steepness=False),
)  # fmt: skip


def _losses() -> tuple[Case, ...]:
    first = lambda n: torch.tensor(0)  # noqa: E731
    table = [
        ("PermutationCrossEntropy binary", dl.losses.PermutationCrossEntropy, {}, order,
         lambda x, **s: naive.cross_entropy(x, order(len(x)), "binary", **s)),
        ("PermutationCrossEntropy categorical", dl.losses.PermutationCrossEntropy, {"kind": "categorical"}, order,
         lambda x, **s: naive.cross_entropy(x, order(len(x)), "categorical", **s)),
        ("SpearmanLoss", dl.losses.SpearmanLoss, {}, ranks, lambda x, **s: naive.spearman(x, ranks(len(x)), **s)),
        ("NDCGLoss", dl.losses.NDCGLoss, {}, relevance,
         lambda x, **s: naive.ndcg(x, relevance(len(x)), len(x), **s)),
        ("NDCGLoss k=2", dl.losses.NDCGLoss, {"k": 2}, relevance,
         lambda x, **s: naive.ndcg(x, relevance(len(x)), 2, **s)),
        ("TopKCrossEntropy", dl.losses.TopKCrossEntropy, {"k_distribution": K_DISTRIBUTION}, first,
         lambda x, **s: naive.topk_cross_entropy(x, 0, K_DISTRIBUTION, "softmax", **s)),
        ("TopKCrossEntropy network", dl.losses.TopKCrossEntropy,
         {"k_distribution": K_DISTRIBUTION, "top1": "network"}, first,
         lambda x, **s: naive.topk_cross_entropy(x, 0, K_DISTRIBUTION, "network", **s)),
    ]  # fmt: skip
    return tuple(
        Case(name, _loss(lambda make=make, options=options, **s: make(**options, **s), label), reference,
             place="gone", kind="weights", smallest=3, trains_steepness=False,
             condition=100.0 if "CrossEntropy" in name else 1.0)  # logarithms of small numbers
        for name, make, options, label, reference in table
    )  # fmt: skip


LOSSES = _losses()
CASES = FUNCTIONS + MODULES + LOSSES


def settings_grid() -> list[dict[str, Any]]:
    """Every swap and every network at least once, soft and hard, for rows of 7."""
    grid: list[dict[str, Any]] = [{"swap": swap} for swap in SWAPS]
    grid += [{"network": network} for network in NETWORKS] + [{"network": INSERTION}]
    grid += [{"hard": True, "swap": swap} for swap in SWAPS]
    return grid


def name_of(value: Any) -> str:
    """A short id of a case or of settings."""
    if isinstance(value, dict):
        shown = ",".join(f"{k}={v}" for k, v in value.items()) or "default"
        return re.sub(" at 0x[0-9a-f]+", "", shown)  # the same id in every process
    return value.name if isinstance(value, Case) else str(value)
