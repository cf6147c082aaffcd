"""Figures of a study that compare configurations over their repeats."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any

import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from ehrtrack.data.labels import of_any_cause
from ehrtrack.errors import DataError
from ehrtrack.evaluation.labels import apart
from ehrtrack.evaluation.metric_table import METRICS, Metric
from ehrtrack.evaluation.repeats import Difference
from ehrtrack.plots.style import BLUE, COLOURS, DPI, GREEN, GREY, INK, ORANGE, PALE, RED, dress, panels
from ehrtrack.plots.survival import draw_kaplan_meier, group_labels
from ehrtrack.survival.calibration import risk_groups
from ehrtrack.survival.metrics import checked_predictions

MARKERS = ("o", "s", "D", "^", "v", "P", "X", "*")
MOST_BANDS = 6
"""Of as many lines bands can be told apart."""
FINDINGS = {"better": GREEN, "worse": RED, "equivalent": BLUE, "no difference shown": GREY}


def label_curve_plot(curves: pl.DataFrame, needed: pl.DataFrame | None = None) -> Figure:
    """Test score by number of labels, one line per model, with a band of one standard deviation over the repeats.

    Of more than `MOST_BANDS` models only the best network and the best baseline at the most labels have a band.

    Parameters
    ----------
    curves : from `label_curve.label_curves`; baselines are drawn dashed
    needed : from `label_curve.label_efficiency`; the target is drawn, and where the curves reach it
    """
    metric = METRICS[_known(curves)["metric"][0]]
    figure, (ax,) = panels(1, width=9.6, height=4.8)
    banded = _banded(curves, metric)
    for (model, of_model), (colour, marker) in zip(
        curves.group_by("model", maintain_order=True), _styles(), strict=False
    ):
        x, y = of_model["n_labels"].to_numpy(), of_model["score"].to_numpy()
        sd = of_model["sd"].fill_null(0.0).to_numpy()
        dashes = "-" if of_model["is_transformer"][0] else "--"
        if model[0] in banded:
            ax.fill_between(x, y - sd, y + sd, color=colour, alpha=0.13, linewidth=0)
        ax.plot(x, y, dashes, color=colour, marker=marker, markersize=5, linewidth=1.8, label=_plain(model[0]))
    if needed is not None and needed.height:
        ax.axhline(needed["target"][0], color=GREY, linestyle=":", linewidth=1.4)
        reached = needed.filter("is_reached")
        ax.plot(reached["n_labels"], reached["target"], "o", color="white", markeredgecolor=INK, markersize=8, zorder=3)
    ax.set_xscale("log")
    _number_ticks(ax, sorted(set(curves["n_labels"].to_list())))
    ax.set(xlabel="labelled training subjects", ylabel=f"test {metric.title}")
    of_whom = "" if len(banded) == curves["model"].n_unique() else ", of the best network and the best baseline"
    dress(ax, f"{metric.title} by the number of labels (band: 1 sd over the repeats{of_whom})")
    _legend_beside(ax)
    return figure


def _banded(curves: pl.DataFrame, metric: Metric) -> list[str]:
    """The models that have a band."""
    if curves["model"].n_unique() <= MOST_BANDS:
        return curves["model"].unique().to_list()
    last = curves.filter(pl.col("n_labels") == curves["n_labels"].max())
    best_first = last.sort("score", descending=metric.better == "higher")
    return best_first.unique("is_transformer", keep="first", maintain_order=True)["model"].to_list()


def performance_plot(table: pl.DataFrame, metric: Metric, *, cost: str, title: str) -> Figure:
    """Test score by cost; steps join the configurations that no cheaper one equals.

    Parameters
    ----------
    table : from `study_table.study_table`; configurations without the cost or the score are left out
    cost : column of the table, such as ``n_trainable``, ``seconds`` or ``cost``
    title : of the axis
    """
    column = f"test_{metric.key}"
    known = _known(table.drop_nulls([cost, column]).filter(pl.col(cost) > 0), what=f"configurations with {cost}")
    figure, (ax,) = panels(1, width=9.6, height=4.8)
    front = pareto_front(known[cost].to_list(), known[column].to_list(), metric)
    ax.step(known[cost].gather(front), known[column].gather(front), where="post", color=PALE, linewidth=2.2, zorder=0)
    for place, (row, (colour, marker)) in enumerate(zip(known.iter_rows(named=True), _styles(), strict=False)):
        sd = row[f"{column}_sd"] or 0.0
        ax.errorbar(row[cost], row[column], yerr=sd, color=colour, elinewidth=1.2, zorder=1)
        is_front = place in front
        ax.plot(
            row[cost],
            row[column],
            marker,
            color=colour,
            markersize=8,
            markerfacecolor=colour if is_front else "white",
            label=_plain(row["configuration"]),
        )
    ax.set_xscale("log")
    ax.set(xlabel=title, ylabel=f"test {metric.title} (bar: 1 sd)")
    dress(ax, f"{metric.title} by {title} (filled: none that is cheaper is as good)")
    _legend_beside(ax)
    return figure


def pareto_front(costs: Sequence[float], scores: Sequence[float], metric: Metric) -> list[int]:
    """Indices of the points that no other of equal or lower cost equals, by rising cost.

    >>> from ehrtrack.evaluation.metric_table import C_INDEX
    >>> pareto_front([30, 10, 20], [0.72, 0.70, 0.69], C_INDEX)
    [1, 0]
    """
    front: list[int] = []
    for place in sorted(range(len(costs)), key=lambda one: (costs[one], metric.shortfall(scores[one]))):
        if not front or metric.shortfall(scores[place]) < metric.shortfall(scores[front[-1]]):
            front.append(place)
    return front


def learning_curves(table: pl.DataFrame, *, quantity: str) -> Figure:
    """A metric by epoch, one colour per configuration: thin lines for repeats, a thick one for their mean.

    Parameters
    ----------
    table : configuration, repeat, epoch (from 1), value
    quantity : what the values are; labels the axis
    """
    figure, (ax,) = panels(1, width=9.6, height=4.8)
    for (name, of_one), (colour, marker) in zip(
        _known(table).group_by("configuration", maintain_order=True), _styles(), strict=False
    ):
        repeats = of_one.partition_by("repeat", maintain_order=True)
        for one in repeats if len(repeats) > 1 else ():
            ax.plot(one.sort("epoch")["epoch"], one.sort("epoch")["value"], color=colour, linewidth=0.7, alpha=0.5)
        mean = of_one.group_by("epoch").agg(pl.col("value").mean(), pl.len()).sort("epoch")
        mean = mean.filter(pl.col("len") == len(repeats))
        ax.plot(mean["epoch"], mean["value"], color=colour, marker=marker, markersize=4, label=_plain(name[0]))
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    ax.set(xlabel="epoch", ylabel=quantity)
    dress(ax, f"{quantity[:1].upper()}{quantity[1:]} by epoch")
    _legend_beside(ax)
    return figure


def calibration_panels(tables: Mapping[str, pl.DataFrame], *, n_columns: int = 3) -> Figure:
    """Observed by predicted risk at the horizon, one panel per configuration, all with the same axes.

    Parameters
    ----------
    tables : by configuration, a run's ``evaluation/calibration.csv``: predicted, observed, lower, upper and, where
        there are several days, horizon_days, of which the last is drawn
    """
    shown = {name: _last_day(_known(table)) for name, table in tables.items()}
    end = max(float(table.select(pl.max_horizontal("predicted", "upper").max()).item()) for table in shown.values())
    end = min(1.0, 1.05 * end)
    figure, axes = _grid(len(shown), n_columns=n_columns, side=3.4)
    for ax, (name, table) in zip(axes, shown.items(), strict=True):
        observed = table["observed"].to_numpy()
        reach = np.maximum([observed - table["lower"].to_numpy(), table["upper"].to_numpy() - observed], 0)
        ax.plot([0, end], [0, end], color=GREY, linestyle="--", linewidth=1.2)
        ax.errorbar(table["predicted"], observed, yerr=reach, fmt="o-", color=BLUE, markersize=4, elinewidth=1)
        ax.set(xlim=(0, end), ylim=(0, end), aspect="equal", xlabel="predicted risk", ylabel="observed risk")
        dress(ax, _plain(name))
    return figure


def kaplan_meier_panels(predictions: Mapping[str, pl.DataFrame], *, n_groups: int = 3, n_columns: int = 3) -> Figure:
    """Observed survival in groups of predicted risk, one panel per configuration, all with the same axes.

    Parameters
    ----------
    predictions : by configuration, a run's test predictions: risk, follow_up_days, is_event; tied risks share a group
    n_groups : groups by quantiles of risk, at most 3
    """
    figure, axes = _grid(len(predictions), n_columns=n_columns, side=3.6)
    bottom = 1.0
    for ax, (name, table) in zip(axes, predictions.items(), strict=True):
        rows = of_any_cause(_known(table))
        columns = (rows[column].to_numpy() for column in ("risk", "follow_up_days", "is_event"))
        risk, days, event = checked_predictions(*columns)
        group = risk_groups(risk, n_groups)
        names = group_labels(int(group.max()) + 1)
        for number, (label, colour) in enumerate(zip(names, (BLUE, ORANGE, RED), strict=False)):
            draw_kaplan_meier(ax, days[group == number], event[group == number], label, colour)
        bottom = min(bottom, ax.get_ylim()[0])
        ax.set(xlabel="days since the index date", ylabel="share without the event")
        dress(ax, _plain(name))
    for ax in axes:
        ax.set_ylim(bottom, 1.005)
    axes[0].legend(frameon=False, loc="lower left", fontsize=8)
    return figure


def differences_plot(differences: Sequence[Difference]) -> Figure:
    """Forest plot of paired differences, with the margin within which models count as equivalent.

    Differences that could not be tested are listed without a point.

    Parameters
    ----------
    differences : in one metric, from `differences.differences_over_repeats`
    """
    if not differences:
        raise DataError("no differences to show; a study has some where its reference is finished")
    metric = METRICS[differences[0].metric]
    labels = [_plain(f"{one.this} − {apart(one.this, one.to)[1]}") for one in differences]
    width = 5.4 + 0.075 * max(map(len, labels)) + 2.4
    figure = Figure(figsize=(width, 1.4 + 0.36 * len(labels)), dpi=DPI, layout="constrained")
    ax = figure.subplots()
    margin = differences[0].margin
    if margin:
        ax.axvspan(-margin, margin, color=PALE, alpha=0.5, linewidth=0, zorder=0)
    ax.axvline(0, color=GREY, linestyle="--", linewidth=1.2)
    for number, one in enumerate(differences):
        _difference_line(ax, len(differences) - 1 - number, one)
    ax.set_yticks(range(len(labels)), labels[::-1])
    ax.set_ylim(-0.6, len(labels) - 0.4)
    within = f"; shaded: within {margin:g}" if margin else ""
    ax.set_xlabel(f"difference in test {metric.title} (95 % interval{within})")
    dress(ax, "Paired differences", grid_axis="x")
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)
    return figure


def _difference_line(ax: Axes, y: int, one: Difference) -> None:
    text: str = one.finding
    if one.interval is not None:
        colour, interval = FINDINGS[one.finding], one.interval
        ax.plot([interval.lower, interval.upper], [y, y], color=colour, linewidth=2, solid_capstyle="butt")
        ax.plot(interval.estimate, y, "o", color=colour, markersize=7)
        text = f"{interval.estimate:+.3f} [{interval.lower:+.3f}, {interval.upper:+.3f}]  {one.finding}"
    ax.annotate(text, (1.02, y), xycoords=("axes fraction", "data"), va="center", fontsize=9, annotation_clip=False)


def _styles() -> Any:
    """Colour and marker of each line in turn; the markers are shifted each time that the colours start again."""
    return ((COLOURS[n % len(COLOURS)], MARKERS[(n + n // len(COLOURS)) % len(MARKERS)]) for n in cycle(range(64)))


def _grid(n_panels: int, *, n_columns: int, side: float) -> tuple[Figure, list[Axes]]:
    """Panels in rows; unused places stay empty."""
    n_columns = min(n_columns, n_panels)
    n_rows = -(-n_panels // n_columns)
    figure = Figure(figsize=(side * n_columns, 1.05 * side * n_rows), dpi=DPI, layout="constrained")
    axes = list(figure.subplots(n_rows, n_columns, squeeze=False).ravel())
    for ax in axes[n_panels:]:
        ax.set_visible(False)
    return figure, axes[:n_panels]


def _last_day(table: pl.DataFrame) -> pl.DataFrame:
    if "horizon_days" not in table.columns:
        return table
    return table.filter(pl.col("horizon_days") == pl.col("horizon_days").max())


def _legend_beside(ax: Axes) -> None:
    ax.legend(frameon=False, fontsize=9, loc="upper left", bbox_to_anchor=(1.01, 1.0))


def _number_ticks(ax: Axes, numbers: Sequence[float]) -> None:
    """Ticks at the numbers that were tried, except where labels would overlap."""
    kept: list[float] = []
    for number in numbers:
        if not kept or number > 1.25 * kept[-1]:
            kept.append(number)
    ax.set_xticks(kept)
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))


def _known(table: pl.DataFrame, *, what: str = "rows") -> pl.DataFrame:
    if table.is_empty():
        raise DataError(f"there are no {what} to draw; finish some runs of the study first")
    return table


def _plain(label: str) -> str:
    """Escape the dollar signs of a name, which matplotlib would read as a formula."""
    return label.replace("$", r"\$")
