"""Settings of `ehrtrack.objectives.mixed`."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from ehrtrack import plugins
from ehrtrack.section import Choice


class Config(Choice):
    """Settings of a sum of objectives.

    Attributes
    ----------
    weights : of each part's mean loss, by the part's name. Losses differ in scale: one of masked tokens is in nats a
        token, one of the next visit in nats a visit, over all codes
    settings : of the parts that are not to have their defaults, by name
    """

    name: Literal["mixed"] = "mixed"
    weights: dict[str, float] = Field({"mlm": 1.0, "time-to-event": 0.1})
    settings: dict[str, dict[str, Any]] = Field({})

    @model_validator(mode="after")
    def _parts_are_right(self) -> Config:
        if not self.weights or min(self.weights.values()) <= 0 or self.name in self.weights:
            raise ValueError("weights needs one positive weight a part, such as {mlm = 1.0}, and no part is 'mixed'")
        if unknown := sorted(self.settings.keys() - self.weights.keys()):
            raise ValueError(f"settings of {', '.join(unknown)}, and weights names only {', '.join(self.weights)}")
        self.parts()
        return self

    def parts(self) -> dict[str, Choice]:
        """The parts' own configurations, by name."""
        return {
            name: plugins.settings("objectives", name).model_validate(self.settings.get(name, {}))
            for name in self.weights
        }
