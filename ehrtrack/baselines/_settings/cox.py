"""Settings of `ehrtrack.baselines.cox`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from ehrtrack.baselines.settings import TunedChoice


class Config(TunedChoice):
    """Settings of the Cox model.

    Attributes
    ----------
    penalties : penalty strengths to try; empty takes a path of `n_candidates` from the smallest that zeroes every
        coefficient, down
    min_penalty_ratio : its last strength as a share of its first
    l1_ratio : 1 is the lasso; towards 0 it is ridge, which keeps correlated codes together
    min_subjects : a feature that is not 0 in fewer training subjects is left out
    log_counts : take log(1 + x) of whole-number features, whose tails are long
    """

    name: Literal["cox"] = "cox"
    penalties: tuple[Annotated[float, Field(ge=0)], ...] = ()
    min_penalty_ratio: float = Field(0.01, gt=0, lt=1)
    l1_ratio: float = Field(0.1, gt=0, le=1)
    min_subjects: int = Field(5, ge=1)
    log_counts: bool = True
