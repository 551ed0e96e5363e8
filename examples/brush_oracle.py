"""Designs that can be made: every pixel, of material or void, is painted by a round brush that stays in its kind.

An oracle of one's own: a subclass of `dl.oracles.Oracle` that says the shape of its costs and solves one row. The
definition is that of Schubert, Cheung, Williamson, Spyra, Alexander, "Inverse design of photonic devices with strict
foundry fabrication constraints", 2022, arXiv 2201.12965, whose own generator is a heuristic; this is exact.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from ortools.sat.python import cp_model
from torch import Tensor

from difflayers.oracles import Oracle, PerThread, Row, Status


def disc(diameter: int) -> list[tuple[int, int]]:
    """The pixels of a round brush, counted from its first row and column: 3 is a cross, 5 a square without corners."""
    middle = (diameter - 1) / 2
    cells = [(i, j) for i in range(diameter) for j in range(diameter)]
    return [(i, j) for i, j in cells if np.hypot(i - middle, j - middle) < diameter / 2 - 0.1]


class BrushDesigns(Oracle):
    """The feasible design of least linear cost, by CP-SAT: one variable a pixel, one a touch of each kind of brush.

    Args:
        frame: `[n + 2 m, n + 2 m]` of zeros and ones: the m >= diameter - 1 pixels around the design, which are given
            (what is inside does not matter). Touches may reach into the frame where it is of their kind.
        diameter: of the brush, in pixels.
        effort: seconds of CP-SAT's own clock, the same on every machine; then the best found so far is FEASIBLE.
        settings: those of every oracle.
    """

    name = "BrushDesigns"
    releases_gil = True

    def __init__(self, frame: np.ndarray, diameter: int, *, effort: float = 0.05, **settings: Any) -> None:
        super().__init__(**settings)
        self.frame, self.diameter, self.effort = frame.astype(bool), diameter, effort
        self.margin = diameter - 1
        self.size = len(frame) - 2 * self.margin
        self._models = PerThread()

    @property
    def cost_shape(self) -> tuple[int, ...]:
        """(n, n)."""
        return (self.size, self.size)

    def _solve_row(self, cost: np.ndarray, instance: Any, deadline: float | None) -> Row:
        model = self._models.get("model", lambda: _Model(self))
        solution, status, bound = model.minimise(cost, self.effort, deadline)
        if solution is None and status == Status.TIMEOUT and model.last is not None:
            return Row(model.last, Status.FEASIBLE)  # not of these costs, but better than none
        if solution is None:
            return Row(None, status)
        model.last = solution
        return Row(solution, status, bound)

    def feasible(self, design: Tensor) -> bool:
        """Whether a design `[n, n]` can be made."""
        return self._is_feasible(design.numpy(), {})

    def _is_feasible(self, solution: np.ndarray, instance: Any) -> bool:
        """Checked without the solver: what all brushes that fit into a kind paint is that kind."""
        whole = self.frame.copy()
        whole[self.margin : -self.margin, self.margin : -self.margin] = solution > 0.5
        return all(self._painted(kind) for kind in (whole, ~whole)) and bool(np.isin(solution, (0.0, 1.0)).all())

    def _painted(self, kind: np.ndarray) -> bool:
        fits, painted = self.fits(kind), np.zeros_like(kind)
        for i, j in disc(self.diameter):
            painted[i : i + len(fits), j : j + len(fits)] |= fits
        inside = (slice(self.margin, -self.margin),) * 2
        return bool((painted[inside] == kind[inside]).all())

    def fits(self, kind: np.ndarray) -> np.ndarray:
        """Where a touch of the brush lies wholly within pixels of the frame's shape, `[n + m, n + m]`."""
        count = len(kind) - self.margin
        result = np.ones((count, count), dtype=bool)
        for i, j in disc(self.diameter):
            result &= kind[i : i + count, j : j + count]
        return result


class _Model:
    """A CP-SAT model that stays while its objective changes."""

    def __init__(self, designs: BrushDesigns) -> None:
        self.designs, self.model, self.solver = designs, cp_model.CpModel(), cp_model.CpSolver()
        self.last: np.ndarray | None = None  # solution
        size, margin = designs.size, designs.margin
        self.pixels = [self.model.new_bool_var("") for _ in range(size**2)]
        self.touches: list[dict[tuple[int, int], Any]] = []
        design = np.zeros(designs.frame.shape, dtype=bool)
        design[margin : margin + size, margin : margin + size] = True
        for kind in (True, False):
            literals = self.pixels if kind else [~pixel for pixel in self.pixels]
            covering: list[list[Any]] = [[] for _ in literals]
            touches = {}
            for at in map(tuple, np.argwhere(designs.fits(design | (designs.frame == kind))).tolist()):
                cells = [(at[0] + i - margin, at[1] + j - margin) for i, j in disc(designs.diameter)]
                below = [size * i + j for i, j in cells if 0 <= i < size and 0 <= j < size]
                if below:
                    touches[at] = self.model.new_bool_var("")
                for pixel in below:
                    self.model.add_implication(touches[at], literals[pixel])
                    covering[pixel].append(touches[at])
            for literal, touching in zip(literals, covering, strict=True):
                self.model.add_bool_or([~literal, *touching])
            self.touches.append(touches)
        parameters = self.solver.parameters
        parameters.num_workers = 1  # the same result every time; batches are what runs in parallel
        # here the linear relaxation with cuts finds and proves the optimum; presolve takes longer than all the rest,
        # and hints, such as the last solution, made the search longer where they were tried
        parameters.linearization_level, parameters.cp_model_presolve = 2, False
        parameters.catch_sigint_signal = False  # Ctrl-C is Python's

    def minimise(
        self, cost: np.ndarray, effort: float, deadline: float | None
    ) -> tuple[np.ndarray | None, Status, float]:
        """Solution, status and lower bound."""
        scale = 2.0**24 / (float(np.abs(cost).max()) or 1.0)
        integers = np.rint(scale * cost)
        self.model.minimize(cp_model.LinearExpr.weighted_sum(self.pixels, integers.astype(int).ravel().tolist()))
        self.solver.parameters.max_deterministic_time = effort
        left = np.inf if deadline is None else max(0.0, deadline - time.monotonic())
        self.solver.parameters.max_time_in_seconds = left
        status = self.solver.solve(self.model)
        if status not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
            return None, Status.INFEASIBLE if status == cp_model.INFEASIBLE else Status.TIMEOUT, -np.inf
        values = np.array(self.solver.response_proto.solution, dtype=float)[: cost.size].reshape(cost.shape)
        bound = (self.solver.best_objective_bound - np.abs(scale * cost - integers).sum()) / scale
        return values, Status.OPTIMAL if status == cp_model.OPTIMAL else Status.FEASIBLE, float(bound)
