"""Gradient boosting on counts of codes, on when they came, and on first, last and trend of values.

The model is that of `gradient_boosting`; only what it reads differs. Whether a sequence model is worth its cost shows
against this one, not against bags of codes.
"""

from __future__ import annotations

from ehrtrack.baselines._settings.gradient_boosting_timing import Config as Config
from ehrtrack.baselines.base import read_timing
from ehrtrack.baselines.gradient_boosting import BoostingModel, fit

__all__ = ["Config", "fit", "from_json", "read"]


read = read_timing
from_json = BoostingModel.from_json
