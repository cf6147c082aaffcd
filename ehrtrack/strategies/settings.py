"""Which strategies there are, and the settings of each. This module does not import torch."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from ehrtrack.section import Choice, Mark

HeadFrom = Annotated[Literal["trained", "ridge"], Mark.ADDED_LATER]
"""Whether a head is trained from near 0, or solved for."""


class FrozenConfig(Choice):
    """Settings of the frozen strategy.

    Attributes
    ----------
    embeddings : whether the embeddings are trained as well
    cache : whether the states of the encoder are computed once, before the head is trained on them, and not in each
        epoch
    head : ``trained`` for epochs, of which validation subjects choose one; or ``ridge``, a regression on the states,
        age and static facts whose penalty is chosen by cross-validation over training and validation subjects. It is
        solved for in seconds (`training.ridge_head`), and nothing of `train` has a part in it but `batch_tokens`

    Examples
    --------
    ``[strategy] name = "frozen"`` and ``head = "ridge"``:

    >>> FrozenConfig(head="ridge").cache
    True
    """

    name: Literal["frozen"] = "frozen"
    embeddings: bool = False
    cache: bool = True
    head: HeadFrom = "trained"

    @model_validator(mode="after")
    def _head_is_of_what_stays(self) -> FrozenConfig:
        if self.head == "ridge" and self.embeddings:
            raise ValueError("head = ridge is solved for on states that stay as they are: leave out embeddings = true")
        return self


class LoraConfig(Choice):
    """Settings of LoRA.

    Attributes
    ----------
    rank : the inner dimension r of each adapter
    alpha : the scale of the update, which is multiplied by alpha / rank (Hu et al. 2022, LoRA, arXiv:2106.09685)
    dropout : the probability of dropout on the input of each adapter
    embeddings : whether the embeddings are trained as well
    dora : whether the length of each row of an adapted matrix is learnt apart from its direction (Liu et al. 2024,
        DoRA, arXiv:2402.09353)
    head : as `FullConfig` has it

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
    dora: Annotated[bool, Mark.ADDED_LATER] = False
    head: HeadFrom = "trained"


class BitfitConfig(Choice):
    """BitFit has no settings of its own.

    Examples
    --------
    >>> BitfitConfig().name
    'bitfit'
    """

    name: Literal["bitfit"] = "bitfit"


class LpFtConfig(Choice):
    """Settings of LP-FT.

    Attributes
    ----------
    head_epochs : epochs in which the head alone learns, before everything does

    Examples
    --------
    >>> LpFtConfig(head_epochs=2).head_epochs
    2
    """

    module: ClassVar[str] = "lp_ft"
    name: Literal["lp-ft"] = "lp-ft"
    head_epochs: int = Field(3, ge=1)


class FullConfig(Choice):
    """Settings of full fine-tuning.

    Attributes
    ----------
    is_from_random : whether training starts from random weights even where ``init.run`` names a pretrained model
    head : ``trained`` begins near the population's hazards; ``ridge`` begins at a regression on the states that
        pretraining made, whose penalty is chosen by cross-validation over training subjects
        (`training.ridge_head`), and learns on with everything else. Take a low rate then (``train.lr`` of 1e-4), as a
        high one soon forgets where it began, and a hundred subjects a batch (``train.batch_tokens``), as steps by few
        make it foretell too many or too few events

    Examples
    --------
    >>> FullConfig().is_from_random
    False
    """

    is_from_random: ClassVar[bool] = False
    name: Literal["full"] = "full"
    head: HeadFrom = "trained"


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

    @model_validator(mode="after")
    def _there_are_states(self) -> ScratchConfig:
        if self.head == "ridge":
            raise ValueError("head = ridge is solved for on states that pretraining made, and scratch has none")
        return self
