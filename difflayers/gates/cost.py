"""What a model with gates costs, as a function of the gates."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .. import _checks
from ._analysis import Factor, Term
from .attach import Gated
from .latency import Table, latency_terms

__all__ = ["KINDS", "Cost"]

KINDS = ("flops", "parameters", "latency")


class Cost(nn.Module):
    r"""The share of FLOPs, parameters or time that the open gates leave, between 0 and 1, with a gradient.

    $$\frac{1}{C} \sum_t a_t \prod_{d} \frac{c_d + \sum_{u} n_{du} z_u}{N_d}$$

    over terms t (a layer's work, a parameter) and the dimensions d that its size is the product of; z is the openness
    of the gates, C the cost of the dense model. The same as `Gated.cost`, with the sums laid out in advance.

    Args:
        gated: of `difflayers.gates.attach`.
        kind: "flops" of the example, "parameters", or "latency".
        table: for "latency": seconds by module path, see `difflayers.gates.measure_latency`; None measures now.

    Returns:
        Of a call with the values of all gates (a dict of tensors `[size of the group]`; default: their openness now):
        the share, a float64 scalar.

    Raises:
        TypeError, ValueError: an argument of the wrong type or out of range.

    Cost, transforms:
        Linear in the number of units times the layers they are in; double backward.

    References:
        None.

    Example:
        >>> import torch, difflayers as dl
        >>> from torch import nn
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4))
        >>> cost = dl.gates.Cost(dl.gates.attach(net, torch.randn(1, 4)))
        >>> cost.full, cost({"0": torch.tensor([1.0, 1, 1, 1, 1, 1, 0, 0])}).item()
        (128.0, 0.75)
    """

    def __init__(self, gated: Gated, kind: str = "flops", table: Table | None = None) -> None:
        super().__init__()
        name = "difflayers.gates.Cost"
        gated = checked(name, gated)
        self.kind = _checks.choice(name, "kind", kind, KINDS)
        self._gated = (gated,)  # in a tuple: its parameters are not this module's
        self.sizes = {name: group.size for name, group in gated.groups.items()}
        if kind == "latency":
            terms = latency_terms(gated, table)
        else:
            terms = gated.analysis.flops if kind == "flops" else gated.analysis.parameters
        self.full = float(sum(term.amount for term in terms))
        if not self.full > 0:
            raise ValueError(f"{name}: the model's cost in {kind} must be positive, got {self.full:g}")
        self._lay_out(terms)

    def _lay_out(self, terms: list[Term]) -> None:
        start, first = 0, {}
        for name, size in self.sizes.items():
            first[name], start = start, start + size
        self.factors: list[Factor] = []
        known: dict[Any, int] = {}
        rows: dict[tuple[int, ...], float] = {}
        for term in terms:
            row = []
            for factor in term.factors:
                if factor.counts:  # else its share is 1
                    key = (factor.constant, factor.whole, *((n, c.numpy().tobytes()) for n, c in factor.counts.items()))
                    if key not in known:
                        known[key] = len(self.factors)
                        self.factors.append(factor)
                    row.append(known[key])
            rows[tuple(sorted(row))] = rows.get(tuple(sorted(row)), 0.0) + term.amount / self.full
        width = max((len(row) for row in rows), default=0)
        # the last factor is 1: rows are filled up with it
        padded = [list(row) + [len(self.factors)] * (width - len(row)) for row in rows]
        entries = [
            (i, first[name] + unit, count / factor.whole)
            for i, factor in enumerate(self.factors)
            for name, counts in factor.counts.items()
            for unit, count in enumerate(counts.tolist())
            if count
        ]
        constants = [factor.constant / factor.whole for factor in self.factors] + [1.0]
        for name, value in {
            "amounts": torch.tensor(list(rows.values()), dtype=torch.float64),
            "rows": torch.tensor(padded, dtype=torch.int64).view(len(rows), width),
            "constants": torch.tensor(constants, dtype=torch.float64),
            "factor_of": torch.tensor([entry[0] for entry in entries], dtype=torch.int64),
            "unit_of": torch.tensor([entry[1] for entry in entries], dtype=torch.int64),
            "shares": torch.tensor([entry[2] for entry in entries], dtype=torch.float64),
        }.items():
            self.register_buffer(name, value, persistent=False)

    @property
    def gated(self) -> Gated:
        """The model."""
        return self._gated[0]

    def forward(self, values: Mapping[str, Tensor] | None = None) -> Tensor:
        """The share that is left, a float64 scalar."""
        if values is None:
            values = self.gated.openness()
        z = torch.cat([values[name].double() for name in self.sizes])
        buffers: dict[str, Any] = {name: buffer.to(z.device) for name, buffer in self.named_buffers()}
        left = buffers["constants"].index_add(0, buffers["factor_of"], buffers["shares"] * z[buffers["unit_of"]])
        return buffers["amounts"] @ left[buffers["rows"]].prod(1)

    def marginal(self, values: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """By how much the share falls per unit, to first order, at these values (default: all open)."""
        at = {
            name: (torch.ones(size) if values is None else values[name]).detach().cpu().double().requires_grad_()
            for name, size in self.sizes.items()
        }
        with torch.enable_grad():
            gradients = torch.autograd.grad(self(at), list(at.values()))
        return dict(zip(at, gradients, strict=True))


def checked(function: str, gated: object) -> Gated:
    """A `Gated`, unchanged."""
    if not isinstance(gated, Gated):
        raise TypeError(
            f"{function}: argument 'gated' must be what difflayers.gates.attach returns, got {type(gated).__name__}"
        )
    return gated
