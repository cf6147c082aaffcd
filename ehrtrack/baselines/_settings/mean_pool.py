"""Settings of `ehrtrack.baselines.mean_pool`."""

from __future__ import annotations

from typing import Literal

from ehrtrack.baselines._settings._shared import SequenceSettings


class Config(SequenceSettings):
    """Settings of the mean of embeddings."""

    name: Literal["mean-pool"] = "mean-pool"
