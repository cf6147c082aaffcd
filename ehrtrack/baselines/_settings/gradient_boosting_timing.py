"""Settings of `ehrtrack.baselines.gradient_boosting_timing`."""

from __future__ import annotations

from typing import Literal

from ehrtrack.baselines._settings.gradient_boosting import Settings


class Config(Settings):
    """Settings of gradient boosting with timing features."""

    name: Literal["gradient-boosting-timing"] = "gradient-boosting-timing"
