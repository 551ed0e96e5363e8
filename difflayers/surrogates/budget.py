"""How much a search may still spend."""

from __future__ import annotations

import time

from .. import _checks

__all__ = ["Budget", "Exhausted"]

DEFAULT_ITERATIONS = 100


class Exhausted(Exception):
    """Ends a search from wherever it is; never reaches the user.

    Attributes:
        reason: the status of the result.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Budget:
    """Counts rows of the objective, rows of the oracle, iterations and seconds against their limits.

    Args:
        function: the caller, for messages.
        iterations, evaluations, oracle_calls, seconds: None = no limit; with no limit at all, 100 iterations.
    """

    def __init__(
        self,
        function: str,
        *,
        iterations: int | None = None,
        evaluations: int | None = None,
        oracle_calls: int | None = None,
        seconds: float | None = None,
    ) -> None:
        given = {"iterations": iterations, "evaluations": evaluations, "oracle_calls": oracle_calls}
        self.limits: dict[str, int] = {
            name: _checks.integer(function, name, value, minimum=1)
            for name, value in given.items()
            if value is not None
        }
        self.seconds = None if seconds is None else _checks.number(function, "seconds", seconds, above=0.0)
        if not self.limits and self.seconds is None:
            self.limits["iterations"] = DEFAULT_ITERATIONS
        self.used = dict.fromkeys(given, 0)
        self.started = time.perf_counter()

    def elapsed(self) -> float:
        """Seconds since the search began."""
        return time.perf_counter() - self.started

    def left(self, what: str, wanted: int) -> int:
        """How many of the wanted units may be spent, at least 1; raises `Exhausted` when none."""
        if self.seconds is not None and self.elapsed() >= self.seconds:
            raise Exhausted("seconds")
        allowed = wanted if what not in self.limits else min(wanted, self.limits[what] - self.used[what])
        if wanted > 0 and allowed <= 0:
            raise Exhausted(what)
        return allowed

    def spend(self, what: str, count: int) -> None:
        """Counts units that are about to be spent."""
        self.used[what] += count

    def fraction(self) -> float:
        """The spent share, in [0, 1], of the budget that is nearest to its end."""
        shares = [self.used[name] / limit for name, limit in self.limits.items()]
        if self.seconds is not None:
            shares.append(self.elapsed() / self.seconds)
        return min(1.0, max(shares))
