"""Forest plots: one estimate with its interval per line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ehrtrack.errors import DataError
from ehrtrack.evaluation.metric_table import C_INDEX, Metric
from ehrtrack.plots.style import BLUE, DPI, GREY, INK, ORANGE, PALE, dress
from ehrtrack.privacy import count_text


@dataclass(frozen=True)
class ForestRow:
    """One line of `comparison_plot`: an estimate with its interval; is_highlighted marks the chosen model."""

    label: str
    estimate: float
    lower: float
    upper: float
    is_highlighted: bool = False


def comparison_plot(
    rows: Sequence[ForestRow], *, quantity: str = "test C-index", reference: float | None = 0.5
) -> Figure:
    """Forest plot with one line per model, from top to bottom in the given order.

    Parameters
    ----------
    rows : at least one
    quantity : what the numbers are; labels the axis
    reference : where to draw the line of no effect (0.5 for a C-index, 0 for a difference)
    """
    if not rows:
        raise DataError("no rows to compare; run `ehrtrack compare` where runs of this cohort are finished")
    longest = max(len(row.label) for row in rows)
    figure = Figure(figsize=(5.8 + 0.075 * longest, 1.3 + 0.42 * len(rows)), dpi=DPI, layout="constrained")
    ax = figure.subplots()
    if reference is not None:
        ax.axvline(reference, color=GREY, linestyle="--", linewidth=1.2)
    for number, row in enumerate(rows):
        y = len(rows) - 1 - number
        colour = ORANGE if row.is_highlighted else BLUE
        ax.plot([row.lower, row.upper], [y, y], color=colour, linewidth=2, solid_capstyle="butt")
        ax.plot(row.estimate, y, "o" if not row.is_highlighted else "D", color=colour, markersize=7)
        text = f"{row.estimate:.3f} [{row.lower:.3f}, {row.upper:.3f}]"
        ax.annotate(
            text,
            (1.02, y),
            xycoords=("axes fraction", "data"),
            va="center",
            fontsize=9,
            annotation_clip=False,
        )
    ax.set_yticks(range(len(rows)), [row.label for row in rows][::-1])
    ax.set_ylim(-0.6, len(rows) - 0.4)
    ax.set_xlabel(f"{quantity} (95 % interval)")
    dress(ax, "", grid_axis="x")
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)
    return figure


def subgroup_forest(table: pl.DataFrame, gaps: pl.DataFrame, metric: Metric = C_INDEX) -> Figure:
    """Score of each group with its interval, by attribute; each title shows the gap between best and worst group.

    Parameters
    ----------
    table, gaps : from `survival.subgroups.score_subgroups`; groups without a score are listed without a point
    metric : that the groups are scored by; its key is the column
    """
    attributes = table["attribute"].unique(maintain_order=True).to_list()
    n_lines = table.height + len(attributes) - 1  # a title for each attribute; "all" needs none
    figure = Figure(figsize=(9.4, 1.2 + 0.31 * n_lines), dpi=DPI, layout="constrained")
    ax = figure.subplots()
    ax.axvline(0.5, color=GREY, linestyle="--", linewidth=1.2)
    overall = table.filter(pl.col("attribute") == "all")[metric.key][0]
    if overall is not None:
        ax.axvline(overall, color=PALE, linewidth=1.6, zorder=0)
    y, ticks, labels = float(n_lines), [], []
    for attribute in attributes:
        if attribute != "all":
            y -= 1
            _attribute_title(ax, y, attribute, gaps.filter(pl.col("attribute") == attribute))
        for row in table.filter(pl.col("attribute") == attribute).iter_rows(named=True):
            y -= 1
            ticks.append(y)
            labels.append(row["group"].replace("$", r"\$"))  # names out of the data are no formulas
            _group_line(ax, y, row, metric.key)
    ax.set_yticks(ticks, labels)
    ax.set_ylim(-0.7, n_lines)
    ax.set_xlabel(f"test {metric.title} (95 % bootstrap interval)")
    dress(ax, f"{metric.title} by group of subjects", grid_axis="x")
    ax.annotate(
        "events / subjects",
        (1.02, 1.0),
        xycoords="axes fraction",
        va="bottom",
        fontsize=8.5,
        color=GREY,
        annotation_clip=False,
    )
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)
    return figure


def _attribute_title(ax: Axes, y: float, attribute: str, gap: pl.DataFrame) -> None:
    title = attribute.replace("_", " ")
    if gap.height:
        row = gap.row(0, named=True)
        title += f": gap {row['gap']:.3f} [{row['lower']:.3f}, {row['upper']:.3f}], {row['highest']} − {row['lowest']}"
        title = title.replace("$", r"\$")
    ax.annotate(title, (0.0, y), xycoords=("axes fraction", "data"), va="center", fontsize=9, weight="bold", color=INK)


def _group_line(ax: Axes, y: float, row: dict[str, Any], score: str) -> None:
    text = f"{count_text(row['n_events'])} / {count_text(row['n_subjects'])}"
    if row[score] is None:
        text += "  too few"
    else:
        colour = ORANGE if row["attribute"] == "all" else BLUE
        ax.plot([row["lower"], row["upper"]], [y, y], color=colour, linewidth=2, solid_capstyle="butt")
        ax.plot(row[score], y, "D" if row["attribute"] == "all" else "o", color=colour, markersize=6)
        text = f"{text}   {row[score]:.3f} [{row['lower']:.3f}, {row['upper']:.3f}]"
    ax.annotate(text, (1.02, y), xycoords=("axes fraction", "data"), va="center", fontsize=8.5, annotation_clip=False)
