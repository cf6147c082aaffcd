"""Settings of `ehrtrack.objectives.classification`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from ehrtrack.objectives._settings._shared import HazardSettings


class Config(HazardSettings):
    """Settings of classification at the cohort's horizon (``cohort.horizon_days``).

    Attributes
    ----------
    threshold : risk from which a subject is called positive in the confusion matrix; None takes the share of training
        subjects that have the outcome by the horizon
    """

    name: Literal["classification"] = "classification"
    threshold: float | None = Field(None, gt=0, lt=1)
