"""Settings of `ehrtrack.baselines.lstm`."""

from __future__ import annotations

from typing import Literal

from ehrtrack.baselines.settings import SequenceSettings


class Config(SequenceSettings):
    """Settings of the LSTM."""

    name: Literal["lstm"] = "lstm"
