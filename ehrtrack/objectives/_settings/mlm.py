"""Settings of `ehrtrack.objectives.mlm`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from ehrtrack.section import Choice


class Config(Choice):
    """Settings of masked-token pretraining.

    Attributes
    ----------
    mask_probability : share of tokens that are to be predicted; 80 % of them show [MASK], 10 % a random token,
        10 % themselves
    """

    name: Literal["mlm"] = "mlm"
    mask_probability: float = Field(0.15, gt=0, lt=1)
