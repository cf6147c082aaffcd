"""Settings of `ehrtrack.strategies.scratch`."""

from __future__ import annotations

from typing import Literal

from ehrtrack.section import Choice


class Config(Choice):
    """Training from scratch has no settings of its own."""

    name: Literal["scratch"] = "scratch"
