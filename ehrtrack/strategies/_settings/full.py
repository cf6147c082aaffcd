"""Settings of `ehrtrack.strategies.full`."""

from __future__ import annotations

from typing import Literal

from ehrtrack.section import Choice


class Config(Choice):
    """Full fine-tuning has no settings of its own."""

    name: Literal["full"] = "full"
