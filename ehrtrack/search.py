"""The hyperparameter search: what may vary, how a trial picks, and what came out."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import cast

import optuna
import polars as pl
import sqlalchemy.exc
from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback

from ehrtrack.errors import ConfigError, TrainingError
from ehrtrack.search_space import Choices, Range, Scalar, SearchConfig

_SQLITE_LOCK_SECONDS = 60


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
