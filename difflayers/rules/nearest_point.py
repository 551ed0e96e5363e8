"""The point of a polytope nearest to a given one, when all that is known of the polytope is a linear oracle.

Fully corrective Frank-Wolfe (Wolfe's algorithm of 1976): a few vertices are kept, every step adds the oracle's vertex
for the current gradient and moves to the nearest point of their hull, dropping those that it does not need. It ends
after finitely many steps, unlike the plain method, whose steps shrink; rows that are done are not solved again.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..errors import SolverError
from ..oracles import Oracle
from .base import solve_invented

# Relative to the terms it is made of: a gap or reduced cost below this is rounding.
ROUNDING = 1e-11


@dataclass
class Hull:
    """The vertices that one row's point is made of."""

    vertices: np.ndarray  # shape: (m, d)
    gram: np.ndarray  # vertices @ vertices.T
    weights: np.ndarray
    towards: np.ndarray  # vertices @ target

    def point(self) -> np.ndarray:
        """The convex combination."""
        return self.weights @ self.vertices

    def add(self, vertex: np.ndarray, target: np.ndarray) -> None:
        """One more vertex, of weight 0."""
        products = self.vertices @ vertex
        self.gram = np.block([[self.gram, products[:, None]], [products[None], np.array([[vertex @ vertex]])]])
        self.vertices = np.vstack([self.vertices, vertex])
        self.towards = np.append(self.towards, vertex @ target)
        self.weights = np.append(self.weights, 0.0)

    def correct(self) -> None:
        """Moves to the nearest point of the hull."""
        while True:
            free = self._nearest_of_affine_hull()
            if free.min() >= 0:
                self.weights = free
                return
            down = free < self.weights
            with np.errstate(divide="ignore", invalid="ignore"):
                steps = np.where(down & (free < 0), self.weights / (self.weights - free), np.inf)
            self.weights = self.weights + min(1.0, steps.min()) * (free - self.weights)
            keep = self.weights > 1e-14
            keep[steps.argmin()] = False  # the vertex that the step ends at, whatever rounding left of it
            self.vertices, self.gram = self.vertices[keep], self.gram[np.ix_(keep, keep)]
            self.towards, self.weights = self.towards[keep], self.weights[keep] / self.weights[keep].sum()

    def _nearest_of_affine_hull(self) -> np.ndarray:
        if len(self.weights) == 1:
            return np.ones(1)
        gram, towards = self.gram, self.towards
        # in differences to the first vertex: for 0/1 vertices these entries are exact integers
        matrix = gram[1:, 1:] - gram[1:, :1] - gram[:1, 1:] + gram[0, 0]
        right = towards[1:] - towards[0] - (gram[1:, 0] - gram[0, 0])
        try:
            rest = np.linalg.solve(matrix, right)
        except np.linalg.LinAlgError:
            rest = np.linalg.lstsq(matrix, right, rcond=None)[0]
        return np.append(1.0 - rest.sum(), rest)


class NearestPoints:
    r"""The minimiser over the hull of $c \cdot x + \frac\lambda2 \lVert x \rVert^2$, for every row of a batch.

    Attributes:
        points: float64 `[..., *cost_shape]` on the CPU; NaN in rows that have no solution.
        solves: how many rows the oracle was asked to solve, in all.
    """

    def __init__(self, oracle: Oracle, costs: Tensor, strength: float, tolerance: float, max_iterations: int) -> None:
        self.oracle, self.strength = oracle, strength
        self.lead = costs.shape[: costs.dim() - len(oracle.cost_shape)]
        self.width = math.prod(oracle.cost_shape)
        self.solves = 0
        self.costs = costs.detach().cpu().double().reshape(math.prod(self.lead), self.width).numpy()
        self.x = np.full_like(self.costs, np.nan)
        self.hulls: dict[int, Hull] = {}
        rows = np.arange(len(self.costs))
        first = self._solve(rows, self.costs, solve_all=True)
        for i in rows[np.isfinite(first).all(1)]:
            vertex = first[i : i + 1]
            self.hulls[i] = Hull(vertex, vertex @ vertex.T, np.ones(1), vertex @ self._target(i))
            self.x[i] = vertex
        rows = np.array(sorted(self.hulls), dtype=int)
        for _ in range(max_iterations):
            if len(rows) == 0:
                break
            gradients = self._gradients(rows)
            vertices = self._solve(rows, gradients)
            rows = rows[[self._step(i, g, v, tolerance) for i, g, v in zip(rows, gradients, vertices, strict=True)]]

    @property
    def points(self) -> Tensor:
        """See the class."""
        return torch.from_numpy(self.x).reshape(*self.lead, *self.oracle.cost_shape)

    def _target(self, i: int) -> np.ndarray:
        return -self.costs[i] / self.strength

    def _gradients(self, rows: np.ndarray) -> np.ndarray:
        return self.costs[rows] + self.strength * self.x[rows]

    def _step(self, i: int, gradient: np.ndarray, vertex: np.ndarray, tolerance: float) -> bool:
        """One step of row i; whether it has to go on."""
        if not np.isfinite(vertex).all():
            self.x[i] = np.nan
            del self.hulls[i]
            return False
        hull, x = self.hulls[i], self.x[i]
        gap = gradient @ (x - vertex)
        if gap <= max(tolerance, ROUNDING) * self._terms(i, vertex):
            return False
        if (hull.vertices == vertex).all(1).any():  # the gap is rounding after all
            return False
        hull.add(vertex, self._target(i))
        hull.correct()
        moved = hull.point()
        # what the cost falls by is at least 0 but for rounding, in which it could go round in circles
        falls = (gradient + self.strength / 2 * (moved - x)) @ (x - moved) > 0
        self.x[i] = moved
        return bool(falls)

    def _terms(self, i: int, vertex: np.ndarray) -> float:
        """The size of the terms that a gap is the difference of: the gradient itself may be one of equals."""
        return (np.abs(self.costs[i]) + self.strength * np.abs(self.x[i])) @ (np.abs(self.x[i]) + np.abs(vertex))

    def _solve(self, rows: np.ndarray, costs: np.ndarray, *, solve_all: bool = False) -> np.ndarray:
        """The oracle's vertices for some of the rows."""
        event = self.oracle.cost_shape
        self.solves += len(rows)
        if solve_all or getattr(self.oracle, "parameters", None):
            # the rows' own feasible sets go by position in the batch, so none can be left out
            batch = self.costs.copy()
            batch[rows] = costs
            given = torch.from_numpy(batch).reshape(*self.lead, *event)
            solutions = solve_invented(self.oracle, given)
            return solutions.reshape(-1, self.width).numpy()[rows]
        return self._solve_some(rows, torch.from_numpy(costs).reshape(len(rows), *event))

    def _solve_some(self, rows: np.ndarray, costs: Tensor) -> np.ndarray:
        try:
            return solve_invented(self.oracle, costs).reshape(-1, self.width).numpy()
        except SolverError as error:  # it counts among the rows that it saw
            error.rows = [int(rows[row]) for row in error.rows]
            error.args = (f"{error.args[0]} (in a later step of Frank-Wolfe; of the whole batch, rows {error.rows})",)
            raise

    def derivative(self, gradient: Tensor) -> Tensor:
        r"""The product of the points' Jacobian by the costs with `gradient`; the Jacobian is symmetric.

        It is $-\frac1\lambda$ times the orthogonal projection onto the directions of the face that the point lies in.
        The vertices at hand may span less than the face (at symmetric costs), so the oracle is asked for vertices of
        the face in the direction that the gradient has outside of their span, until there are none.
        """
        flat = gradient.detach().cpu().double().reshape(self.costs.shape).numpy()
        result = np.zeros_like(flat)
        bases, rest = {}, {}
        for i, hull in self.hulls.items():
            if not flat[i].any():
                continue
            bases[i] = _basis(hull.vertices[1:] - hull.vertices[0])
            rest[i] = flat[i] - bases[i].T @ (bases[i] @ flat[i])
        left = [i for i in rest if self._is_left(rest[i], flat[i])]
        while left:
            rows = np.array(left)
            gradients = self._gradients(rows)
            # a direction this small does not lead off the face
            sizes = 1e-6 * np.abs(self.costs[rows]).max(1) + 1e-6 * self.strength * np.abs(self.x[rows]).max(1)
            probes = np.stack([rest[i] / np.abs(rest[i]).max() for i in left]) * sizes[:, None] + gradients
            vertices = self._solve(rows, probes)
            found = [self._widen(*row, bases, rest) for row in zip(left, gradients, vertices, strict=True)]
            left = [i for i, new in zip(left, found, strict=True) if new and self._is_left(rest[i], flat[i])]
        for i in bases:
            result[i] = (rest[i] - flat[i]) / self.strength
        return torch.from_numpy(result).reshape(*self.lead, *self.oracle.cost_shape)

    @staticmethod
    def _is_left(rest: np.ndarray, whole: np.ndarray) -> bool:
        return bool(np.abs(rest).max() > 1e-9 * np.abs(whole).max())

    def _widen(self, i: int, gradient: np.ndarray, vertex: np.ndarray, bases: dict, rest: dict) -> bool:
        """Adds the direction to a vertex of the face to the basis; whether it was one, and new."""
        if not np.isfinite(vertex).all():
            return False
        x, direction = self.x[i], vertex - self.hulls[i].vertices[0]
        off = gradient @ (vertex - x)
        if off > 1e-9 * self._terms(i, vertex):
            return False
        size = np.linalg.norm(direction)
        for _ in range(2):  # twice, as once leaves rounding when the direction is nearly in the span
            direction = direction - bases[i].T @ (bases[i] @ direction)
        norm = np.linalg.norm(direction)
        if norm <= 1e-7 * size or size == 0:
            return False
        direction = direction / norm
        bases[i] = np.vstack([bases[i], direction])
        rest[i] = rest[i] - direction * (direction @ rest[i])
        return True


def _basis(directions: np.ndarray) -> np.ndarray:
    """Orthonormal rows that span the given ones."""
    if len(directions) == 0:
        return directions
    _, sizes, rows = np.linalg.svd(directions, full_matrices=False)
    return rows[sizes > 1e-9 * sizes.max()]
