"""Settings of `ehrtrack.strategies.frozen`."""

from __future__ import annotations

from typing import Literal

from ehrtrack.section import Choice


class Config(Choice):
    """Settings of the frozen strategy.

    Attributes
    ----------
    embeddings : train the embeddings as well
    cache : compute the encoder's states once and train the head on them, rather than anew in every epoch
    """

    name: Literal["frozen"] = "frozen"
    embeddings: bool = False
    cache: bool = True
