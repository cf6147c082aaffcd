"""Figures that are made and kept as files, but not drawn: drawing takes half of the time of a small run.

They are drawn in the tests of figures and of reports, in the whole study of `tests/e2e`, and where subjects or events
are few.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

_PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg=="
)
STANDING_IN = {"png": _PIXEL, "svg": b"<svg></svg>", "pdf": b"%PDF-1.4"}
"""What is written instead, by format: a picture of one pixel, or none."""


@contextmanager
def undrawn() -> Iterator[None]:
    """Inside, a figure that a run logs is a file of one pixel, and one of a report is an empty one."""

    def saved(_: Figure, file: Any, *, format: str = "png", **how: Any) -> None:
        if isinstance(file, Path):
            file.write_bytes(STANDING_IN[format])
        else:  # a report's
            file.write(STANDING_IN[format])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", saved)
        patch.setattr(Figure, "draw_without_rendering", lambda figure: None)
        yield
