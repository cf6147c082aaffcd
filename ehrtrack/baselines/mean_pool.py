"""The mean of a subject's token embeddings, one hidden layer and the discrete-time hazard head: no order, but ages
and gaps."""

from __future__ import annotations

from typing import Literal

from ehrtrack.baselines._protocol import read_tokens
from ehrtrack.baselines._sequences import Settings, fit, from_json

__all__ = ["Config", "fit", "from_json", "read"]


class Config(Settings):
    """Settings of the mean of embeddings."""

    name: Literal["mean-pool"] = "mean-pool"


read = read_tokens
