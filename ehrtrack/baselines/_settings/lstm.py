"""Settings of `ehrtrack.baselines.lstm`."""

from __future__ import annotations

from typing import Literal

from ehrtrack.baselines._settings._shared import SequenceSettings


class Config(SequenceSettings):
    """Settings of the LSTM."""

    name: Literal["lstm"] = "lstm"
