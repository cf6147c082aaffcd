"""Figures of the files that no run has made: several configurations over one another, in matplotlib."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ehrtrack.plots._style import BLUE, GREEN, GREY, ORANGE, PURPLE, RED, dress, panels

COLOURS = (BLUE, ORANGE, GREEN, RED, PURPLE, "#CC79A7", "#56B4E9", "#444444")
DASHES = ("-", "--", ":", "-.")
Points = Mapping[str, tuple[Sequence[float], Sequence[float]]]


def overlaid(
    points: Points,
    *,
    x: str,
    y: str,
    is_diagonal: bool = False,
    y_range: tuple[float, float] | None = None,
    bands: Points | None = None,
    is_log: bool = False,
) -> Figure:
    """A line a label.

    Parameters
    ----------
    points, bands : label -> x and y; label -> lower and upper end of the band, at the same x
    is_diagonal : whether x and y are one quantity, and lines are to lie on the diagonal
    """
    figure, (ax,) = panels(1, width=7.6, height=5.2 if is_diagonal else 4.6)
    for (label, (xs, ys)), (colour, dash) in zip(points.items(), _styles(), strict=False):
        ax.plot(
            xs, ys, dash, color=colour, linewidth=1.8, label=_plain(label), marker="o" if bands else "", markersize=5
        )
        if bands and label in bands:
            ax.fill_between(xs, *bands[label], color=colour, alpha=0.13, linewidth=0)
    if is_diagonal:
        end = max(value for xs, ys in points.values() for value in (*xs, *ys))
        ax.plot([0, end], [0, end], color=GREY, linestyle="--", linewidth=1.2, zorder=0)
        ax.set(xlim=(0, end), ylim=(0, end), aspect="equal")
    if y_range:
        ax.axhline(0, color=GREY, linewidth=1)
        ax.set(ylim=y_range)
    if is_log:
        ax.set(xscale="log")
    _finish(ax, x, y)
    return figure


def front(points: Mapping[str, tuple[float, float]], on_front: Sequence[str], *, x: str, y: str) -> Figure:
    """A point a label on a logarithmic x axis, with steps along the Pareto front."""
    figure, (ax,) = panels(1, width=7.6, height=4.6)
    ax.step(*zip(*(points[label] for label in on_front), strict=True), where="post", color=GREY, linestyle=":")
    for (label, (at_x, at_y)), (colour, _) in zip(points.items(), _styles(), strict=False):
        ax.plot(at_x, at_y, "o", color=colour, markersize=8, label=_plain(label))
    ax.set(xscale="log")
    _finish(ax, x, y)
    return figure


def _finish(ax: Axes, x: str, y: str) -> None:
    ax.set(xlabel=x, ylabel=y)
    dress(ax, "")
    ax.legend(frameon=False, fontsize=8.5, loc="upper left", bbox_to_anchor=(1.01, 1.0))


def _styles() -> cycle[tuple[str, str]]:
    return cycle([(colour, dash) for dash in DASHES for colour in COLOURS])


def _plain(label: str) -> str:
    """A text that is no formula."""
    return label.replace("$", r"\$")
