"""Bases of linear programs that were solved before, and the proof by reduced costs that one is optimal again."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from typing import Any

import numpy as np

from ._ortools import solver_module
from ._rows import LinearConstraints

TOLERANCE = 1e-9  # of reduced costs, relative to the row's largest cost; the solvers' own is 1e-6
LARGEST = 1e5  # entry of an inverse: beyond it the rounding of reduced costs would come near the tolerance
ENTRIES = 1 << 24  # of all tables together (128 MiB); one may take a quarter of it
MET = 16  # vertices that are known to have come up, for each basis
TRIALS = 16  # bases to learn on trust; then one for two hits, or for twice as many solves
SMALL = 1 << 16  # multiplications that take no longer than a look at the first reduced costs alone would save
DECIMALS = 9  # vertices that agree to so many are the same one
FIRST = 32  # reduced costs that are looked at first: of a basis that is not optimal one of them is mostly negative


class Certificate:
    """A basis: its vertex, and the table that turns costs into the reduced costs whose signs decide.

    With F the basic variables and R the active rows, K = A[R, F] is square. The multipliers of the rows are
    c_F K^-1, the reduced costs of the other variables c_N - c_F K^-1 A[R, N].

    Attributes:
        solution: the vertex, [n].
        table: [k, columns], K^-1 for the rows and K^-1 A[R, N] for the variables, each with the sign that makes
            "not negative" the condition.
    """

    def __init__(self, solution: np.ndarray, basic: np.ndarray, table: np.ndarray, other: np.ndarray, signs: Any):
        self.solution, self.basic, self.table = solution, basic, table
        self.other, self.signs = other, signs  # of the last columns of the table: variables, and +1 at lower bounds

    def proves(self, costs: np.ndarray) -> np.ndarray:
        """Whether the vertex is optimal, for each row of costs `[B, n]` whose largest magnitude is 1."""
        width = self.table.shape[1]
        if len(costs) * self.table.size <= SMALL or width <= FIRST:
            return self._margins(costs, 0, width).min(axis=1, initial=0.0) >= -TOLERANCE
        good = self._margins(costs, 0, FIRST).min(axis=1) >= -TOLERANCE
        good[good] = self._margins(costs[good], FIRST, width).min(axis=1) >= -TOLERANCE
        return good

    def _margins(self, costs: np.ndarray, start: int, stop: int) -> np.ndarray:
        margins = costs[:, self.basic] @ self.table[:, start:stop]
        rows = self.table.shape[1] - len(self.other)  # columns before the variables'
        first = max(start, rows)
        if first < stop:
            some = slice(first - rows, stop - rows)
            margins[:, first - start :] += costs[:, self.other[some]] * self.signs[some]
        return margins


class Certificates:
    """A bounded memory of bases, the least recently used one forgotten first; any number of threads may use it.

    Copies of an oracle share it, since entries are kept under their right-hand sides; pickling and deep copies
    start afresh.
    """

    def __init__(self, size: int) -> None:
        self.size, self.hits = size, 0
        self._lock = threading.Lock()
        self._entries: OrderedDict[tuple[bytes, bytes], Certificate] = OrderedDict()
        self._of: dict[bytes, dict[bytes, Certificate]] = {}  # the same ones, by instance
        self._met: OrderedDict[bytes, bool] = OrderedDict()
        self._solved, self._learnt, self._numbers = 0, 0, 0  # rows, bases, and entries of tables
        self._vertices: dict[bytes, tuple[list[tuple[bytes, Certificate]], np.ndarray]] = {}

    def __reduce__(self) -> Any:
        return Certificates, (self.size,)

    def __len__(self) -> int:
        return len(self._entries)

    def find(self, costs: np.ndarray, keys: list[bytes]) -> list[np.ndarray | None]:
        """The optimal vertex of each row for which a known basis proves one.

        Args:
            costs: [B, n], of largest magnitude 1.
            keys: which instance each row is of.
        """
        found: list[np.ndarray | None] = [None] * len(costs)
        places: dict[bytes, list[int]] = {}
        for i, key in enumerate(keys):
            places.setdefault(key, []).append(i)
        for key, places_of_key in places.items():
            known, vertices = self._known(key)
            which = np.array(places_of_key)
            if not known:
                continue
            # only the cheapest of the vertices can be optimal; a vertex may have several bases, the last the likeliest
            values = costs[which] @ vertices.T
            cheapest = values <= values.min(axis=1, keepdims=True) + TOLERANCE * (1 + np.abs(values))
            trials: dict[int, list[int]] = {}
            for i, j in zip(*(places.tolist() for places in np.nonzero(cheapest)), strict=True):
                trials.setdefault(j, []).append(places_of_key[i])
            for j in sorted(trials, reverse=True):
                name, certificate = known[j]
                rows = [i for i in trials[j] if found[i] is None]
                proved = [i for i, good in zip(rows, certificate.proves(costs[rows]).tolist(), strict=True) if good]
                for i in proved:
                    found[i] = certificate.solution
                if proved:
                    self._used(key, name, len(proved))
        return found

    def worthwhile(self, key: bytes, solution: np.ndarray) -> bool:
        """Whether to learn the basis of a row that had to be solved.

        That costs about as much as the solve. Many vertices come up once and never again, and where costs move far,
        or vertices are degenerate and have many bases, no basis comes back: what has not paid so far is tried seldom.
        """
        code = hashlib.blake2b(np.round(solution, DECIMALS).tobytes() + key, digest_size=16).digest()
        with self._lock:
            self._solved += 1
            known = self._met.pop(code, False)
            self._met[code] = True
            while len(self._met) > MET * self.size:
                self._met.popitem(last=False)
            return known and self._learnt < TRIALS + self.hits // 2 + self._solved // (2 * TRIALS)

    def count(self, hits: int) -> None:
        """Counts rows that a certificate answered outside of `find`."""
        with self._lock:
            self.hits += hits

    def add(self, key: bytes, certificate: Certificate) -> None:
        """Remembers one, and forgets what is too much."""
        basis = np.concatenate([certificate.basic, certificate.other]).tobytes() + certificate.signs.tobytes()
        name = basis + certificate.solution.tobytes()
        with self._lock:
            self._learnt += 1
            if (key, name) not in self._entries:
                self._numbers += certificate.table.size
            self._entries[key, name] = certificate
            self._of.setdefault(key, {})[name] = certificate
            self._vertices.pop(key, None)
            while len(self._entries) > self.size or self._numbers > ENTRIES:
                (old, gone), forgotten = self._entries.popitem(last=False)
                self._numbers -= forgotten.table.size
                del self._of[old][gone]
                if not self._of[old]:
                    del self._of[old]
                self._vertices.pop(old, None)

    def _known(self, key: bytes) -> tuple[list[tuple[bytes, Certificate]], np.ndarray]:
        with self._lock:
            if key not in self._vertices:
                known = list(self._of.get(key, {}).items())
                if not known:
                    return [], np.zeros((0, 0))
                self._vertices[key] = known, np.stack([certificate.solution for _, certificate in known])
            return self._vertices[key]

    def _used(self, key: bytes, name: bytes, hits: int) -> None:
        with self._lock:
            self.hits += hits
            if (key, name) in self._entries:  # another thread may have pushed it out
                self._entries.move_to_end((key, name))


def normalised_rows(costs: np.ndarray) -> np.ndarray:
    """Each row divided by its largest magnitude; rows of zeros stay."""
    largest = np.abs(costs).max(axis=1, keepdims=True, initial=0.0)
    mantissa, exponent = np.frexp(np.where(largest > 0, largest, 1.0))
    half = exponent // 2  # in two steps: 2^1074 itself is infinite in float64
    return np.ldexp(np.ldexp(costs, -half), half - exponent) / mantissa


def certificate_of(
    problem: LinearConstraints, right: np.ndarray, solution: np.ndarray, multipliers: np.ndarray, reduced: np.ndarray
) -> Certificate | None:
    """The basis of a solution that the simplex method found.

    Args:
        problem: the constraints.
        right: b_ub, then b_eq, of this row.
        solution: [n].
        multipliers: of the rows, for costs of magnitude 1.
        reduced: reduced costs of the variables, likewise.

    Returns:
        None where it is no vertex, or its basis is too large or too close to singular to prove anything.
    """
    matrix, lower, upper, n = problem.matrix, problem.lower, problem.upper, problem.n
    room = TOLERANCE * (1.0 + np.abs(solution))
    low, high = solution <= lower + room, solution >= upper - room
    slack = np.abs(right - matrix @ solution)
    equal = np.arange(len(right)) >= len(problem.b_ub)
    tight = slack <= TOLERANCE * (1.0 + problem.magnitudes @ np.abs(solution))
    tight[equal] = problem.independent_equations
    # in the basis come first what has a multiplier, and equations; a degenerate vertex needs a choice among the rest
    fixed = (low | high) & ((np.abs(reduced) > TOLERANCE) | (lower == upper))
    variables, urgent = np.flatnonzero(~fixed), equal | (np.abs(multipliers) > TOLERANCE)
    rows, bounds = np.flatnonzero(tight & urgent), np.zeros(0, dtype=np.int64)
    if len(rows) != len(variables):
        rows, bounds = np.flatnonzero(tight), np.flatnonzero((low | high) & ~fixed)
        if len(rows) + len(bounds) < len(variables) or len(rows) * n > 4 * ENTRIES:
            return None
        units = np.searchsorted(variables, bounds)
        chosen = _independent(_dense(matrix[rows][:, variables]), urgent[rows], units)
        if chosen is None:
            return None
        rows, bounds = rows[chosen[chosen < len(rows)]], bounds[chosen[chosen >= len(rows)] - len(rows)]
    fixed[bounds] = True
    basic, other = np.flatnonzero(~fixed), np.flatnonzero(fixed & (lower < upper))
    if len(basic) * n > ENTRIES // 4:
        return None
    try:
        inverse = np.linalg.inv(_dense(matrix[rows][:, basic]))
    except np.linalg.LinAlgError:
        return None
    signs = np.where(low[other], 1.0, -1.0)
    inequalities = ~equal[rows]  # multipliers of equations may have any sign
    table = np.concatenate([-inverse[:, inequalities], -(inverse @ _dense(matrix[rows][:, other])) * signs], axis=1)
    if not (np.abs(table) <= LARGEST).all() or not (np.abs(inverse) <= LARGEST).all():
        return None
    return Certificate(solution, basic, table, other, signs)


def _independent(normals: np.ndarray, urgent: np.ndarray, units: np.ndarray) -> np.ndarray | None:
    """Which of the normals (rows of a matrix, then unit vectors) make a basis of all directions; the urgent first."""
    scipy_linalg = solver_module("difflayers.oracles.LinearProgram", "scipy.linalg")
    size = normals.shape[1]
    lengths = np.linalg.norm(normals, axis=1, keepdims=True)
    # pivots go by length: the urgent ones, made long, come before the others as far as they are independent
    weights = np.where(urgent, 1e6, 1.0)[:, None] / np.where(lengths > 0, lengths, 1.0)
    columns = np.concatenate([normals * weights, np.eye(size)[units]]).T
    triangle, order = scipy_linalg.qr(columns, mode="r", pivoting=True)
    if size and np.abs(np.diagonal(triangle)[:size]).min() < 1e-7:
        return None
    return np.sort(order[:size])


def _dense(matrix: Any) -> np.ndarray:
    return matrix if isinstance(matrix, np.ndarray) else matrix.toarray()
