"""Settings of `ehrtrack.objectives.survival`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from ehrtrack.objectives.settings import HazardSettings


class Config(HazardSettings):
    """Settings of the survival objective.

    Attributes
    ----------
    lambda_rank : weight of the ranking loss beside the negative log-likelihood. It did not raise the C-index
        wherever it was tried (`ehrtrack frontier`) and mostly cost Brier score, so that it is off until asked for
    sigma : scale of the ranking loss; below .02 its exponential overflows
    n_intervals : intervals of the time grid, at most; its edges are quantiles of training event times
    select_by : validation measure by which training stops and an epoch is kept. By c_index, of the epochs within one
        standard error of the best C-index the one with the lowest integrated Brier score is kept, and training stops
        `patience` epochs after it, or after the best where that is later: alone, with few validation events, the
        C-index is mostly noise and may keep a first epoch whose risks are all alike. By ibs, both go by the integrated
        Brier score
    """

    name: Literal["survival"] = "survival"
    lambda_rank: float = Field(0.0, ge=0)
    sigma: float = Field(0.1, gt=0)
    n_intervals: int = Field(20, ge=1)
    select_by: Literal["c_index", "ibs"] = "c_index"
