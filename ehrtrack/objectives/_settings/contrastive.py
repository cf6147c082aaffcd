"""Settings of `ehrtrack.objectives.contrastive`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from ehrtrack.section import Choice


class Config(Choice):
    """Settings of contrastive pretraining.

    Attributes
    ----------
    temperature : tau of the paper
    projection : width of the space in which views are compared
    """

    name: Literal["contrastive"] = "contrastive"
    temperature: float = Field(0.1, ge=1e-6)
    projection: int = Field(64, ge=2, le=65_536)
