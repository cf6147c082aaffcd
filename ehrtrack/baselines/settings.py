"""Settings that several baselines share."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from ehrtrack.section import Choice

N_CANDIDATES = 8

Rates = Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(min_length=1)]
"""Step sizes to try."""
Strengths = Annotated[tuple[Annotated[float, Field(ge=0)], ...], Field(min_length=1)]
"""Of penalties to try."""
Shares = Annotated[tuple[Annotated[float, Field(gt=0, le=1)], ...], Field(min_length=1)]
Numbers = Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1)]


class TunedChoice(Choice):
    """Settings that all baselines share.

    Attributes
    ----------
    n_candidates : combinations of settings to try; the one with the best validation C-index is kept
    seed : of everything random in the fit
    """

    n_candidates: int = Field(N_CANDIDATES, ge=1)
    seed: int = Field(0, ge=0)


class TreeSettings(TunedChoice):
    """Settings that models made of trees share.

    Attributes
    ----------
    n_intervals : of the time grid, at most
    min_subjects, min_share : a column that is not 0 in fewer training subjects (or a smaller share) is left out
    """

    n_intervals: int = Field(ge=1)
    min_subjects: int = Field(5, ge=1)
    min_share: float = Field(0.01, ge=0, lt=1)


class SequenceSettings(TunedChoice):
    """Settings of a sequence model; the tuples are what `n_candidates` combinations are taken from.

    Attributes
    ----------
    learning_rates, dropouts, widths, weight_decays : of training, embeddings and states
    epochs : the most epochs; training stops after `patience` epochs without progress, and keeps an epoch, as the
        transformer's does (`objective.select_by`)
    batch_tokens : 0 takes what the device is best with
    lambda_rank, n_intervals : of the survival objective
    """

    learning_rates: Rates = (2e-3, 1e-3, 5e-3)
    dropouts: Annotated[tuple[Annotated[float, Field(ge=0, lt=1)], ...], Field(min_length=1)] = (0.2, 0.1, 0.4)
    widths: Annotated[tuple[Annotated[int, Field(ge=1, le=4096)], ...], Field(min_length=1)] = (96, 48)
    weight_decays: Annotated[tuple[Annotated[float, Field(ge=0)], ...], Field(min_length=1)] = (0.01, 0.3)
    epochs: int = Field(15, ge=1)
    patience: int = Field(4, ge=1)
    batch_tokens: int = Field(0, ge=0)
    lambda_rank: float = Field(0.0, ge=0)
    n_intervals: int = Field(20, ge=1)
