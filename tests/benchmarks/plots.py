"""The plots of the benchmark pages: what it costs against the size of the problem, ours and peers', from the tables."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

Sections = list[dict[str, Any]]
Series = dict[str, list[tuple[float, float]]]  # name -> points (size, cost)
OURS, THEIRS = ("#0969da", "#1a7f37", "#8250df", "#bf8700", "#1b7c83"), ("#cf222e", "#6e7781", "#d4a72c", "#a475f9")


class Panel(NamedTuple):
    """One pair of axes: the series that are ours, those of others, what the axes are."""

    title: str
    ours: Series
    theirs: Series
    x: str
    y: str
    scales: tuple[str, str] = ("log", "log")


class Plot(NamedTuple):
    """A picture: below which heading it stands, what it shows in words, its panels."""

    heading: str
    name: str
    caption: str
    panels: Callable[[Sections], list[Panel]]


def table(sections: Sections, path: str, which: int = 0) -> dict[str, Any]:
    """A table by its headings, `above / below`, and its number there; KeyError where there is none."""
    above = ""
    for section in sections:
        heading, level = section["heading"], section["level"]
        above = heading if level <= 2 else above
        if path == (heading if level <= 2 else f"{above} / {heading}"):
            tables = [content for content in section["content"] if "columns" in content]
            if which < len(tables):
                return tables[which]
    raise KeyError(path)


def across(found: dict[str, Any], names: list[str]) -> Iterator[tuple[str, list[tuple[float, float]]]]:
    """Rows of a table whose columns are `batch x n`: microseconds a row against n, of those that are there."""
    sizes = [tuple(map(float, column.split(" x "))) for column in found["columns"][1:]]
    for row, values in zip(found["rows"], found["values"], strict=True):
        if row[0] in names:
            yield row[0], [(n, 1e3 * ms / batch) for (batch, n), ms in zip(sizes, values[1:], strict=True)
                           if ms is not None]  # fmt: skip


def sorting(sections: Sections) -> list[Panel]:
    """Values, ranks and matrix beside torch.sort, diffsort and torchsort."""
    found, axes = table(sections, "Speed / 1 thread"), ("n", "microseconds a row")
    values = dict(across(found, ["values, bitonic", "values, odd_even_merge"]))
    return [
        Panel("sorted values", values, dict(across(found, ["torch.sort", "diffsort, values"])), *axes),
        Panel("matrix and ranks", dict(across(found, ["matrix", "ranks"])),
              dict(across(found, ["diffsort, matrix", "torchsort, ranks"])), *axes),
    ]  # fmt: skip


def top_k(sections: Sections) -> list[Panel]:
    """Top-k beside difftopk and the hard sort; time as n grows."""
    found, growing = table(sections, "Speed / 1 thread"), table(sections, "Cost as n grows")
    theirs = dict(across(found, ["torch.sort", "difftopk, k = 5"]))
    points = [(values[0], values[3]) for values in growing["values"]]
    return [
        Panel("top-k, k = 5", dict(across(found, ["top-k, k = 5"])), theirs, "n", "microseconds a row"),
        Panel(
            "sorted values, batch x n = 2^18",
            {"bitonic": points},
            {},
            "n",
            "ns a comparator and row",
            ("log", "linear"),
        ),
    ]


def estimators(sections: Sections) -> list[Panel]:
    """One of n."""
    found, axes = table(sections, "Estimators: speed / 1 thread"), ("classes", "microseconds a row")
    ours = ["reinmax", "gumbel_softmax(hard=True)", "straight_through", "gumbel_rao, 10 samples"]
    theirs = ["torch gumbel_softmax(hard=True)", "official reinmax", "torch softmax"]
    return [Panel("one of n", dict(across(found, ours)), dict(across(found, theirs)), *axes)]


def projections(sections: Sections) -> list[Panel]:
    """Soft sort and soft rank; torchsort's times are those in parentheses."""
    found, panels = table(sections, "Soft sort and soft rank by projection"), []
    for kind in ("soft_sort", "soft_rank"):
        names = [f"{kind}, {norm}, temperature 1" for norm in ("l2", "kl")]
        theirs: Series = {}
        for row in found["rows"]:
            if row[0] in names:
                cells = zip(found["columns"][1:], row[1:], strict=True)
                points = [(column.split(" x "), re.search(r"\(([\d.]+),", cell)) for column, cell in cells]
                theirs[f"torchsort, {row[0].split(', ')[1]}"] = [
                    (float(n), 1e3 * float(cell[1]) / float(batch)) for (batch, n), cell in points if cell
                ]
        panels.append(Panel(kind, dict(across(found, names)), theirs, "n", "microseconds a row"))
    return panels


def oracles(sections: Sections) -> list[Panel]:
    """Shortest paths on grids: solving, and training steps, beside PyEPO."""
    found, panels = table(sections, "Graph oracles / Shortest paths against PyEPO"), []
    for work in ("solve", "Blackbox step", "SPO+ step"):
        rows = [(float(row[0].split(" x ")[0]), values) for row, values in
                zip(found["rows"], found["values"], strict=True) if row[1] == work]  # fmt: skip
        series = [[(2 * n * (n - 1), values[at]) for n, values in rows if values[at] is not None] for at in (2, 3)]
        panels.append(Panel(work, {"difflayers": series[0]}, {"PyEPO": series[1]} if series[1] else {},
                            "edges of the grid", "milliseconds a batch of 64"))  # fmt: skip
    return panels


def fitting(sections: Sections) -> list[Panel]:
    """Whole estimates: CPU time against the share of inliers, 2,000 points."""
    panels = []
    heading = "Whole estimates: synthetic scenes"
    for section in sections:
        for found in section["content"] if section["heading"] == heading else []:
            kind = re.match(r"([EFH]): N$", found.get("columns", [""])[0])
            if not kind:
                continue
            series: Series = {}
            for row in found["rows"]:
                for name, cell in zip(found["columns"][2:], row[2:], strict=True):
                    parts = cell.split(" / ")
                    if row[0] == "2000" and len(parts) == 3:
                        series.setdefault(name, []).append((float(row[1]), float(parts[2])))
            name = {"E": "essential matrix", "F": "fundamental matrix", "H": "homography"}[kind[1]]
            ours = {"difflayers": series.pop("difflayers", [])}
            panels.append(Panel(name, ours, series, "share of inliers", "CPU milliseconds, median", ("linear", "log")))
    return panels


PLOTS = {
    "sorting": [
        Plot("Speed / 1 thread", "sorting", "Microseconds a row, forward and backward, against n: values; matrix and "
             "ranks", sorting),
        Plot("Cost as n grows", "topk", "Top-k: microseconds a row against n; values: nanoseconds of a comparator "
             "against n", top_k),
    ],
    "choosing": [
        Plot("Estimators: speed / 1 thread", "estimators", "Microseconds a row, forward and backward, against the "
             "number of classes", estimators),
        Plot("Soft sort and soft rank by projection", "projections", "Microseconds a row, forward and backward, "
             "against n, beside torchsort", projections),
    ],
    "optimising": [Plot("Graph oracles / Shortest paths against PyEPO", "oracles", "Milliseconds a batch against the "
                        "number of edges, beside PyEPO", oracles)],
    "fitting": [Plot("Whole estimates: synthetic scenes", "ransac", "CPU milliseconds of an estimate from 2,000 "
                     "matches against the share of inliers", fitting)],
}  # fmt: skip


def shown(page: str, folder: Path) -> dict[str, list[str]]:
    """The lines that show the pictures that there are, by heading."""
    return {plot.heading: [f"![{plot.caption}](images/benchmarks-{plot.name}.svg)"] for plot in PLOTS.get(page, [])
            if (folder / f"benchmarks-{plot.name}.svg").exists()}  # fmt: skip


def draw(page: str, sections: Sections, folder: Path) -> dict[str, list[str]]:
    """Draws the plots of a page; a plot whose tables were not measured is left out."""
    for plot in PLOTS.get(page, []):
        try:
            panels = [panel for panel in plot.panels(sections) if any((panel.ours | panel.theirs).values())]
        except KeyError:
            panels = []
        if panels:
            folder.mkdir(parents=True, exist_ok=True)
            _picture(panels, folder / f"benchmarks-{plot.name}.svg")
        else:
            (folder / f"benchmarks-{plot.name}.svg").unlink(missing_ok=True)
    return shown(page, folder)


def _picture(panels: list[Panel], path: Path) -> None:
    import matplotlib as mpl
    from matplotlib.figure import Figure  # without pyplot: it needs no display

    # text stays text; the same picture from the same numbers, to the byte
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "difflayers", "font.size": 9}):
        figure = Figure(figsize=(max(5.5, 4.1 * len(panels)), 3.6), layout="constrained")
        every = figure.subplots(1, len(panels), squeeze=False)[0]
        for axes, panel in zip(every, panels, strict=True):
            for series, colours, style in ((panel.ours, OURS, "-o"), (panel.theirs, THEIRS, "--s")):
                for (name, points), colour in zip(series.items(), colours, strict=False):
                    axes.plot(*zip(*points, strict=True), style, color=colour, label=name, markersize=3.5)
            axes.set(title=panel.title, xlabel=panel.x, ylabel=panel.y, xscale=panel.scales[0], yscale=panel.scales[1])
            if panel.scales[1] == "linear":
                axes.set_ylim(bottom=0)
            axes.minorticks_off()
            axes.grid(alpha=0.25)
            axes.spines[["top", "right"]].set_visible(False)
        labels = [axes.get_legend_handles_labels()[1] for axes in every]
        if len(panels) > 1 and all(names == labels[0] for names in labels):
            handles = every[0].get_legend_handles_labels()[0]
            figure.legend(handles, labels[0], loc="outside lower center", ncols=len(handles), frameon=False)
        else:
            for axes in every:
                axes.legend(frameon=False, fontsize=8)
        figure.savefig(path, metadata={"Date": None})
