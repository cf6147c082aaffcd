"""Figures that are made and kept as files, but not drawn: drawing takes half of the time of a small run.

They are drawn in the tests of figures, in the whole study of `tests/e2e`, and where subjects or events are few.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

PIXEL = base64.b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg==")
"""A picture of one pixel."""


@contextmanager
def undrawn() -> Iterator[None]:
    """Inside, a figure that a run logs is a file of one pixel."""

    savefig = Figure.savefig

    def saved(figure: Figure, file: Any, **how: Any) -> None:
        if isinstance(file, Path):
            file.write_bytes(PIXEL)
        else:  # a report's, in several formats
            savefig(figure, file, **how)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", saved)
        yield
