"""What a sweep or a sensitivity analysis varies, and when it ends: the settings of `ehrtrack.search`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator

from ehrtrack.section import Section

Scalar = str | int | float | bool


class Range(Section):
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


class Choices(Section):
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
    """Which settings a sweep varies, how many trials it has, and when a trial is pruned.

    Attributes
    ----------
    n_trials : number of finished and pruned trials of the whole study, over all workers
    parameters : the range or the choices of each setting, by its dotted path; a table given here replaces the default
    pruner : ``median`` stops a trial whose score is below the median of the other trials at the same epoch; the others
        are ``hyperband`` and ``none``
    n_startup_trials : number of first trials, which are drawn at random and never pruned
    n_warmup_epochs : number of epochs before a trial may be pruned
    heartbeat_seconds : interval of a worker's heartbeat; a worker that is silent for twice as long counts as dead, and
        its trial is started again
    max_retries : how often a trial is started again

    Examples
    --------
    A table of ``parameters`` takes the place of the default one:

    >>> search = SearchConfig(n_trials=10, parameters={"train.lr": {"low": 1e-4, "high": 1e-2, "log": True}})
    >>> list(search.parameters), search.parameters["train.lr"].is_whole
    (['train.lr'], False)
    """

    n_trials: int = Field(20, ge=1)
    parameters: dict[str, Parameter] = Field(default_factory=_default_parameters, min_length=1)
    pruner: Literal["median", "hyperband", "none"] = "median"
    n_startup_trials: int = Field(5, ge=1)
    n_warmup_epochs: int = Field(1, ge=0)
    heartbeat_seconds: int = Field(30, ge=1)
    max_retries: int = Field(2, ge=0)


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
