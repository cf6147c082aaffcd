"""Settings of competing risks."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from ehrtrack.section import Choice


class Config(Choice):
    """Settings of competing risks.

    Attributes
    ----------
    n_intervals : intervals of the time grid, at most; its edges are quantiles of training event times of any cause
    lasso : strength of the penalty of a regression on single codes and values that the head starts from, and whose
        rest the network learns (`models.code_effects`). 0 leaves it out; of .15 to .5, .15 was best for 6,400
        subjects and .3 for 400
    """

    name: Literal["competing-risks"] = "competing-risks"
    n_intervals: int = Field(20, ge=1)
    lasso: float = Field(0.0, ge=0)
