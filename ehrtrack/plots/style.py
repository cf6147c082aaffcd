"""The style that all figures share: colours, sizes of panels, plain axes."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, RED = "#0072B2", "#E69F00", "#009E73", "#D55E00"
PINK, SKY, YELLOW = "#CC79A7", "#56B4E9", "#F0E442"
"""Okabe and Ito's colours, which colour-blind readers can tell apart."""
PURPLE, OCHRE = "#8B5FA8", "#B38600"
INK, GREY, PALE, BOX = "#222222", "#6B6B6B", "#DDDDDD", "#EEF3F8"
COLOURS = (BLUE, ORANGE, GREEN, RED, PURPLE, SKY, OCHRE, GREY)
"""Of lines and points on white, in the order in which they are used."""
DPI = 130


def panels(n_panels: int, *, width: float, height: float) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    return figure, list(figure.subplots(1, n_panels, squeeze=False)[0])


def dress(ax: Axes, title: str, *, grid_axis: str = "y") -> None:
    ax.set_title(title, loc="left", fontsize=11, color=INK, pad=8)
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set_color(GREY)
    ax.grid(axis="x" if grid_axis == "x" else "y", color=PALE, linewidth=0.8)
    ax.set_axisbelow(True)
    ax.tick_params(colors=INK, labelsize=9)
