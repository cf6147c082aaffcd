"""The settings of a study: which configurations are compared, over which repeats, and what is asked of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, field_validator, model_validator

from ehrtrack.section import Section

CHOICES = ("strategy", "baseline", "objective")
"""Sections that a text chooses a table of by its name: ``"lora"`` is ``{name = "lora"}``."""

Value = str | int | float | bool | dict[str, Any]
"""Of a dotted path; a table where the path is a whole section, such as ``strategy``."""
Values = Annotated[tuple[Value, ...], Field(min_length=1)]
Selection = dict[str, Value]
"""Some configurations of a study: those whose settings have these values."""


class Comparison(Section):
    """A difference that is tested, beside those of each configuration to the reference.

    Attributes
    ----------
    question : what is asked, in words
    this, to : which configurations are compared; the settings that neither names are equal on both sides

    Examples
    --------
    >>> asked = Comparison(question="Does pretraining pay?", this={"strategy": "full"}, to={"strategy": "scratch"})
    >>> asked.to["strategy"]
    {'name': 'scratch'}
    """

    question: str = Field(min_length=1)
    this: Selection = Field(min_length=1)
    to: Selection = Field(min_length=1)

    @field_validator("this", "to", mode="after")
    @classmethod
    def _named(cls, selection: Selection) -> Selection:
        return named(selection)


class StudySettings(Section):
    """What a study's TOML file says.

    Attributes
    ----------
    question : that the study answers, in words
    study : name of the study, under which its runs are tracked; that of the configuration files if empty
    finetune, baseline : configuration files of the runs, beside the study's file
    pretrain : configuration files of the pretrainings by name; one without a name is called ``pretrain``. Where there
        are several, the matrix says by the path ``pretrain`` which one a configuration starts from
    pretrain_per : the paths of the matrix and of the repeats by which pretrainings differ too; if not given, those of
        the sections data, model and runtime
    matrix : values of each dotted path; every combination is a configuration. A value of a section, such as
        ``strategy``, is a name or a table
    repeats : values of the paths that repeat a configuration, which are seeds (``runtime.seed``) and splits
        (``data.split.seed``); a configuration is run once where there are none
    exclude : configurations of the matrix that are left out
    reference : the configuration that all others are compared with; of the settings that it does not name, the one
        with equal values
    compare : further differences that are tested; one that no two configurations answer is refused
    margin : within which two configurations count as equivalent, in units of the metric by which they are chosen
    price_per_hour, currency : of the machine

    Examples
    --------
    >>> study = StudySettings(
    ...     question="Is LoRA better than Cox on code counts?",
    ...     finetune="finetune.toml",
    ...     baseline="baseline.toml",
    ...     pretrain="pretrain.toml",
    ...     matrix={"strategy": ["scratch", {"name": "lora", "rank": 4}], "baseline": ["cox"]},
    ...     repeats={"runtime.seed": [0, 1, 2]},
    ...     reference={"baseline": "cox"},
    ... )
    >>> study.matrix["strategy"]
    ({'name': 'scratch'}, {'name': 'lora', 'rank': 4})
    """

    question: str = Field(min_length=1)
    study: str = ""
    finetune: Path | None = None
    baseline: Path | None = None
    pretrain: dict[str, Path] = Field(default_factory=dict)
    pretrain_per: tuple[str, ...] | None = None
    matrix: dict[str, Values] = Field(min_length=1)
    repeats: dict[str, Values] = Field(default_factory=dict)
    exclude: tuple[Selection, ...] = ()
    reference: Selection = Field(min_length=1)
    compare: tuple[Comparison, ...] = ()
    margin: float = Field(0.01, gt=0)
    price_per_hour: float | None = Field(None, ge=0)
    currency: str = "EUR"

    @field_validator("pretrain", mode="before")
    @classmethod
    def _one_has_no_name(cls, given: object) -> object:
        return {"pretrain": given} if isinstance(given, str | Path) else given

    @field_validator("matrix", "repeats", mode="after")
    @classmethod
    def _tables(cls, values: Mapping[str, Sequence[Value]]) -> dict[str, tuple[Value, ...]]:
        return {path: tuple(named({path: value})[path] for value in of_path) for path, of_path in values.items()}

    @field_validator("reference", mode="after")
    @classmethod
    def _named(cls, selection: Selection) -> Selection:
        return named(selection)

    @field_validator("exclude", mode="after")
    @classmethod
    def _all_named(cls, selections: tuple[Selection, ...]) -> tuple[Selection, ...]:
        return tuple(named(selection) for selection in selections)

    @model_validator(mode="after")
    def _check(self) -> Self:
        both = sorted(self.matrix.keys() & self.repeats.keys())
        if both:
            raise ValueError(f"{', '.join(both)} is in the matrix and in the repeats; it is one or the other")
        if self.finetune is None and self.baseline is None:
            raise ValueError("there is neither finetune nor baseline; name the configuration file of one of them")
        return self


def named(selection: Mapping[str, Value]) -> Selection:
    """The values with each name of a choice as its table.

    >>> named({"strategy": "lora", "model.size": "tiny"})
    {'strategy': {'name': 'lora'}, 'model.size': 'tiny'}
    """
    return {
        path: {"name": value} if path in CHOICES and isinstance(value, str) else value
        for path, value in selection.items()
    }
