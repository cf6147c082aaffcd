"""Figure of the flow of subjects into the study."""

from __future__ import annotations

import textwrap

import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from ehrtrack.plots.style import BLUE, BOX, DPI, GREEN, GREY, INK, RED
from ehrtrack.privacy import count_text


def attrition_flow(attrition: pl.DataFrame, splits: pl.DataFrame | None = None) -> Figure:
    """Flow of subjects: who is left after each step, who was dropped at it, and what each split holds.

    Parameters
    ----------
    attrition : columns step, n_subjects (left after the step), n_dropped; the first row is the start. Where subjects
        have several prediction times also n_times. Counts may be text, as `privacy.hide_in_attrition` makes them
    splits : columns split, n_subjects, n_events, event_rate; drawn at the bottom
    """
    n_steps = attrition.height
    n_rows = n_steps + (1.3 if splits is not None else 0)
    figure = Figure(figsize=(9.2, 0.4 + 0.92 * n_rows), dpi=DPI, layout="constrained")
    ax = figure.subplots()
    ax.set(xlim=(0, 10), ylim=(-n_rows + 0.5, 0.5))
    ax.axis("off")
    for number, row in enumerate(attrition.iter_rows(named=True)):
        y = -float(number)
        step, left = textwrap.shorten(row["step"], 64, placeholder=" …"), f"{count_text(row['n_subjects'])} subjects"
        if "n_times" in row:
            left += f" at {count_text(row['n_times'])} times"
        _box(ax, 3.2, y, step, left, width=5.2, height=0.56, colour=BLUE)
        if number == 0:
            continue
        _arrow(ax, (3.2, y + 0.7), (3.2, y + 0.3))
        if row["n_dropped"] not in (0, "0"):
            _arrow(ax, (3.2, y + 0.5), (6.55, y + 0.5), colour=GREY)
            ax.text(6.7, y + 0.5, f"{count_text(row['n_dropped'])} dropped", va="center", fontsize=9.5, color=RED)
    if splits is not None:
        _draw_splits(ax, splits, y=-(n_steps - 1) - 1.25, top=-(n_steps - 1) - 0.3)
    return figure


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
        share = "" if row["event_rate"] is None else f" ({row['event_rate']:.1%})"
        text = f"{row['split']}\n{count_text(row['n_subjects'])} subjects"
        strong = f"{count_text(row['n_events'])} events{share}"
        _box(ax, float(x), y, text, strong, width=2.9, height=0.72, colour=GREEN)
