"""Settings of `ehrtrack.objectives.survival`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from ehrtrack.section import Choice


class Config(Choice):
    """Settings of the survival objective.

    Attributes
    ----------
    lambda_rank : weight of the ranking loss beside the negative log-likelihood. It did not raise the C-index
        wherever it was tried (`ehrtrack frontier`) and mostly cost Brier score, so that it is off until asked for
    sigma : scale of the ranking loss
    n_intervals : intervals of the time grid, at most; its edges are quantiles of training event times
    select_by : validation measure by which an epoch is kept: the integrated Brier score, ibs, or c_index. With few
        validation events the C-index is mostly noise and may keep a first epoch whose risks are all alike
    lasso : strength of the penalty of a regression on single codes and values that the head starts from, and whose
        rest the network learns (`models.code_effects`). 0 leaves it out; of .15 to .5, .15 was best for 6,400
        subjects and .3 for 400
    """

    name: Literal["survival"] = "survival"
    lambda_rank: float = Field(0.0, ge=0)
    sigma: float = Field(0.1, gt=0)
    n_intervals: int = Field(20, ge=1)
    select_by: Literal["ibs", "c_index"] = "ibs"
    lasso: float = Field(0.0, ge=0)
