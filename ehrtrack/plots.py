"""Figures of a run and of a comparison: arrays and tables in, matplotlib Figures out.

Figures are made without pyplot, so that nothing is global, no window opens, and a figure is freed with its
last reference.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from matplotlib.ticker import MaxNLocator
from sksurv.nonparametric import kaplan_meier_estimator

from ehrtrack.errors import DataError
from ehrtrack.survival.calibration import risk_groups
from ehrtrack.survival.metrics import BoolArray, FloatArray, checked_predictions

History = Sequence[Mapping[str, float]]
"""One mapping of metric names to values an epoch, in order, as the training loop returns it."""

# Okabe & Ito's colours stay apart for colour-blind readers.
BLUE, ORANGE, GREEN, RED, PURPLE = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#8B5FA8"
INK, GREY, PALE, BOX = "#222222", "#6B6B6B", "#DDDDDD", "#EEF3F8"
DPI = 130


def loss_curves(history: History, *, best_epoch: int | None = None) -> Figure:
    """Training and validation loss by epoch.

    Parameters
    ----------
    history : with ``train/loss`` and ``val/loss``
    best_epoch : epoch (from 1) whose weights were kept; marked
    """
    figure, axes = _figure(1, width=6.4, height=4.0)
    _draw_metric(axes[0], history, "train/loss", "training", BLUE)
    _draw_metric(axes[0], history, "val/loss", "validation", ORANGE)
    _finish_epochs(axes[0], "Loss by epoch", "loss", best_epoch)
    return figure


def mlm_loss(history: History, *, best_epoch: int | None = None) -> Figure:
    """Masked-code loss beside that of guessing every code by its frequency, and the accuracy.

    Parameters
    ----------
    history : with ``val/mlm_loss``, ``val/unigram_loss`` (of the same tokens) and ``val/mlm_accuracy``
    best_epoch : epoch (from 1) whose weights were kept; marked
    """
    figure, axes = _figure(2, width=10.0, height=4.0)
    _draw_metric(axes[0], history, "val/mlm_loss", "model", BLUE)
    _draw_metric(axes[0], history, "val/unigram_loss", "code frequencies only", GREY, style="--")
    _finish_epochs(axes[0], "Masked codes, validation", "loss (nats per masked code)", best_epoch)
    _draw_metric(axes[1], history, "val/mlm_accuracy", "model", BLUE)
    _finish_epochs(axes[1], "Share of masked codes right, validation", "accuracy", best_epoch, is_legend=False)
    return figure


def metric_curves(history: History, *, best_epoch: int | None = None) -> Figure:
    """Validation C-index and integrated Brier score by epoch.

    Parameters
    ----------
    history : with ``val/c_index`` and ``val/ibs``
    best_epoch : epoch (from 1) whose weights were kept; marked
    """
    figure, axes = _figure(2, width=10.0, height=4.0)
    _draw_metric(axes[0], history, "val/c_index", "model", BLUE)
    axes[0].axhline(0.5, color=GREY, linestyle="--", linewidth=1.2, label="chance")
    _finish_epochs(axes[0], "C-index, validation (higher is better)", "C-index", best_epoch)
    _draw_metric(axes[1], history, "val/ibs", "model", BLUE)
    _finish_epochs(
        axes[1],
        "Integrated Brier score, validation (lower is better)",
        "integrated Brier score",
        best_epoch,
        is_legend=False,
    )
    return figure


def calibration_plot(table: pl.DataFrame, *, horizon_days: float) -> Figure:
    """Observed against predicted risk by groups of risk; a calibrated model lies on the diagonal.

    Parameters
    ----------
    table : from `survival.calibration.calibration_table`
    horizon_days : the horizon of the prediction
    """
    figure, (ax,) = _figure(1, width=5.6, height=5.4)
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
    n_subjects, n_events = table["n_subjects"].sum(), table["n_events"].sum()
    _dress(ax, f"Calibration: {n_subjects:,} subjects, {n_events:,} events")
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
    labels = _group_labels(group.max() + 1)
    colours = (BLUE, ORANGE, RED) if len(labels) <= 3 else (BLUE, GREEN, ORANGE, RED, PURPLE)
    figure = Figure(figsize=(7.6, 5.6), dpi=DPI, layout="constrained")
    ax, counts = figure.subplots(2, 1, sharex=True, height_ratios=[1, 0.07 + 0.06 * len(labels)])
    for number, (label, colour) in enumerate(zip(labels, colours, strict=False)):
        members = group == number
        _draw_kaplan_meier(ax, days[members], event[members], f"{label} (n = {members.sum():,})", colour)
    ax.set(xlim=(0, days.max() * 1.01), ylim=(min(0.98, ax.get_ylim()[0]), 1.005))
    ax.set_ylabel("share without the event")
    _dress(ax, "Survival by predicted risk (Kaplan–Meier, 95 % interval)")
    ax.legend(frameon=False, loc="lower left")

    ticks = [
        tick for tick in MaxNLocator(7, steps=[1, 2, 3, 5, 6, 10]).tick_values(0, days.max()) if 0 <= tick <= days.max()
    ]
    for number, colour in enumerate(colours[: len(labels)]):
        row = len(labels) - 1 - number
        for tick in ticks:
            n_at_risk = int((days[group == number] >= tick).sum())
            counts.text(tick, row, f"{n_at_risk:,}", ha="center", va="center", fontsize=9, color=colour)
    counts.set(xticks=ticks, ylim=(-0.6, len(labels) - 0.4))
    counts.set_yticks(range(len(labels)), labels[::-1], fontsize=9)
    counts.set_title("subjects at risk", loc="left", fontsize=9, color=GREY, pad=2)
    counts.set_xlabel("days since the index date")
    counts.tick_params(length=0, colors=INK)
    counts.tick_params(axis="y", pad=16)
    counts.spines[:].set_visible(False)
    return figure


def attrition_flow(attrition: pl.DataFrame, splits: pl.DataFrame | None = None) -> Figure:
    """Flow of subjects: who is left after each step, who was dropped at it, and what each split holds.

    Parameters
    ----------
    attrition : columns step, n_subjects (left after the step), n_dropped; the first row is the start
    splits : columns split, n_subjects, n_events; drawn at the bottom
    """
    n_steps = attrition.height
    n_rows = n_steps + (1.3 if splits is not None else 0)
    figure = Figure(figsize=(9.2, 0.4 + 0.92 * n_rows), dpi=DPI, layout="constrained")
    ax = figure.subplots()
    ax.set(xlim=(0, 10), ylim=(-n_rows + 0.5, 0.5))
    ax.axis("off")
    for number, row in enumerate(attrition.iter_rows(named=True)):
        y = -float(number)
        step, left = textwrap.shorten(row["step"], 64, placeholder=" …"), f"{row['n_subjects']:,} subjects"
        _box(ax, 3.2, y, step, left, width=5.2, height=0.56, colour=BLUE)
        if number == 0:
            continue
        _arrow(ax, (3.2, y + 0.7), (3.2, y + 0.3))
        if row["n_dropped"]:
            _arrow(ax, (3.2, y + 0.5), (6.55, y + 0.5), colour=GREY)
            ax.text(6.7, y + 0.5, f"{row['n_dropped']:,} dropped", va="center", fontsize=9.5, color=RED)
    if splits is not None:
        _draw_splits(ax, splits, y=-(n_steps - 1) - 1.25, top=-(n_steps - 1) - 0.3)
    return figure


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
    """Forest plot: one line a model, from top to bottom in the order given.

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
    _dress(ax, "", grid_axis="x")
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)
    return figure


def _figure(n_panels: int, *, width: float, height: float) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    return figure, list(figure.subplots(1, n_panels, squeeze=False)[0])


def _dress(ax: Axes, title: str, *, grid_axis: str = "y") -> None:
    ax.set_title(title, loc="left", fontsize=11, color=INK, pad=8)
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set_color(GREY)
    ax.grid(axis="x" if grid_axis == "x" else "y", color=PALE, linewidth=0.8)
    ax.set_axisbelow(True)
    ax.tick_params(colors=INK, labelsize=9)


def _draw_metric(ax: Axes, history: History, metric: str, label: str, colour: str, *, style: str = "-") -> None:
    """One metric by epoch. Epochs without it are skipped; a history without it at all is a mistake."""
    points = [(epoch, row[metric]) for epoch, row in enumerate(history, start=1) if metric in row]
    if not points:
        found = sorted({name for row in history for name in row})
        raise DataError(f"no epoch has the metric {metric!r}; there are: {', '.join(found) or 'no metrics'}")
    epochs, values = zip(*points, strict=True)
    ax.plot(epochs, values, style, color=colour, linewidth=1.8, marker="o", markersize=3.5, label=label)


def _finish_epochs(ax: Axes, title: str, quantity: str, best_epoch: int | None, *, is_legend: bool = True) -> None:
    if best_epoch is not None:
        ax.axvline(best_epoch, color=GREEN, linestyle=":", linewidth=1.5, label=f"kept: epoch {best_epoch}")
    ax.set_xlabel("epoch")
    ax.set_ylabel(quantity)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    _dress(ax, title)
    if is_legend or best_epoch is not None:
        ax.legend(frameon=False, fontsize=9)


def _group_labels(n_groups: int) -> list[str]:
    names = {1: ["all"], 2: ["low risk", "high risk"], 3: ["low risk", "middle", "high risk"]}
    return names.get(n_groups, ["lowest risk", *(f"group {number}" for number in range(2, n_groups)), "highest risk"])


def _draw_kaplan_meier(ax: Axes, days: FloatArray, event: BoolArray, label: str, colour: str) -> None:
    end = days.max()
    if event.any():
        at, survival, (lower, upper) = kaplan_meier_estimator(event, days, conf_type="log-log")
        at, survival = np.concatenate([[0.0], at]), np.concatenate([[1.0], survival])
        lower, upper = np.concatenate([[1.0], lower]), np.concatenate([[1.0], upper])
        ax.fill_between(at, lower, upper, step="post", color=colour, alpha=0.15, linewidth=0)
    else:
        at, survival = np.array([0.0, end]), np.array([1.0, 1.0])
    ax.step(at, survival, where="post", color=colour, linewidth=1.8, label=label)


def _box(ax: Axes, x: float, y: float, text: str, strong: str, *, width: float, height: float, colour: str) -> None:
    """A rounded box centred at (x, y): a line of text, and a stronger one under it."""
    box = FancyBboxPatch(
        (x - width / 2, y - height / 2),
        width,
        height,
        boxstyle="round,pad=0.02,rounding_size=0.08",
        facecolor=BOX,
        edgecolor=colour,
    )
    ax.add_patch(box)
    ax.text(x, y + 0.13 * height, text, ha="center", va="center", fontsize=9.5)
    ax.text(x, y - 0.27 * height, strong, ha="center", va="center", fontsize=9.5, weight="bold")


def _arrow(ax: Axes, start: tuple[float, float], end: tuple[float, float], *, colour: str = INK) -> None:
    ax.annotate("", xy=end, xytext=start, arrowprops={"arrowstyle": "-|>", "color": colour, "linewidth": 1.2})


def _draw_splits(ax: Axes, splits: pl.DataFrame, *, y: float, top: float) -> None:
    centres = np.linspace(1.7, 8.3, splits.height) if splits.height > 1 else np.array([3.2])
    for x, row in zip(centres, splits.iter_rows(named=True), strict=True):
        _arrow(ax, (3.2, top), (float(x), y + 0.38))
        share = row["n_events"] / row["n_subjects"]
        text = f"{row['split']}\n{row['n_subjects']:,} subjects"
        strong = f"{row['n_events']:,} events ({share:.1%})"
        _box(ax, float(x), y, text, strong, width=2.9, height=0.72, colour=GREEN)
