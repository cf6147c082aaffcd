"""Settings of `ehrtrack.baselines.lasso`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from ehrtrack.baselines.settings import Strengths, TunedChoice
from ehrtrack.models.settings import READOUT_DAYS, ScalesDays


class Config(TunedChoice):
    """Settings of the lasso regression.

    Attributes
    ----------
    strengths : of the penalty, in units of ``sqrt(log P / N)``; `n_candidates` of them are tried
    scales_days : of times: a day, a month and a year; where a record is two days of intensive care, take hours
    n_intervals : of the time grid, at most
    """

    name: Literal["lasso"] = "lasso"
    strengths: Strengths = (0.25, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.7)
    scales_days: ScalesDays = READOUT_DAYS
    n_intervals: int = Field(20, ge=1)
