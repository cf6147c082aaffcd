"""Settings of `ehrtrack.strategies.lora`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from ehrtrack.section import Choice


class Config(Choice):
    """Settings of LoRA.

    Attributes
    ----------
    rank : inner dimension of each adapter
    alpha : scale; the update is multiplied by alpha / rank
    dropout : of the adapters' input
    embeddings : train the embeddings as well
    """

    name: Literal["lora"] = "lora"
    rank: int = Field(8, ge=1)
    alpha: int = Field(16, gt=0)
    dropout: float = Field(0.05, ge=0, lt=1)
    embeddings: bool = False
