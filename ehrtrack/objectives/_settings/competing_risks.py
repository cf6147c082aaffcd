"""Settings of competing risks."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from ehrtrack.objectives.settings import HazardSettings


class Config(HazardSettings):
    """Settings of competing risks.

    Attributes
    ----------
    n_intervals : intervals of the time grid, at most; its edges are quantiles of training event times of any cause
    select_by : as in `objective.survival`; c_index is the mean of the causes', ibs that of any cause
    """

    name: Literal["competing-risks"] = "competing-risks"
    n_intervals: int = Field(20, ge=1)
    select_by: Literal["c_index", "ibs"] = "c_index"
