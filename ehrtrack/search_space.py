"""What a sweep or a sensitivity analysis varies, and when it ends: the settings of `ehrtrack.search`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from ehrtrack.section import Mark, Section

Scalar = str | int | float | bool
Condition = dict[str, Scalar | tuple[Scalar, ...]]
"""By dotted path, the value or one of the values that a setting must have."""


class Conditional(Section):
    """What is searched of one setting, under a condition or always.

    Attributes
    ----------
    when : the setting is drawn only where those named here have the value, or one of the values, that stands here.
        A setting that belongs to one choice, such as the rank of LoRA, needs no such condition: it is drawn where that
        choice is

    Examples
    --------
    >>> rate = Range(low=1e-4, high=1e-3, log=True, when={"strategy.name": ["full", "scratch"]})
    >>> rate.is_met({"strategy.name": "full"}), rate.is_met({"strategy.name": "lora"})
    (True, False)
    """

    when: Condition = Field(default_factory=dict, exclude_if=lambda when: not when)

    def is_met(self, values: Mapping[str, Any]) -> bool:
        """Whether the condition is met by these values of settings, by dotted path."""
        return all(
            values.get(path) in (wanted if isinstance(wanted, tuple) else (wanted,))
            for path, wanted in self.when.items()
        )


class Range(Conditional):
    """Numbers from `low` to `high`, both included.

    The numbers are whole if both bounds are written as whole numbers (``1``), and real otherwise (``1.0``).

    Attributes
    ----------
    low, high : the bounds
    log : whether they are drawn uniformly on the logarithmic scale
    step : they are low + k·step

    Raises
    ------
    ValueError
        If `low` is not below `high`, or `log` is asked for with a bound of 0 or below or together with `step`.

    Examples
    --------
    >>> Range(low=1, high=8).is_whole, Range(low=0.0, high=0.3).is_whole
    (True, False)
    >>> Range(low=1e-4, high=1e-2, log=True).log
    True
    """

    low: int | float
    high: int | float
    log: bool = False
    step: int | float | None = None

    @property
    def is_whole(self) -> bool:
        """Whether only whole numbers are drawn."""
        return isinstance(self.low, int) and isinstance(self.high, int) and not isinstance(self.step, float)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.low < self.high:
            raise ValueError(f"low is {self.low} and high is {self.high}; low must be below high")
        if self.log and self.low <= 0:
            raise ValueError(f"low is {self.low}; with log = true it must be above 0")
        if self.log and self.step is not None:
            raise ValueError("log and step exclude each other")
        if self.step is not None and self.step <= 0:
            raise ValueError(f"step is {self.step}; it must be above 0")
        return self


class Choices(Conditional):
    """One of a few values, in no order.

    Attributes
    ----------
    choices : the values

    Examples
    --------
    >>> Choices(choices=("frozen", "lora")).choices
    ('frozen', 'lora')
    """

    choices: tuple[Scalar, ...] = Field(min_length=1)


def _form(value: Any) -> str:
    has_choices = isinstance(value, Choices) or (isinstance(value, Mapping) and "choices" in value)
    return "choices" if has_choices else "range"


Parameter = Annotated[
    Annotated[Range, Tag("range")] | Annotated[Choices, Tag("choices")],
    Discriminator(_form),
]


def _default_parameters() -> dict[str, Range | Choices]:
    return {
        "strategy.rank": Choices(choices=(2, 4, 8, 16, 32)),
        "strategy.dropout": Range(low=0.0, high=0.3),
        "objective.lambda_rank": Range(low=0.01, high=1.0, log=True),
    }


class SearchConfig(Section):
    """Which settings a sweep varies, by what its trials are scored, and when it ends.

    Attributes
    ----------
    recipe : what a trial is: a ``finetune``, or a ``baseline``
    n_trials : number of finished and pruned trials of the whole sweep, over all workers, the most that there are
    max_hours : that the finished trials of all workers may have taken together; after them no other trial begins
    patience : number of trials in a row without a gain after which no other begins
    parameters : the range or the choices of each setting, by its dotted path; a table given here replaces the default.
        The first trial has the settings of the configuration itself
    metrics : by which trials are scored on subjects who did not train; the metric of choice if empty. Of two, such as
        ``["c_index", "ibs"]``, the trials that no other beats in both are looked for, and none is pruned
    folds : number of parts into which training and validation subjects together are divided: a trial is fitted so many
        times, is scored on each part once, and has the mean. 0 scores it on the validation subjects
    refits : number of seeds with which what the search chose is fitted afterwards, and the configuration itself
    sampler : ``tpe`` (multivariate) looks at settings together, ``independent`` at each by itself, ``random`` at no
        trial before
    pruner : ``median`` stops a trial whose score is below the median of the other trials at the same epoch; the others
        are ``hyperband`` and ``none``
    n_startup_trials : number of first trials, which are drawn at random and never pruned
    n_warmup_epochs : number of epochs before a trial may be pruned
    heartbeat_seconds : interval of a worker's heartbeat; a worker that is silent for twice as long counts as dead, and
        its trial is continued by another
    max_retries : how often a trial is resumed

    Examples
    --------
    A table of ``parameters`` takes the place of the default one:

    >>> search = SearchConfig(n_trials=10, parameters={"train.lr": {"low": 1e-4, "high": 1e-2, "log": True}})
    >>> list(search.parameters), search.parameters["train.lr"].is_whole
    (['train.lr'], False)
    """

    recipe: Annotated[Literal["finetune", "baseline"], Mark.ADDED_LATER] = "finetune"
    n_trials: int = Field(20, ge=1)
    max_hours: Annotated[float | None, Field(gt=0), Mark.ADDED_LATER] = None
    patience: Annotated[int | None, Field(ge=1), Mark.ADDED_LATER] = None
    parameters: dict[str, Parameter] = Field(default_factory=_default_parameters, min_length=1)
    metrics: Annotated[tuple[str, ...], Field(max_length=2), Mark.ADDED_LATER] = ()
    folds: Annotated[int, Field(ge=0, le=20), Mark.ADDED_LATER] = 0
    refits: Annotated[int, Field(ge=1), Mark.ADDED_LATER] = 3
    sampler: Annotated[Literal["tpe", "independent", "random"], Mark.ADDED_LATER] = "tpe"
    pruner: Literal["median", "hyperband", "none"] = "median"
    n_startup_trials: int = Field(5, ge=1)
    n_warmup_epochs: int = Field(1, ge=0)
    heartbeat_seconds: int = Field(30, ge=1)
    max_retries: int = Field(2, ge=0)

    @field_validator("folds")
    @classmethod
    def _are_folds(cls, folds: int) -> int:
        if folds == 1:
            raise ValueError(
                "one fold leaves nobody to train; give 2 or more, or 0 to score on the validation subjects"
            )
        return folds

    @property
    def prunes(self) -> bool:
        """Whether trials may be stopped before their end: those with two scores have no order to stop them by."""
        return self.pruner != "none" and len(self.metrics) < 2


class SensitivityConfig(Section):
    """The setting that a sensitivity analysis varies (`ehrtrack sensitivity`).

    Attributes
    ----------
    parameter : the dotted path of the setting
    values : two values or more; the others are compared with the first

    Examples
    --------
    LoRA of rank 4 and 8, each compared with rank 2:

    >>> SensitivityConfig(parameter="strategy.rank", values=[2, 4, 8]).values[0]
    2
    """

    parameter: str = "objective.lambda_rank"
    values: tuple[Scalar, ...] = Field((0.0, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0), min_length=2)
