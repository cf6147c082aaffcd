"""Which encoder reads a record."""

from __future__ import annotations

from ehrtrack.models.behrt import Behrt
from ehrtrack.models.record_columns import Levels
from ehrtrack.models.settings import ModelConfig
from ehrtrack.models.summaries import Summaries


def new_encoder(config: ModelConfig, levels: Levels, *, may_lack_age: bool) -> Behrt | Summaries:
    """An encoder of random weights for a vocabulary with these levels of values."""
    if config.encoder == "summaries":
        return Summaries(config, len(levels.code), levels=levels, may_lack_age=may_lack_age)
    return Behrt(config, len(levels.code), may_lack_age=may_lack_age)
