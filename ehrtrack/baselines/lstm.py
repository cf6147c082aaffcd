"""An LSTM (Hochreiter & Schmidhuber 1997, Neural Comput 9:1735-1780) over the visit tokens, with the discrete-time
hazard head."""

from __future__ import annotations

from ehrtrack.baselines._sequences import fit, from_json
from ehrtrack.baselines._settings.lstm import Config as Config
from ehrtrack.baselines.base import read_tokens

__all__ = ["Config", "fit", "from_json", "read"]


read = read_tokens
