"""Settings of `ehrtrack.objectives.time_to_event`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from ehrtrack.section import Choice


class Config(Choice):
    """Settings of time-to-event pretraining.

    Attributes
    ----------
    n_codes : the codes with the most first occurrences after cuts of training records, at most
    n_pieces : pieces of the time axis, at most; their edges are quantiles of the times to first occurrences
    n_cuts : cuts of a subject's record at each pass
    """

    name: Literal["time-to-event"] = "time-to-event"
    n_codes: int = Field(512, ge=1)
    n_pieces: int = Field(8, ge=1)
    n_cuts: int = Field(2, ge=1)
