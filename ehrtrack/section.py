"""The base of every configuration section. A section lives beside the code that reads it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from enum import Enum
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, field_validator

MAX_WHOLE = 2**31 - 1
MAX_REAL = 3e38
"""What no setting has a use for, and 32-bit numbers, C libraries and random generators overflow beyond."""


class Mark(Enum):
    """What is said of a setting beside its type, as in ``Annotated[float, Mark.ADDED_LATER]``.

    Examples
    --------
    >>> from ehrtrack.data.settings import CohortConfig
    >>> Mark.ADDED_LATER in CohortConfig.model_fields["gap_days"].metadata
    True
    """

    ADDED_LATER = "added after runs had been logged: at its default it is no part of an identity"


class Section(BaseModel):
    """A frozen table of settings that refuses keys it does not know; ``--study 2024`` is a name, not a number.

    Numbers are finite, and no larger than 32 bits hold, unless a setting says otherwise.

    Examples
    --------
    >>> from ehrtrack.models.settings import ModelConfig
    >>> ModelConfig.model_validate({"size": "tiny"}).dropout
    0.1
    >>> sorted(ModelConfig().identity())
    ['dropout', 'readout_days', 'size']
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", coerce_numbers_to_str=True, allow_inf_nan=False, ser_json_inf_nan="constants"
    )

    @field_validator("*", mode="after")
    @classmethod
    def _numbers_are_of_a_size(cls, value: Any) -> Any:
        for number in _numbers(value):
            most = MAX_WHOLE if isinstance(number, int) else MAX_REAL
            if most < abs(number) < math.inf:
                raise ValueError(f"a number here is at most {most:g}, above or below 0")
        return value

    def identity(self) -> dict[str, Any]:
        """Plain values of what the settings ask for: fingerprints are made of these.

        They are those of `model_dump`, without settings that are marked `Mark.ADDED_LATER` and have their default. So
        a run that was logged before there was such a setting keeps its fingerprint.
        """
        plain = self.model_dump(mode="json")
        values: dict[str, Any] = {}
        for name, field in type(self).model_fields.items():
            value = getattr(self, name)
            if Mark.ADDED_LATER in field.metadata and value == field.get_default(call_default_factory=True):
                continue
            values[name] = value.identity() if isinstance(value, Section) else plain[name]
        return values


def _numbers(value: Any) -> Iterator[int | float]:
    """The numbers in a value, a list or a table."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from _numbers(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _numbers(inner)


class Choice(Section):
    """The settings of a plug-in; `name` says which one, and so which settings there are.

    Attributes
    ----------
    module : the module of the plug-in's package that implements it, where that is not called as the plug-in is

    Examples
    --------
    >>> from ehrtrack.strategies.settings import LoraConfig
    >>> LoraConfig(rank=4).name
    'lora'
    """

    module: ClassVar[str] = ""
    name: str
