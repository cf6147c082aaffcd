"""Settings of `ehrtrack.objectives.next_visit`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from ehrtrack.section import Choice


class Config(Choice):
    """Settings of next-visit pretraining.

    Attributes
    ----------
    n_cuts : visits of a subject that are predicted at each pass, each from an excerpt of its own; two excerpts have
        together about as many tokens as the record
    """

    name: Literal["next-visit"] = "next-visit"
    n_cuts: int = Field(2, ge=1, le=1000)
