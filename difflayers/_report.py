"""What `difflayers.diagnostics.compare` returns: figures as a table and as a plot."""

from __future__ import annotations

from dataclasses import dataclass
from os import PathLike
from typing import Any

from torch import Tensor

HEAD = ("estimator", "bias", "error", "std", "rmse", "cosine", "losses", "time")
SIGNIFICANT = 3  # standard errors
ROUNDING = 1e-5  # what float32 makes of a bias of 0, where there is no variance


@dataclass(frozen=True)
class Row:
    """The figures of one estimator. Norms are over all logits, relative to the norm of the exact gradient.

    Attributes:
        name: as given.
        bias: of the mean gradient, $\\|\\bar g - g^*\\| / \\|g^*\\|$.
        standard_error: what an unbiased estimator's `bias` would come out as, for the noise of the mean: std / sqrt(N).
        std: of one gradient, $\\sqrt{\\operatorname{tr} \\operatorname{Cov} g} / \\|g^*\\|$.
        rmse: of one gradient, $\\sqrt{\\mathbb{E} \\|g - g^*\\|^2} / \\|g^*\\|$.
        cosine: of the angle between the mean gradient and the exact one.
        evaluations: of the loss for one gradient.
        seconds: for one gradient.
    """

    name: str
    bias: float
    standard_error: float
    std: float
    rmse: float
    cosine: float
    evaluations: float
    seconds: float

    @property
    def significant(self) -> bool:
        """Whether the bias is more than three standard errors: more than noise and rounding explain."""
        return not self.bias <= SIGNIFICANT * self.standard_error + ROUNDING


class Report:
    """Bias and variance of estimators on one loss. `str(report)` is an aligned table.

    Attributes:
        rows: a `Row` for each estimator, in the order given.
        exact: the exact gradient, in the shape of the logits.
        samples: the number of gradients that each row was made of.
    """

    def __init__(self, rows: list[Row], exact: Tensor, samples: int) -> None:
        self.rows, self.exact, self.samples = rows, exact, samples

    def __getitem__(self, name: str) -> Row:
        """The row of the estimator of this name."""
        for row in self.rows:
            if row.name == name:
                return row
        raise KeyError(f"difflayers.diagnostics.Report: there is no row {name!r}, only {[r.name for r in self.rows]}")

    def __repr__(self) -> str:
        return f"Report({[row.name for row in self.rows]}, samples={self.samples})"

    def _cells(self) -> list[tuple[str, ...]]:
        fastest = min(row.seconds for row in self.rows)
        return [
            (
                row.name,
                f"{row.bias:.3f}" if row.significant else f"({row.bias:.3f})",
                f"{row.standard_error:.3f}",
                f"{row.std:.2f}",
                f"{row.rmse:.2f}",
                f"{row.cosine:.3f}",
                f"{row.evaluations:g}",
                f"{row.seconds / fastest:.1f}x",
            )
            for row in self.rows
        ]

    def _legend(self) -> str:
        return (
            f"{self.samples} gradients each, relative to the norm of the exact one; error: standard error of the bias; "
            f"(bias): within {SIGNIFICANT} standard errors of 0; std, rmse: of one gradient; "
            f"losses: evaluations for one gradient; time: of one gradient, relative to the fastest"
        )

    def __str__(self) -> str:
        table = [HEAD, *self._cells()]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = []
        for cells in table:
            padded = [cells[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(cells[1:], widths[1:], strict=True))]
            lines.append("  ".join(padded).rstrip())
        return "\n".join([*lines, *self._legend().split("; ")])

    def to_markdown(self) -> str:
        """The table in Markdown."""
        lines = [f"| {' | '.join(cells)} |" for cells in (HEAD, *self._cells())]
        lines.insert(1, f"|---|{'---:|' * (len(HEAD) - 1)}")
        return "\n".join([*lines, "", f"{self._legend()}."])

    def plot(self, where: str | PathLike[str] | Any | None = None) -> Any:
        """Draws bias against standard deviation: the nearer to the lower left corner, the better.

        Args:
            where: a path to write a picture to, or the matplotlib axes to draw into; None does neither.

        Returns:
            The matplotlib figure.

        Raises:
            ImportError: matplotlib is missing.
        """
        try:
            from matplotlib.figure import Figure  # without pyplot: it needs no display
        except ImportError:
            raise ImportError(
                "difflayers.diagnostics.Report.plot needs matplotlib: pip install 'difflayers[examples]'"
            ) from None
        if where is None or isinstance(where, (str, PathLike)):
            figure = Figure(figsize=(7, 5), layout="constrained")
            axes = figure.subplots()
        else:
            axes, figure = where, where.figure
        colors = []
        for row in self.rows:
            drawn = axes.errorbar(row.std, row.bias, yerr=row.standard_error, fmt="o", capsize=3, markersize=5)
            colors.append(drawn[0].get_color())
        axes.set(
            xlabel="standard deviation of one gradient, relative",
            ylabel="bias of the mean gradient, relative",
            title=f"{self.samples} gradients each, error bars: standard error of the bias",
        )
        axes.title.set_fontsize("medium")
        if all(row.std > 0 for row in self.rows):
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter("{x:g}")
            axes.xaxis.set_minor_formatter("{x:g}")
        axes.margins(x=0.25, y=0.1)
        axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
        axes.axhline(0.0, color="0.8", zorder=0)
        self._label(axes, figure, colors)
        if isinstance(where, (str, PathLike)):
            figure.savefig(where, dpi=120)
        return figure

    def _label(self, axes: Any, figure: Any, colors: list[Any]) -> None:
        """Writes each name beside its point, moved up where it would cover another name or point."""
        figure.draw_without_rendering()
        scale = 72 / figure.dpi
        places = [axes.transData.transform((row.std, row.bias)) * scale for row in self.rows]  # in points
        taken = [(x - 4, x + 4, y - 3) for x, y in places]  # left, right, bottom of what is drawn
        for i in sorted(range(len(self.rows)), key=lambda i: (self.rows[i].bias, self.rows[i].std)):
            row, (x, y) = self.rows[i], places[i]
            left, right, up = x + 6, x + 6 + 4.6 * len(row.name), 4.0
            while any(left < end and right > start and abs(y + up - bottom) < 9 for start, end, bottom in taken):
                up += 2
            taken.append((left, right, y + up))
            axes.annotate(
                row.name, (row.std, row.bias), (6, up), textcoords="offset points", fontsize=8, color=colors[i]
            )
