"""The settings of all strategies, free of torch: which there are, and what each may be told."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from ehrtrack.section import Choice


class FrozenConfig(Choice):
    """Settings of the frozen strategy.

    Attributes
    ----------
    embeddings : train the embeddings as well
    cache : compute the encoder's states once and train the head on them, rather than anew in every epoch

    Examples
    --------
    ``[strategy] name = "frozen"`` and ``embeddings = true``:

    >>> FrozenConfig(embeddings=True).cache
    True
    """

    name: Literal["frozen"] = "frozen"
    embeddings: bool = False
    cache: bool = True


class LoraConfig(Choice):
    """Settings of LoRA.

    Attributes
    ----------
    rank : inner dimension of each adapter
    alpha : scale; the update is multiplied by alpha / rank
    dropout : of the adapters' input
    embeddings : train the embeddings as well

    Examples
    --------
    ``[strategy] name = "lora"`` and ``rank = 8``; the update is multiplied by 16 / 8 = 2:

    >>> lora = LoraConfig(rank=8)
    >>> lora.alpha / lora.rank
    2.0
    """

    name: Literal["lora"] = "lora"
    rank: int = Field(8, ge=1)
    alpha: int = Field(16, gt=0)
    dropout: float = Field(0.05, ge=0, lt=1)
    embeddings: bool = False


class FullConfig(Choice):
    """Full fine-tuning has no settings of its own.

    Attributes
    ----------
    is_from_random : whether it starts from random weights, even where ``init.run`` names a pretrained model

    Examples
    --------
    >>> FullConfig().is_from_random
    False
    """

    is_from_random: ClassVar[bool] = False
    name: Literal["full"] = "full"


class ScratchConfig(FullConfig):
    """Full fine-tuning from random weights: the control that pretraining has to beat.

    Examples
    --------
    >>> ScratchConfig().is_from_random
    True
    """

    module: ClassVar[str] = "full"
    is_from_random: ClassVar[bool] = True
    name: Literal["scratch"] = "scratch"  # type: ignore[assignment]
