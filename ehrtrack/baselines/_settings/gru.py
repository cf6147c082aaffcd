"""Settings of `ehrtrack.baselines.gru`."""

from __future__ import annotations

from typing import Literal

from ehrtrack.baselines.settings import SequenceSettings


class Config(SequenceSettings):
    """Settings of the GRU."""

    name: Literal["gru"] = "gru"
