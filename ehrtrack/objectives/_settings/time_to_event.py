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
    lasso : strength of the penalty of a regression of each onset on single codes and values that the head starts from,
        and whose rest the network learns (`models.code_effects`); seconds for each of `n_codes`. Fine-tuning with a
        lasso then starts from what it says of the onsets. 0 leaves it out; .1 suited 58,000 records and 190 codes
    """

    name: Literal["time-to-event"] = "time-to-event"
    n_codes: int = Field(512, ge=1)
    n_pieces: int = Field(8, ge=1, le=1000)
    n_cuts: int = Field(2, ge=1, le=1000)
    lasso: float = Field(0.0, ge=0)
