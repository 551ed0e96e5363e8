"""What a SurCo search returns."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from .. import _checks

__all__ = ["SurCoRecord", "SurCoResult"]

AXES = ("evaluations", "oracle_calls", "seconds", "iteration")


class SurCoRecord(NamedTuple):
    """The state of a search after one iteration.

    Attributes:
        iteration: from 0; 0 is the initialisation.
        objective: the best value so far; never rises.
        current: the value at the newest solution of every start; NaN where there is none.
        phases: what every start did: "linearise" or "gradient".
        evaluations: solutions that the objective was called with so far.
        oracle_calls: rows that the oracle solved so far.
        seconds: since the search began.
        distinct: different feasible solutions evaluated so far.
        restarts: of all starts so far.
        failed: rows without a solution so far (an oracle with on_failure="nan").
        undefined: solutions at which the objective or its gradient was NaN so far.
    """

    iteration: int
    objective: float
    current: tuple[float, ...]
    phases: tuple[str, ...]
    evaluations: int
    oracle_calls: int
    seconds: float
    distinct: int
    restarts: int
    failed: int
    undefined: int


class SurCoResult(NamedTuple):
    """The best solution that a search saw.

    Attributes:
        solution: `[*cost_shape]`, feasible: returned by the oracle, or given by the user as a start or by `polish`.
        objective: its value, `[]`, as the objective returned it.
        costs: `[*cost_shape]`, linear costs that the solution minimises; None when it came from a start or `polish`.
        history: one `SurCoRecord` for every iteration.
        status: why the search ended: the name of the budget that was spent ("iterations", "evaluations",
            "oracle_calls", "seconds"), "converged" (restarts are used up, or find nothing new), "callback",
            "interrupted" (Ctrl-C), or "prior" (one solve at a network's costs).

    Example:
        >>> import torch, difflayers as dl
        >>> search = dl.surrogates.SurCo(dl.oracles.TopK(4, 2))
        >>> result = search.solve(lambda x: (x @ torch.arange(4.0) - 4).square(), iterations=10)
        >>> result.solution, result.objective
        (tensor([0., 1., 0., 1.]), tensor(0.))
    """

    solution: Tensor
    objective: Tensor
    costs: Tensor | None
    history: list[SurCoRecord]
    status: str

    def plot(self, x: str = "evaluations", *, axes: Any = None) -> Any:
        """Draws the trace: the best value so far, and the starts' current values as dots.

        Args:
            x: "evaluations", "oracle_calls", "seconds" or "iteration".
            axes: of matplotlib; default: of a new figure.

        Returns:
            The axes; `axes.figure.savefig(path)` writes the picture.

        Raises:
            ImportError: matplotlib is missing.
        """
        function = "difflayers.surrogates.SurCoResult.plot"
        x = _checks.choice(function, "x", x, AXES)
        if axes is None:
            try:
                from matplotlib.figure import Figure  # without pyplot: needs no display, leaves no global state
            except ImportError as error:
                raise ImportError(
                    f"{function}: drawing needs matplotlib; run: pip install 'difflayers[examples]'"
                ) from error
            axes = Figure(figsize=(6, 4), layout="constrained").subplots()
        at = [getattr(record, x) for record in self.history]
        for start in range(max((len(record.current) for record in self.history), default=0)):
            values = [record.current[start] for record in self.history]
            axes.plot(at, values, ".", color="#8c959f", markersize=3)
        axes.step(at, [record.objective for record in self.history], where="post", color="#0969da")
        axes.set(xlabel=x.replace("_", " "), ylabel="objective", title=f"best {float(self.objective):.6g}")
        return axes
