"""The cheapest flow from supplies to demands."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from torch import Tensor

from .. import _checks
from ._ortools import solver_module
from .base import Instance, Oracle
from .graph import checked_edges
from .result import Row, Status

__all__ = ["MinCostFlow"]

AMOUNT_BITS = 61  # of all that can enter or leave a node; beyond it 64-bit integers overflow
COST_BITS = 62  # of a cost times (N + 1) (N + 2), beyond which OR-Tools may refuse it, as measured up to N = 1000
RESOLUTION = 1e-10  # of the objective: what rounding of costs may move it by in a solution that is called optimal
BITS = 53  # of a float64
ROUNDING = 1e-9  # relative, of flows that have more bits than a float64


class MinCostFlow(Oracle):
    r"""The flow of least total cost through a network with capacities.

    $$y(c) = \arg\min \{ c^\top y : 0 \le y \le u,\ \text{what leaves node v} - \text{what enters it} = b_v \}.$$

    The flows are whole numbers where capacities and supplies are.

    Args:
        edges: integers `[E, 2]`, rows (tail, head); directed, in the order of the costs.
        capacities: u, `[E]`, not negative.
        supplies: b, `[N]`: positive where flow is supplied, negative where it is demanded; they add up to 0.
        num_nodes: N; nodes are 0 ... N - 1.
        settings: on_failure, time_limit, workers, cache: see `difflayers.oracles.Oracle`. The time limit is not imposed
            on the solver, which is polynomial.

    `with_parameters` takes `capacities`, `[..., E]`, and `supplies`, `[..., N]`.

    OR-Tools computes with integers: amounts are scaled by a power of two without loss, or refused. Costs are scaled by
    a power of two row by row; where bits are lost so that the objective could be off by more than 1e-10 of itself, the
    status is FEASIBLE, and the bound says by how much.

    Returns:
        Of `solve` with costs `[..., E]`: the flow on every edge, in that shape and dtype.

    Raises:
        TypeError: edges are not integers.
        ValueError: a node, capacity or supply that is out of range; amounts that do not fit into 64-bit integers.

    Cost:
        OR-Tools' SimpleMinCostFlow, one row at a time, holding Python's lock: workers are processes.

    Transforms:
        none by itself; gradients come from a rule, see `difflayers.SolverLayer`.

    References:
        Goldberg, "An Efficient Implementation of a Scaling Minimum-Cost Flow Algorithm", Journal of Algorithms 22(1),
        1997 (OR-Tools' method).

    Example:
        >>> import torch, difflayers as dl
        >>> flow = dl.oracles.MinCostFlow([(0, 1), (0, 2), (1, 2)], [2, 2, 2], [3, 0, -3], num_nodes=3)
        >>> flow.solve(torch.tensor([1.0, 3.0, 1.0]))
        tensor([2., 1., 2.])
    """

    name = "difflayers.oracles.MinCostFlow"

    def __init__(self, edges: Any, capacities: Any, supplies: Any, *, num_nodes: int, **settings: Any) -> None:
        super().__init__(**settings)
        self.num_nodes = _checks.integer(self.name, "num_nodes", num_nodes, minimum=1)
        self.edges = checked_edges(self.name, edges, self.num_nodes)
        self.capacities = self._amounts("capacities", capacities, len(self.edges))
        self.supplies = self._amounts("supplies", supplies, self.num_nodes)
        self._check_amounts(self.capacities[None], self.supplies[None])

    def _amounts(self, name: str, value: Any, size: int) -> np.ndarray:
        array = np.asarray(value.detach().cpu() if isinstance(value, Tensor) else value)
        if array.dtype.kind not in "iuf" and array.size:
            raise TypeError(f"{self.name}: argument {name!r} must hold numbers, got {array.dtype}")
        if array.shape != (size,):
            raise ValueError(f"{self.name}: argument {name!r} must have shape ({size},), got {array.shape}")
        return array.astype(np.float64)

    @property
    def cost_shape(self) -> tuple[int, ...]:
        """(E,)."""
        return (len(self.edges),)

    @property
    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        """capacities, (E,), and supplies, (N,)."""
        return {"capacities": (len(self.edges),), "supplies": (self.num_nodes,)}

    def _check_parameters(self) -> None:
        capacities = np.asarray(self.parameters.get("capacities", self.capacities), dtype=np.float64)
        supplies = np.asarray(self.parameters.get("supplies", self.supplies), dtype=np.float64)
        self._check_amounts(capacities.reshape(-1, len(self.edges)), supplies.reshape(-1, self.num_nodes))

    def _check_amounts(self, capacities: np.ndarray, supplies: np.ndarray) -> None:
        """Checks capacities `[K, E]` and supplies `[K', N]`."""
        for name, values in (("capacities", capacities), ("supplies", supplies)):
            if not np.isfinite(values).all():
                raise ValueError(f"{self.name}: argument {name!r} must be finite, got NaN or infinity")
        if (capacities < 0).any():
            raise ValueError(f"{self.name}: argument 'capacities' must not be negative, got {capacities.min():g}")
        for total in map(math.fsum, supplies):
            if total != 0:
                raise ValueError(f"{self.name}: argument 'supplies' must add up to 0, got {total:g}")
        exponent = max(_exponent(capacities), _exponent(supplies))
        most = capacities.sum(axis=1).max(initial=0.0) + np.abs(supplies).sum(axis=1).max(initial=0.0)
        if most > 0 and math.log2(most) + exponent >= AMOUNT_BITS:
            raise ValueError(
                f"{self.name}: capacities and supplies that add up to {most:g} in steps of 2^{-exponent} do not fit "
                f"into 64-bit integers; round them, or lower capacities to what can flow at most"
            )

    def _solve_rows(self, costs: np.ndarray, instances: list[Instance], time_limit: float | None) -> list[Row]:
        # missing, it is an error of its own and not one of each row
        solver_module(self.name, "ortools.graph.python.min_cost_flow")
        return super()._solve_rows(costs, instances, time_limit)

    def _solve_row(self, cost: np.ndarray, instance: Instance, deadline: float | None) -> Row:
        capacities = np.asarray(instance.get("capacities", self.capacities), dtype=np.float64)
        supplies = np.asarray(instance.get("supplies", self.supplies), dtype=np.float64)
        amount = max(_exponent(capacities), _exponent(supplies))
        lossless, room = _exponent(cost), _room(cost, self.num_nodes)
        module = solver_module(self.name, "ortools.graph.python.min_cost_flow")
        while True:
            whole = np.rint(np.ldexp(cost, min(lossless, room))).astype(np.int64)
            solver = module.SimpleMinCostFlow()
            solver.add_arcs_with_capacity_and_unit_cost(
                self.edges[:, 0], self.edges[:, 1], np.ldexp(capacities, amount).astype(np.int64), whole
            )
            solver.set_nodes_supplies(np.arange(self.num_nodes), np.ldexp(supplies, amount).astype(np.int64))
            status = solver.solve()
            if status != solver.BAD_COST_RANGE or not whole.any():
                break
            room = min(lossless, room) - 4  # what it can compute with depends on the graph, too
        if status == solver.INFEASIBLE:
            return Row(None, Status.INFEASIBLE, reason="the capacities do not let the supplies through")
        if status != solver.OPTIMAL:
            return Row(None, Status.FAILED, reason=f"SimpleMinCostFlow returned {status.name}")
        flow = np.ldexp(solver.flows(np.arange(len(self.edges))).astype(np.float64), -amount)
        if lossless <= room:
            return Row(flow, Status.OPTIMAL)
        # every flow's cost moved by at most this when the costs were rounded
        moved = np.abs(cost - np.ldexp(whole.astype(np.float64), -room))
        gap = float(moved @ np.maximum(flow, capacities - flow))
        if gap <= RESOLUTION * float(np.abs(cost) @ flow):
            return Row(flow, Status.OPTIMAL)
        return Row(flow, Status.FEASIBLE, bound=float(cost @ flow) - gap)

    def _is_feasible(self, solution: np.ndarray, instance: Instance) -> bool:
        tails, heads = self.edges.T
        out = np.bincount(tails, solution, self.num_nodes) - np.bincount(heads, solution, self.num_nodes)
        supplies, capacities = instance.get("supplies", self.supplies), instance.get("capacities", self.capacities)
        scale = ROUNDING * max(1.0, float(solution.max(initial=0.0)))
        return bool(
            (np.abs(out - supplies) <= scale).all() and (solution >= 0).all() and (solution <= capacities + scale).all()
        )


def _exponent(values: np.ndarray) -> int:
    """The smallest k >= 0 that makes all values * 2^k whole."""
    mantissa, exponent = np.frexp(values[values != 0])
    if mantissa.size == 0:
        return 0
    digits = np.ldexp(mantissa, BITS).astype(np.int64)
    zeros = np.frexp((digits & -digits).astype(np.float64))[1] - 1
    return max(0, int((BITS - exponent - zeros).max()))


def _room(cost: np.ndarray, num_nodes: int) -> int:
    """The largest k for which cost * 2^k stays within what OR-Tools can compute with."""
    largest = float(np.abs(cost).max(initial=0.0))
    nodes = math.frexp(num_nodes + 1)[1] + math.frexp(num_nodes + 2)[1]
    return COST_BITS - nodes - math.frexp(largest)[1] if largest > 0 else 0
