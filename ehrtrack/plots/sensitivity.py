"""Figure of a sensitivity analysis: discrimination, accuracy and calibration at each value of a setting."""

from __future__ import annotations

import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ehrtrack.evaluation.metric_table import AUROC, BRIER, C_INDEX, IBS
from ehrtrack.plots.style import BLUE, GREY, ORANGE, dress, panels


def sensitivity_plot(table: pl.DataFrame, *, parameter: str) -> Figure:
    """Three panels over the values of one setting, evenly spaced: discrimination, error, calibration slope.

    C-index and integrated Brier score, or of classes AUROC and Brier score.

    Parameters
    ----------
    table : from `sensitivity.sensitivity_table`
    parameter : the setting's name, for the axes
    """
    metric, error = (AUROC, BRIER) if table["auroc"].count() else (C_INDEX, IBS)
    figure, (discrimination, accuracy, slope) = panels(3, width=13.2, height=4.0)
    _points(discrimination, table, metric.key, f"Discrimination: test {metric.title}")
    discrimination.set_ylabel(f"{metric.title} (95 % interval), higher is better")
    _points(accuracy, table, error.key, f"Accuracy: {error.long_title or error.title}")
    accuracy.set_ylabel(f"{error.title}, lower is better")
    _points(slope, table, "calibration_slope", "Calibration slope")
    slope.axhline(1, color=GREY, linestyle="--", linewidth=1.2)
    slope.set_ylabel("slope (95 % interval), 1 is calibrated")
    for ax in (discrimination, accuracy, slope):
        ax.set_xlabel(parameter)
    return figure


def _points(ax: Axes, table: pl.DataFrame, name: str, title: str) -> None:
    place = list(range(table.height))
    ax.set_xticks(place, table["value"].to_list())
    ax.set_xlim(-0.4, table.height - 0.6)
    found = table.with_row_index("place").drop_nulls(name)
    ax.plot(found["place"], found[name], color=BLUE, linewidth=1.2, alpha=0.5)
    if f"{name}_lower" in table.columns:
        ax.vlines(found["place"], found[f"{name}_lower"], found[f"{name}_upper"], color=BLUE, linewidth=1.8)
    ax.plot(found["place"], found[name], "o", color=BLUE, markersize=6)
    first = found.filter(pl.col("place") == 0)
    ax.plot(first["place"], first[name], "o", color=ORANGE, markersize=8)  # what the others are compared with
    dress(ax, title)
