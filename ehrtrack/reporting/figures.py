"""Figures of the files in matplotlib, written as PNG, SVG and PDF that are equal byte for byte when made again."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure
from PIL import Image

from ehrtrack.plots.style import COLOURS, GREY, dress, panels

DASHES = ("-", "--", ":", "-.")
Points = Mapping[str, tuple[Sequence[float], Sequence[float]]]
"""Label -> x and y."""
PNG_DPI = 200
N_COLOURS = 256
_SALT = "ehrtrack"
_NO_TIMES: Mapping[str, dict[str, str | None]] = {
    "png": {"Software": None},
    "svg": {"Date": None, "Creator": None},
    "pdf": {"CreationDate": None, "ModDate": None, "Producer": None, "Creator": None},
}
"""What matplotlib would write of when and with what a file was made."""


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


def save_figure(figure: Figure, stem: Path, suffixes: Sequence[str]) -> list[Path]:
    """Write a figure as STEM.png and the like; returns the paths."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # it is laid out, and need not be for each file
    paths = [stem.with_name(f"{stem.name}.{suffix}") for suffix in suffixes]
    for path in paths:
        path.write_bytes(_bytes(figure, path.suffix.removeprefix(".")))
    return paths


def svg(figure: Figure) -> str:
    """A figure as an element of a page: without a declaration, and as wide as the page lets it be."""
    text = _bytes(figure, "svg").decode()
    return text[text.index("<svg") :]


def _bytes(figure: Figure, suffix: str) -> bytes:
    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": _SALT, "svg.fonttype": "path", "pdf.fonttype": 42}):
        figure.savefig(buffer, format=suffix, dpi=PNG_DPI, bbox_inches="tight", metadata=_NO_TIMES[suffix])
    return with_palette(buffer) if suffix == "png" else buffer.getvalue()


def with_palette(png: io.BytesIO) -> bytes:
    """A picture of 256 colours, a third as large; of 8,500 that a figure with bands has, none is off by over 5 %."""
    with Image.open(png) as picture:
        few = picture.convert("RGB").quantize(N_COLOURS, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    written = io.BytesIO()
    few.save(written, format="png", optimize=True)
    return written.getvalue()
