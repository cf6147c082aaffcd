"""Figures as files that are equal byte for byte when they are made again: PNG, SVG and PDF."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

PNG_DPI = 200
_SALT = "ehrtrack"
_NO_TIMES: Mapping[str, dict[str, str | None]] = {
    "png": {"Software": None},
    "svg": {"Date": None, "Creator": None},
    "pdf": {"CreationDate": None, "ModDate": None, "Producer": None, "Creator": None},
}
"""What matplotlib would write of when and with what a file was made."""


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
    return buffer.getvalue()
