"""Settings that the objectives of an outcome share."""

from __future__ import annotations

from pydantic import Field

from ehrtrack.section import Choice


class HazardSettings(Choice):
    """Settings of an objective whose head is a `HazardHead`.

    Attributes
    ----------
    lasso : strength of the penalty of a regression on single codes and values that the head starts from, and whose
        rest the network learns (`models.code_effects`). 0 leaves it out; of .15 to .5, .15 was best for 6,400
        subjects and .3 for 400. Where the base was pretrained by time-to-event with a lasso of its own, the effects
        may also be mixtures of those that it found for the onsets of codes
    """

    lasso: float = Field(0.0, ge=0)
