"""The base of every configuration section. A section lives beside the code that reads it."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A frozen table of settings that refuses keys it does not know; ``--study 2024`` is a name, not a number."""

    model_config = ConfigDict(frozen=True, extra="forbid", coerce_numbers_to_str=True)


class Choice(Section):
    """The settings of a plug-in; `name` says which one, and so which settings there are."""

    name: str
