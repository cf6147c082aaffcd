"""Figures of observed against predicted risk: calibration, and survival by predicted risk."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from sksurv.nonparametric import kaplan_meier_estimator

from ehrtrack.arrays import Bools, Floats
from ehrtrack.errors import DataError
from ehrtrack.plots.style import BLUE, DPI, GREEN, GREY, INK, ORANGE, PURPLE, RED, dress, panels
from ehrtrack.privacy import count_text
from ehrtrack.survival.calibration import risk_groups
from ehrtrack.survival.metrics import checked_predictions


def calibration_plot(table: pl.DataFrame, *, horizon_days: float) -> Figure:
    """Observed against predicted risk by groups of risk; a calibrated model lies on the diagonal.

    Parameters
    ----------
    table : from `survival.calibration.calibration_table`
    horizon_days : the horizon of the prediction
    """
    figure, (ax,) = panels(1, width=5.6, height=5.4)
    predicted, observed = table["predicted"].to_numpy(), table["observed"].to_numpy()
    lower, upper = table["lower"].to_numpy(), table["upper"].to_numpy()
    end = min(1.0, 1.08 * max(predicted.max(), upper.max()))
    ax.plot([0, end], [0, end], color=GREY, linestyle="--", linewidth=1.2, label="perfect calibration")
    # The bounds of a Kaplan-Meier estimate lie about it up to rounding; errorbar refuses -1e-17.
    reach = np.maximum([observed - lower, upper - observed], 0)
    ax.errorbar(
        predicted,
        observed,
        yerr=reach,
        fmt="o",
        color=BLUE,
        ecolor=BLUE,
        elinewidth=1.2,
        capsize=3,
        markersize=6,
        label="risk groups (95 % interval)",
    )
    ax.set(xlim=(0, end), ylim=(0, end), aspect="equal")
    ax.set_xlabel(f"mean predicted risk at {horizon_days:g} days")
    ax.set_ylabel(f"observed risk at {horizon_days:g} days (Kaplan–Meier)")
    n_subjects, n_events = (int(table[name].sum()) for name in ("n_subjects", "n_events"))
    dress(ax, f"Calibration: {count_text(n_subjects)} subjects, {count_text(n_events)} events")
    ax.legend(frameon=False, loc="upper left")
    return figure


def kaplan_meier_by_risk(
    risk: npt.ArrayLike,
    follow_up_days: npt.ArrayLike,
    is_event: npt.ArrayLike,
    *,
    n_groups: int = 3,
) -> Figure:
    """Observed survival in groups of predicted risk, with the numbers at risk below.

    Parameters
    ----------
    risk, follow_up_days, is_event : (B,)
    n_groups : groups by quantiles of risk, at most 5; tied risks share a group
    """
    scores, days, event = checked_predictions(risk, follow_up_days, is_event)
    if not 1 <= n_groups <= 5:
        raise DataError(f"{n_groups} risk groups; the figure shows 1 to 5")
    group = risk_groups(scores, n_groups)
    labels = group_labels(group.max() + 1)
    colours = (BLUE, ORANGE, RED) if len(labels) <= 3 else (BLUE, GREEN, ORANGE, RED, PURPLE)
    figure = Figure(figsize=(7.6, 5.6), dpi=DPI, layout="constrained")
    ax, counts = figure.subplots(2, 1, sharex=True, height_ratios=[1, 0.07 + 0.06 * len(labels)])
    for number, (label, colour) in enumerate(zip(labels, colours, strict=False)):
        members = group == number
        draw_kaplan_meier(ax, days[members], event[members], f"{label} (n = {count_text(int(members.sum()))})", colour)
    ax.set(xlim=(0, days.max() * 1.01), ylim=(min(0.98, ax.get_ylim()[0]), 1.005))
    ax.set_ylabel("share without the event")
    dress(ax, "Survival by predicted risk (Kaplan–Meier, 95 % interval)")
    ax.legend(frameon=False, loc="lower left")

    ticks = [
        tick for tick in MaxNLocator(7, steps=[1, 2, 3, 5, 6, 10]).tick_values(0, days.max()) if 0 <= tick <= days.max()
    ]
    for number, colour in enumerate(colours[: len(labels)]):
        row = len(labels) - 1 - number
        for tick in ticks:
            n_at_risk = int((days[group == number] >= tick).sum())
            counts.text(tick, row, count_text(n_at_risk), ha="center", va="center", fontsize=9, color=colour)
    counts.set(xticks=ticks, ylim=(-0.6, len(labels) - 0.4))
    counts.set_yticks(range(len(labels)), labels[::-1], fontsize=9)
    counts.set_title("subjects at risk", loc="left", fontsize=9, color=GREY, pad=2)
    counts.set_xlabel("days since the index date")
    counts.tick_params(length=0, colors=INK)
    counts.tick_params(axis="y", pad=16)
    counts.spines[:].set_visible(False)
    return figure


def group_labels(n_groups: int) -> list[str]:
    """Names of groups of rising risk."""
    names = {1: ["all"], 2: ["low risk", "high risk"], 3: ["low risk", "middle", "high risk"]}
    return names.get(n_groups, ["lowest risk", *(f"group {number}" for number in range(2, n_groups)), "highest risk"])


def draw_kaplan_meier(ax: Axes, days: Floats, event: Bools, label: str, colour: str) -> None:
    """The curve of some subjects with its interval; days and event are (B,)."""
    end = days.max()
    if event.any():
        at, survival, (lower, upper) = kaplan_meier_estimator(event, days, conf_type="log-log")
        at, survival = np.concatenate([[0.0], at]), np.concatenate([[1.0], survival])
        lower, upper = np.concatenate([[1.0], lower]), np.concatenate([[1.0], upper])
        ax.fill_between(at, lower, upper, step="post", color=colour, alpha=0.15, linewidth=0)
    else:
        at, survival = np.array([0.0, end]), np.array([1.0, 1.0])
    ax.step(at, survival, where="post", color=colour, linewidth=1.8, label=label)
