"""The hyperparameter search: what may vary, how a trial picks, and what came out."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, cast

import optuna
import polars as pl
import sqlalchemy.exc
from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback
from pydantic import Discriminator, Field, Tag, model_validator

from ehrtrack.errors import ConfigError, TrainingError
from ehrtrack.section import Section

Scalar = str | int | float | bool

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
_SQLITE_LOCK_SECONDS = 60


class Range(Section):
    """Numbers from `low` to `high`, both included.

    Whole numbers if both bounds are written whole (``1``), else real ones (``1.0``); `log` spreads the values
    evenly over orders of magnitude; `step` rounds them to low + k·step.
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
    """One of a few values, in no order."""

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
    """What to vary, how often, and when to give up on a trial.

    Attributes
    ----------
    n_trials : finished and pruned trials of the whole study, by all workers together
    parameters : by dotted path of the configuration; a table given here replaces the default one
    pruner : "median" stops a trial below the median of the others at the same epoch; "hyperband"; "none"
    n_startup_trials : trials that are never pruned, and are drawn at random
    n_warmup_epochs : epochs before a trial may be pruned
    heartbeat_seconds : a worker silent for twice as long is taken for dead, and its trial is tried again
    """

    n_trials: int = Field(20, ge=1)
    parameters: dict[str, Parameter] = Field(default_factory=_default_parameters, min_length=1)
    pruner: Literal["median", "hyperband", "none"] = "median"
    n_startup_trials: int = Field(5, ge=1)
    n_warmup_epochs: int = Field(1, ge=0)
    heartbeat_seconds: int = Field(30, ge=1)
    max_retries: int = Field(2, ge=0)


def suggest(trial: optuna.trial.BaseTrial, parameters: Mapping[str, Range | Choices]) -> dict[str, Scalar]:
    """One trial's overrides, by dotted path."""
    return {name: _suggest(trial, name, parameter) for name, parameter in parameters.items()}


def _suggest(trial: optuna.trial.BaseTrial, name: str, parameter: Range | Choices) -> Scalar:
    if isinstance(parameter, Choices):
        return cast(Scalar, trial.suggest_categorical(name, parameter.choices))
    if parameter.is_whole:
        step = 1 if parameter.step is None else int(parameter.step)
        return trial.suggest_int(name, int(parameter.low), int(parameter.high), log=parameter.log, step=step)
    return trial.suggest_float(name, parameter.low, parameter.high, log=parameter.log, step=parameter.step)


def study_storage(path: Path, *, heartbeat_seconds: int = 30, max_retries: int = 2) -> RDBStorage:
    """The database of trials in a sqlite file, shared by all workers that can see it.

    A trial whose worker died is failed after twice `heartbeat_seconds` by the next worker that begins a
    trial, and queued again with the same values, up to `max_retries` times.

    Raises
    ------
    ConfigError
        If the file cannot be opened or is no database of trials.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        # heartbeats are "experimental" since 2021
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        try:
            return RDBStorage(
                f"sqlite:///{path}",
                engine_kwargs={"connect_args": {"timeout": _SQLITE_LOCK_SECONDS}},
                heartbeat_interval=heartbeat_seconds,
                heartbeat_stale_trial_callback=RetryHeartbeatStaleTrialCallback(max_retry=max_retries),
            )
        except (sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.OptunaError, RuntimeError) as error:
            raise ConfigError(
                f"{path} is no database of trials that this Optuna can use: {str(error).splitlines()[0]}; "
                "name another file"
            ) from error


def open_study(config: SearchConfig, *, name: str, storage: optuna.storages.BaseStorage, seed: int) -> optuna.Study:
    """Begin the study, or join it if it is there: a higher value (validation C-index) is better.

    Workers that join later draw from another seed, or they would all propose the same first trials.
    """
    study = optuna.create_study(
        study_name=name,
        storage=storage,
        direction="maximize",
        pruner=_pruner(config),
        load_if_exists=True,
    )
    study.sampler = optuna.samplers.TPESampler(seed=seed + len(study.trials), n_startup_trials=config.n_startup_trials)
    return study


def _pruner(config: SearchConfig) -> optuna.pruners.BasePruner:
    if config.pruner == "median":
        return optuna.pruners.MedianPruner(
            n_startup_trials=config.n_startup_trials, n_warmup_steps=config.n_warmup_epochs
        )
    if config.pruner == "hyperband":
        return optuna.pruners.HyperbandPruner(min_resource=max(1, config.n_warmup_epochs))
    return optuna.pruners.NopPruner()


def run_trials(study: optuna.Study, objective: Callable[[optuna.Trial], float], *, n_trials: int) -> None:
    """Run trials until the study has `n_trials` done, counting those of other workers.

    A trial that raises TrainingError (such as a loss that is not finite) fails, and the next one begins; it
    uses up one of this worker's tries, so that a study whose trials all fail comes to an end.
    """

    def stop_when_done(study: optuna.Study, _: optuna.trial.FrozenTrial) -> None:
        if n_done(study) >= n_trials:
            study.stop()

    missing = n_trials - n_done(study)
    if missing > 0:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # heartbeats
            study.optimize(objective, n_trials=missing, catch=(TrainingError,), callbacks=[stop_when_done])


def n_done(study: optuna.Study) -> int:
    """How many trials have run to their end or were pruned; failed and running ones do not count."""
    states = (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED)
    return len(study.get_trials(deepcopy=False, states=states))


def trials_table(study: optuna.Study) -> pl.DataFrame:
    """One row a trial: number, state, value (null unless complete), last epoch, seconds, parameters."""
    trials = study.get_trials(deepcopy=False)
    parameters = sorted({name for trial in trials for name in trial.params})
    rows = [
        {
            "number": trial.number,
            "state": trial.state.name.lower(),
            "value": trial.value if trial.state == optuna.trial.TrialState.COMPLETE else None,
            "last_epoch": trial.last_step,
            "seconds": trial.duration.total_seconds() if trial.duration else None,
        }
        | {name: trial.params.get(name) for name in parameters}
        for trial in trials
    ]
    schema = {"number": pl.Int64, "state": pl.String, "value": pl.Float64, "last_epoch": pl.Int64}
    return pl.DataFrame(rows, schema_overrides=schema | {"seconds": pl.Float64}, infer_schema_length=None)


def best_overrides(study: optuna.Study) -> dict[str, Scalar]:
    """The overrides of the best complete trial, by dotted path.

    Raises
    ------
    ConfigError
        If no trial is complete.
    """
    complete = study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))
    if not complete:
        raise ConfigError(
            f"none of the {len(study.trials)} trials of {study.study_name!r} ran to its end; "
            "run more, or set search.pruner = 'none'"
        )
    return dict(study.best_trial.params)


def to_toml(overrides: Mapping[str, Any]) -> str:
    """A configuration file from values by dotted path; nested tables, keys in the order given.

    >>> print(to_toml({"strategy.rank": 8, "study": "icu", "strategy.name": "lora"}), end="")
    study = "icu"
    <BLANKLINE>
    [strategy]
    rank = 8
    name = "lora"
    """
    tree: dict[str, Any] = {}
    for path, value in overrides.items():
        *tables, key = path.split(".")
        table = tree
        for name in tables:
            table = table.setdefault(name, {})
            if not isinstance(table, dict):
                raise ConfigError(f"{path!r} needs {name!r} to be a table, and it has a value of its own")
        if key in table:
            raise ConfigError(f"{path!r} is given twice, as a value and as a table")
        table[key] = value
    return "\n".join(_table(tree, path=())).lstrip("\n") + "\n"


def _table(table: Mapping[str, Any], *, path: tuple[str, ...]) -> list[str]:
    values = {key: value for key, value in table.items() if not isinstance(value, Mapping)}
    lines = ["", f"[{'.'.join(map(_key, path))}]"] if path and values else []
    lines += [f"{_key(key)} = {_value(value)}" for key, value in values.items()]
    for key, value in table.items():
        if isinstance(value, Mapping):
            lines += _table(value, path=(*path, key))
    return lines


def _key(key: str) -> str:
    return key if _BARE_KEY.fullmatch(key) else _string(key)


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        return _float(value)
    if isinstance(value, str):
        return _string(value)
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_value, value))}]"
    raise ConfigError(f"{value!r} of type {type(value).__name__} has no form in TOML")


def _float(value: float) -> str:
    if not math.isfinite(value):
        return str(value)  # inf, -inf, nan: TOML's own words
    return repr(value)  # always with a point or an exponent, both of which TOML reads as a float


def _string(text: str) -> str:
    marks = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\t": "\\t", "\r": "\\r", "\b": "\\b", "\f": "\\f"}
    plain = "".join(marks.get(c, c if c >= " " and c != "\x7f" else f"\\u{ord(c):04X}") for c in text)
    return f'"{plain}"'
