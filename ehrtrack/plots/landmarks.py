"""Figure of a model at several landmarks: discrimination and accuracy over time."""

from __future__ import annotations

import polars as pl
from matplotlib.figure import Figure

from ehrtrack.plots.style import BLUE, GREY, ORANGE, PALE, dress, panels
from ehrtrack.survival.resampling import Interval


def landmark_plot(table: pl.DataFrame, pooled: Interval | None) -> Figure:
    """Two panels over the landmarks: C-index beside that over all of them, and Brier score beside Kaplan-Meier's.

    Parameters
    ----------
    table : from `recipes.landmarks.landmark_table`
    pooled : C-index over all landmarks, or None where they are too few for it
    """
    figure, (c_index, ibs) = panels(2, width=9.6, height=4.0)
    days = table["landmark_days"]
    if pooled is not None:
        c_index.axhspan(pooled.lower, pooled.upper, color=PALE, alpha=0.6, linewidth=0)
        c_index.axhline(pooled.estimate, color=GREY, linestyle="--", linewidth=1.2, label="all landmarks")
        c_index.legend(frameon=False, loc="best", fontsize=9)
    scored, bounded = table.drop_nulls("c_index"), table.drop_nulls(["c_index_lower", "c_index_upper"])
    c_index.plot(scored["landmark_days"], scored["c_index"], color=BLUE, linewidth=1.2, alpha=0.5)
    c_index.vlines(
        bounded["landmark_days"], bounded["c_index_lower"], bounded["c_index_upper"], color=BLUE, linewidth=1.8
    )
    c_index.plot(scored["landmark_days"], scored["c_index"], "o", color=BLUE, markersize=6)
    c_index.set_ylabel("C-index (95 % interval), higher is better")
    dress(c_index, "Discrimination of those still followed")
    table = table.drop_nulls("ibs")
    ibs.plot(
        table["landmark_days"],
        table["ibs_kaplan_meier"],
        "o--",
        color=ORANGE,
        linewidth=1.2,
        markersize=5,
        label="Kaplan\u2013Meier",
    )
    ibs.plot(table["landmark_days"], table["ibs"], "o-", color=BLUE, linewidth=1.2, markersize=6, label="model")
    ibs.set_ylabel("IBS, lower is better")
    ibs.legend(frameon=False, loc="best", fontsize=9)
    dress(ibs, "Accuracy: integrated Brier score")
    for ax in (c_index, ibs):
        ax.set_xlabel("landmark, days after the index date")
        ax.set_xticks(days)
        ax.margins(x=0.08)
    return figure
