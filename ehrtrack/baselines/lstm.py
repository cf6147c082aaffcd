"""An LSTM (Hochreiter & Schmidhuber 1997, Neural Comput 9:1735-1780) over the visit tokens, with the discrete-time
hazard head."""

from __future__ import annotations

from typing import Literal

from ehrtrack.baselines._protocol import read_tokens
from ehrtrack.baselines._sequences import Settings, fit, from_json

__all__ = ["Config", "fit", "from_json", "read"]


class Config(Settings):
    """Settings of the LSTM."""

    name: Literal["lstm"] = "lstm"


read = read_tokens
