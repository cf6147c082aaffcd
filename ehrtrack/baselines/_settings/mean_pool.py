"""Settings of `ehrtrack.baselines.mean_pool`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from ehrtrack.baselines.settings import SequenceSettings
from ehrtrack.training.settings import SkipGramConfig


class Config(SequenceSettings):
    """Settings of the mean of embeddings.

    Attributes
    ----------
    skip_gram : of the embeddings, where none were fitted before
    trains_embeddings : whether they go on learning with the head
    """

    name: Literal["mean-pool"] = "mean-pool"
    skip_gram: SkipGramConfig = SkipGramConfig()
    trains_embeddings: Annotated[tuple[bool, ...], Field(min_length=1)] = (True, False)
