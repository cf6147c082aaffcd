"""Settings of `ehrtrack.objectives.classification`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from ehrtrack.objectives.settings import HazardSettings


class Config(HazardSettings):
    """Settings of classification at the cohort's horizon (``cohort.horizon_days``).

    Attributes
    ----------
    threshold : risk from which a subject is called positive in the confusion matrix; None takes the share of training
        subjects that have the outcome by the horizon
    select_by : as in `objective.survival`, by the area under the ROC curve, auroc, and the Brier score at the horizon,
        brier
    """

    name: Literal["classification"] = "classification"
    threshold: float | None = Field(None, gt=0, lt=1)
    select_by: Literal["auroc", "brier"] = "auroc"
