"""The mean of a subject's token embeddings, one hidden layer and the discrete-time hazard head: no order, but ages
and gaps."""

from __future__ import annotations

from ehrtrack.baselines._protocol import read_tokens
from ehrtrack.baselines._sequences import fit, from_json
from ehrtrack.baselines._settings.mean_pool import Config as Config

__all__ = ["Config", "fit", "from_json", "read"]


read = read_tokens
