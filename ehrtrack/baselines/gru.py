"""A GRU (Cho et al. 2014, arXiv:1406.1078) over the visit tokens, with the discrete-time hazard head."""

from __future__ import annotations

from typing import Literal

from ehrtrack.baselines._protocol import read_tokens
from ehrtrack.baselines._sequences import Settings, fit, from_json

__all__ = ["Config", "fit", "from_json", "read"]


class Config(Settings):
    """Settings of the GRU."""

    name: Literal["gru"] = "gru"


read = read_tokens
