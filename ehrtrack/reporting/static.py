"""A figure for the files: several configurations over one another, in matplotlib."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product

from matplotlib.figure import Figure

from ehrtrack.plots.style import COLOURS, GREY, dress, panels

DASHES = ("-", "--", ":", "-.")
Points = Mapping[str, tuple[Sequence[float], Sequence[float]]]
"""Label -> x and y."""


def overlaid(points: Points, *, x: str, y: str, y_range: tuple[float, float] | None = None) -> Figure:
    """A line a label.

    Parameters
    ----------
    x, y : titles of the axes
    y_range : what is shown of the y axis, with a line at 0; all if None
    """
    figure, (ax,) = panels(1, width=9.6, height=4.8)
    for (label, (xs, ys)), (dash, colour) in zip(points.items(), product(DASHES, COLOURS), strict=False):
        ax.plot(xs, ys, dash, color=colour, linewidth=1.8, label=label.replace("$", r"\$"))
    if y_range:
        ax.axhline(0, color=GREY, linewidth=1)
        ax.set(ylim=y_range)
    ax.set(xlabel=x, ylabel=y)
    dress(ax, "")
    ax.legend(frameon=False, fontsize=9, loc="upper left", bbox_to_anchor=(1.01, 1.0))
    return figure
