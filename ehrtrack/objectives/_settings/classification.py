"""Settings of `ehrtrack.objectives.classification`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from ehrtrack.section import Choice


class Config(Choice):
    """Settings of classification at the cohort's horizon (``cohort.horizon_days``).

    Attributes
    ----------
    threshold : risk from which a subject is called positive in the confusion matrix; None takes the share of training
        subjects that have the outcome by the horizon
    lasso : strength of the penalty of a regression on single codes and values that the head starts from, and whose
        rest the network learns (`models.code_effects`). 0 leaves it out; of .15 to .5, .15 was best for 6,400
        subjects and .3 for 400
    """

    name: Literal["classification"] = "classification"
    threshold: float | None = Field(None, gt=0, lt=1)
    lasso: float = Field(0.0, ge=0)
