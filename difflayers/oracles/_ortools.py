"""What the oracles on OR-Tools share: its import, costs as integers, time that is left."""

from __future__ import annotations

import importlib
import math
import threading
import time
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
from torch import Tensor

# The sum of |cost| times range stays below 2^OBJECTIVE_BITS when costs become integers: far from the overflow of
# int64, and finer than the rounding of a sum of float64 by less than the number of variables.
OBJECTIVE_BITS = 50


def load(module: str) -> Any:
    """A module of OR-Tools, imported at first use.

    Raises:
        ImportError: OR-Tools is missing, or shares the process with a highspy that it cannot be loaded beside.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith("ortools"):
            raise
        raise ImportError(
            "difflayers.oracles: this oracle needs OR-Tools, which is not installed: pip install 'difflayers[solvers]'"
        ) from error
    except ImportError as error:
        explained = _clash(error)
        if explained is None:
            raise
        raise explained from error


def solver_module(function: str, module: str) -> Any:
    """A module of the `solvers` extra, SciPy's as a rule, imported when `function` first needs it.

    Raises:
        ImportError: it is missing, or clashes as `load` says.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise _clash(error) or ImportError(
            f"{function} needs {module.split('.')[0]}; install it with pip install 'difflayers[solvers]' ({error})"
        ) from error


def _clash(error: ImportError) -> ImportError | None:
    """The explanation of an error that comes of two libraries of HiGHS in one process."""
    if not ("undefined symbol" in str(error) and "Highs" in str(error)):
        return None
    return ImportError(
        "difflayers.oracles: OR-Tools cannot be loaded into a process that has already loaded highspy 1.15 or "
        "later (by itself or through cvxpy): both bring libraries of HiGHS of the same name "
        "(google/or-tools issue 5246): pip install 'highspy<1.15', or import ortools before cvxpy"
    )


def remaining(deadline: float | None) -> float | None:
    """Seconds until the deadline, not negative; None without one."""
    return None if deadline is None else max(0.0, deadline - time.monotonic())


def interruptible(solve: Callable[[], Any], interrupt: Callable[[], Any]) -> Any:
    """Runs a solver that releases the interpreter's lock, so that Ctrl-C ends it.

    Python acts on Ctrl-C when the main thread is back from the solver, so the main thread only waits here.
    """
    if threading.current_thread() is not threading.main_thread():
        return solve()
    results: list[Any] = []
    errors: list[BaseException] = []

    def work() -> None:
        try:
            results.append(solve())
        except BaseException as error:  # raised again by the main thread
            errors.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        thread.join()
    except KeyboardInterrupt:
        interrupt()
        thread.join()
        raise
    if errors:
        raise errors[0]
    return results[0]


def normalised(costs: np.ndarray) -> tuple[np.ndarray, int]:
    """Costs times the power of two 2^-e that brings the largest magnitude into [0.5, 1); exact but for underflow.

    Solvers have absolute tolerances, so costs of 1e-7 or 1e13 would otherwise be lost in them.
    """
    largest = float(np.abs(costs).max(initial=0.0))
    if largest == 0.0:
        return costs, 0
    exponent = math.frexp(largest)[1]
    half = exponent // 2  # in two steps: 2^1074 itself is infinite in float64
    return np.ldexp(np.ldexp(costs, -half), half - exponent), exponent


def restored(value: float, exponent: int) -> float:
    """`value` times 2^exponent, in float64 even where that overflows."""
    with np.errstate(over="ignore", under="ignore"):
        return float(np.ldexp(value, exponent))


def integer_costs(costs: np.ndarray, ranges: np.ndarray | float = 1.0) -> tuple[np.ndarray, int, float]:
    """Costs as integers of a power-of-two scale.

    Args:
        costs: float64, finite.
        ranges: the largest magnitude of each variable.

    Returns:
        Integers k, an exponent e and an error d, so that k 2^e differs from costs, summed over the variables at
        their ranges, by at most d 2^e.
    """
    scaled, exponent = normalised(costs)
    total = float((np.abs(scaled) * ranges).sum())
    if total == 0.0:
        return np.zeros(costs.shape, dtype=np.int64), 0, 0.0
    shift = OBJECTIVE_BITS - math.frexp(total)[1]
    exact = np.ldexp(scaled, shift)
    integers = np.rint(exact)
    error = float((np.abs(exact - integers) * ranges).sum())
    return integers.astype(np.int64), exponent - shift, error


def array(function: str, name: str, value: Any) -> np.ndarray:
    """A finite array of numbers, in the dtype it came in (bool becomes int64, low precision float32)."""
    if isinstance(value, Tensor):
        value = value.detach().cpu()
        value = value.numpy() if str(value.dtype) != "torch.bfloat16" else value.float().numpy()
    try:
        result = np.asarray(value)
    except ValueError:
        raise ValueError(f"{function}: argument '{name}' must be an array, got rows of different lengths") from None
    if result.dtype.kind == "b" or (
        result.size == 0 and result.dtype.kind == "f" and not isinstance(value, np.ndarray)
    ):
        result = result.astype(np.int64)
    if result.dtype.kind not in "iuf":
        raise TypeError(f"{function}: argument '{name}' must hold numbers, got dtype {result.dtype}")
    if result.dtype.kind == "f" and not np.isfinite(result).all():
        raise ValueError(f"{function}: argument '{name}' must be finite, got NaN or infinity")
    return result


def integer_sizes(sizes: np.ndarray, room: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sizes and the room for them, one row a constraint, as integers with the same feasible set.

    Integers stay as they are. Floats are read as the decimals they print as (0.1 + 0.2 fits in 0.3, which the sum in
    float64 does not) where the integers that come of it stay below 2^60 in all; else sizes are rounded up and room
    down at 2^-57 of that sum, so that nothing infeasible fits.

    Args:
        sizes: (constraints, n), not negative.
        room: (constraints,).
    """
    rows, limits = [], []
    for size, limit in zip(sizes, room, strict=True):
        row, bound = _integer_row(size, limit)
        rows.append(row)
        limits.append(bound)
    return np.array(rows, dtype=np.int64).reshape(sizes.shape), np.array(limits, dtype=np.int64)


def _integer_row(size: np.ndarray, limit: np.generic) -> tuple[list[int], int]:
    for digits in range(7):  # fast where there are few, exactly as below
        scaled = _times_power_of_ten(size, digits)
        if scaled is not None:
            common, total = int(np.gcd.reduce(scaled)) or 1, int(scaled.sum())
            room = math.floor(_decimal(limit) * 10**digits) // common
            return (scaled // common).tolist(), min(room, total // common)
    exact = [_decimal(entry) for entry in size]
    bound = _decimal(limit)
    denominator = math.lcm(*(entry.denominator for entry in exact), bound.denominator)
    row, room = [int(entry * denominator) for entry in exact], math.floor(bound * denominator)
    common = math.gcd(*row) or 1
    row, room = [entry // common for entry in row], room // common
    if sum(row) >= 2**60:
        shift = sum(row).bit_length() - 58
        row, room = [-(-entry >> shift) for entry in row], room >> shift
    return row, min(room, sum(row))


def _times_power_of_ten(size: np.ndarray, digits: int) -> np.ndarray | None:
    """The integers size times 10^digits, if there are such integers and their sum is below 2^53."""
    power = 10.0**digits
    largest = float(size.max(initial=0)) * power
    if len(size) * largest >= 2**53:
        return None
    if size.dtype.kind == "f" and largest * float(np.finfo(size.dtype).eps) > 0.25:
        return None  # several integers read as the same float, and the nearest need not be the shortest decimal
    integers = np.rint(size.astype(np.float64) * power)
    # division rounds correctly, so this is the float that the decimal reads as
    same = ((integers / power).astype(size.dtype) == size).all()
    return integers.astype(np.int64) if same else None


def _decimal(value: np.generic) -> Fraction:
    # str of a NumPy scalar is the shortest decimal that reads back as this float, in its own precision
    return Fraction(int(value)) if value.dtype.kind in "iu" else Fraction(str(value))
