"""A GRU (Cho et al. 2014, arXiv:1406.1078) over the visit tokens, with the discrete-time hazard head."""

from __future__ import annotations

from ehrtrack.baselines._sequences import fit, from_json
from ehrtrack.baselines._settings.gru import Config as Config
from ehrtrack.baselines.base import read_tokens

__all__ = ["Config", "fit", "from_json", "read"]


read = read_tokens
