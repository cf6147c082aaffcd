"""The sizes of the encoder, and its settings."""

from __future__ import annotations

from typing import Annotated, Literal, NamedTuple

from pydantic import Field, field_validator, model_validator

from ehrtrack.errors import ConfigError
from ehrtrack.plugins import nearest
from ehrtrack.section import Mark, Section


class Size(NamedTuple):
    """The shape of the encoder: its width D, the number of layers and of attention heads, and the width of the MLP.

    Examples
    --------
    >>> size = SIZES["small"]
    >>> size.width // size.n_heads  # the width of each attention head
    24
    """

    width: int
    n_layers: int
    n_heads: int
    mlp_width: int


SIZES = {
    "tiny": Size(width=32, n_layers=2, n_heads=2, mlp_width=64),  # tests
    "small": Size(width=96, n_layers=4, n_heads=4, mlp_width=384),  # about 0.7 M parameters
    "medium": Size(width=192, n_layers=6, n_heads=6, mlp_width=768),  # about 3 M
    "large": Size(width=384, n_layers=6, n_heads=6, mlp_width=1536),  # 10 to 20 M, by vocabulary
}


ScalesDays = Annotated[tuple[Annotated[float, Field(ge=1e-6)], ...], Field(min_length=1)]
"""Scales of times, in days."""

READOUT_DAYS = (1.0, 30.0, 365.25)
"""Those that suit the records of years."""


class ModelConfig(Section):
    """Settings of the encoder.

    Attributes
    ----------
    encoder : what reads a record: a transformer on its tokens, or a small network on summaries of it (`summaries`),
        which has the width of the size and no layers
    size : the shape of the encoder, one of `SIZES`
    dropout : probability of dropout on the embeddings and on the two outputs of each layer; attention weights have none
    members : networks on summaries that are trained side by side, as an ensemble (`summaries`): the states of all are
        read, and the cost is that of so many
    readout_days : the scales, in days, on which [CLS] reads how long ago events were (`behrt.Readout`). The default of
        a day, a month and a year suits records of years; records of two days of intensive care need scales of hours.
        The regression that is the offset of a head (`objective.lasso`) has the same scales

    Raises
    ------
    ConfigError
        If there is no such size.

    Examples
    --------
    ``[model] size = "tiny"`` and ``readout_days = [0.04, 0.5]``, which is about an hour and half a day:

    >>> model = ModelConfig(size="tiny", readout_days=[0.04, 0.5])
    >>> SIZES[model.size].width, model.readout_days
    (32, (0.04, 0.5))
    """

    encoder: Annotated[Literal["transformer", "summaries"], Mark.ADDED_LATER] = "transformer"
    size: str = "small"
    dropout: float = Field(0.1, ge=0, lt=1)
    members: Annotated[int, Mark.ADDED_LATER] = Field(default=1, ge=1)
    readout_days: ScalesDays = READOUT_DAYS

    @model_validator(mode="after")
    def _has_members(self) -> ModelConfig:
        if self.members > 1 and self.encoder != "summaries":
            raise ConfigError(
                f"model.members is {self.members}, and model.encoder is {self.encoder}, which has none: set "
                "model.encoder=summaries, or leave model.members out"
            )
        return self

    @property
    def title(self) -> str:
        """The size, and before it the encoder, where that is no transformer.

        >>> ModelConfig(size="tiny").title, ModelConfig(encoder="summaries", size="tiny").title
        ('tiny', 'summaries tiny')
        >>> ModelConfig(encoder="summaries", size="tiny", members=4).title
        'summaries tiny x4'
        """
        title = self.size if self.encoder == "transformer" else f"{self.encoder} {self.size}"
        return title if self.members == 1 else f"{title} x{self.members}"

    @field_validator("size")
    @classmethod
    def _is_known(cls, size: str) -> str:
        if size not in SIZES:
            raise ConfigError(f"unknown model.size {size!r}{nearest(size, list(SIZES))}; there are: {', '.join(SIZES)}")
        return size
