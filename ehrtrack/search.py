"""The hyperparameter search: what may vary, how a trial picks, and what came out."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import optuna
import polars as pl
import sqlalchemy
import sqlalchemy.exc
from optuna.storages import RDBStorage

from ehrtrack.errors import ConfigError, TrainingError
from ehrtrack.search_space import Choices, Range, Scalar, SearchConfig
from ehrtrack.signals import INTERRUPTIONS
from ehrtrack.tracking.recovery.claims import ClaimLost, Claims

SLOT, DRAW, DEATHS = "slot", "draw", "deaths"
"""Attributes of a trial: which of the budget it is, from 0; the how-manieth draw for it; workers that died with it."""

STORAGE = "EHRTRACK_STORAGE"
"""The variable that names the database which workers share, for the programs that `ehrtrack server` tells it."""

_SQLITE_LOCK_SECONDS = 60
_POLL_SECONDS = 1.0
_TRIES_TO_OPEN = 10
_REFUSED_ONCE = (sqlalchemy.exc.OperationalError, sqlalchemy.exc.IntegrityError, sqlalchemy.exc.ProgrammingError)
_DONE = (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED)


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


def shared_storage(address: str, cache: Path) -> RDBStorage:
    """The database that workers share: at an address, at that of EHRTRACK_STORAGE, or in a file of the cache.

    Raises
    ------
    ConfigError
        If it cannot be opened or is no database of trials.
    """
    return study_storage(storage_place(address, cache))


def storage_place(address: str, cache: Path) -> Path | str:
    """Where `shared_storage` is."""
    return address or os.environ.get(STORAGE, "").strip() or cache / "sweeps.db"


def shown(place: Path | str) -> str:
    """A place as messages show it: without its password.

    >>> shown("postgresql://anna:secret@host/trials")
    'postgresql://anna:***@host/trials'
    """
    if isinstance(place, Path):
        return str(place)
    try:
        return sqlalchemy.make_url(place).render_as_string()
    except sqlalchemy.exc.ArgumentError:  # what is wrong with it may well be the password
        return "the address given, which is none of a database,"


def study_storage(where: Path | str) -> RDBStorage:
    """The database of trials in a sqlite file, shared by all workers that can see it, or at an address.

    Raises
    ------
    ConfigError
        If it cannot be opened or is no database of trials.
    """
    is_file = isinstance(where, Path)
    if isinstance(where, Path):
        where.parent.mkdir(parents=True, exist_ok=True)
    address = f"sqlite:///{where}" if is_file else str(where)
    of_engine = (
        {"connect_args": {"timeout": _SQLITE_LOCK_SECONDS}}
        if address.startswith("sqlite")
        else {"pool_pre_ping": True, "pool_size": 2}  # a connection that was cut off in the night is made anew
    )
    for tries_left in reversed(range(_TRIES_TO_OPEN)):
        try:
            return RDBStorage(address, engine_kwargs=of_engine)
        except (sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.OptunaError, RuntimeError, ImportError) as error:
            # of workers that make the tables at the same moment, all but one are refused once
            if tries_left and isinstance(error, _REFUSED_ONCE):
                time.sleep(random.uniform(0.1, 0.5))
                continue
            raise ConfigError(
                f"{shown(where)} is no database of trials that this Optuna can use: {str(error).splitlines()[0]}; "
                f"name another {'file' if is_file else 'one in runtime.storage'}"
            ) from error
    raise AssertionError("the last try returns or raises")


def open_study(config: SearchConfig, *, name: str, storage: optuna.storages.BaseStorage, seed: int) -> optuna.Study:
    """Begin the study, or join it if it is there: a higher value (validation C-index) is better."""
    return optuna.create_study(
        study_name=name,
        storage=storage,
        direction="maximize",
        sampler=_sampler(config, seed),
        pruner=_pruner(config),
        load_if_exists=True,
    )


def _sampler(config: SearchConfig, *seed: int) -> optuna.samplers.BaseSampler:
    """Draws by these numbers alone and by what is known of other trials, whichever worker asks."""
    mixed = int(np.random.SeedSequence(seed).generate_state(1)[0])
    return optuna.samplers.TPESampler(seed=mixed, n_startup_trials=config.n_startup_trials)


def _pruner(config: SearchConfig) -> optuna.pruners.BasePruner:
    if config.pruner == "median":
        return optuna.pruners.MedianPruner(
            n_startup_trials=config.n_startup_trials, n_warmup_steps=config.n_warmup_epochs
        )
    if config.pruner == "hyperband":
        return optuna.pruners.HyperbandPruner(min_resource=max(1, config.n_warmup_epochs))
    return optuna.pruners.NopPruner()


class Worker:
    """One of those that run the trials of a study together, `config.n_trials` in all.

    The budget is so many slots. A slot is claimed before its trial begins, and is done once a trial of it ran to its
    end or was pruned, so that no worker can run one too many. A trial that was cut off is queued again with its values.
    """

    def __init__(self, config: SearchConfig, *, name: str, storage: RDBStorage, seed: int) -> None:
        self.config = config
        self.study = open_study(config, name=name, storage=storage, seed=seed)
        self.claims = Claims(storage.engine, name, beat_seconds=config.heartbeat_seconds)
        self._storage = storage
        self._seed = seed

    def run(self, objective: Callable[[optuna.Trial], float], *, waits: bool = False) -> None:
        """Run trials until none is left that is not done or run by another worker.

        A trial that raises TrainingError (such as a loss that is not finite) fails. This worker makes no other in its
        place, so that a study whose trials all fail comes to an end; the next one does.

        Parameters
        ----------
        waits : until other workers have ended their trials, or are dead and their trials are run here
        """
        failed: set[int] = set()
        is_told = False
        while True:
            slot = self._take(failed)
            if slot is not None:
                self._run(slot, objective, failed)
            elif waits and (n_others := len(self._held_by_others(failed))):
                if not is_told:
                    print(f"waiting for {n_others} trials of other workers", flush=True)
                is_told = True
                time.sleep(_POLL_SECONDS)
            else:
                return

    @property
    def n_done(self) -> int:
        """Trials of the budget that have run to their end or were pruned."""
        done = self.claims.finished()
        return sum(_claim_of(slot) in done for slot in range(self.config.n_trials))

    def _take(self, passed_over: set[int]) -> int | None:
        done = self.claims.finished()
        slots = (n for n in range(self.config.n_trials) if n not in passed_over and _claim_of(n) not in done)
        return next((slot for slot in slots if self.claims.take(_claim_of(slot))), None)

    def _held_by_others(self, failed: set[int]) -> list[int]:
        done = self.claims.finished()
        left = [slot for slot in range(self.config.n_trials) if _claim_of(slot) not in done]
        return [slot for slot in left if slot not in failed or self.claims.look(_claim_of(slot)).is_held]

    def _run(self, slot: int, objective: Callable[[optuna.Trial], float], failed: set[int]) -> None:
        claim = _claim_of(slot)
        try:
            if self._is_told(slot):  # by a worker that died right after
                self.claims.finish(claim)
                return
            trial = self._begin(slot)
            try:
                self._finish(trial, claim, objective)
            except TrainingError as error:
                failed.add(slot)
                self._fail(trial)
                print(f"trial {slot + 1} of {self.config.n_trials} failed: {error}", flush=True)
                self.claims.release(claim)
        except ClaimLost as lost:
            print(f"{lost}; what came out here does not count", flush=True)
        except BaseException:
            self.claims.release(claim)
            raise

    def _finish(self, trial: optuna.Trial, claim: str, objective: Callable[[optuna.Trial], float]) -> None:
        try:
            value, state = objective(trial), optuna.trial.TrialState.COMPLETE
        except optuna.TrialPruned:
            value, state = None, optuna.trial.TrialState.PRUNED
        except INTERRUPTIONS:
            self._queue_again(trial)
            raise
        except TrainingError:
            raise
        except Exception:
            self._fail(trial)
            raise
        self.claims.hold(claim)
        self.study.tell(trial, value, state)
        self.claims.finish(claim)

    def _begin(self, slot: int) -> optuna.Trial:
        """The trial of a slot: one that is queued, or new."""
        running, waiting = (self._of_slot(slot, state) for state in ("RUNNING", "WAITING"))
        waiting += [again for dead in running if (again := self._queue_again(dead, has_died=True)) is not None]
        if not waiting:
            draw = len({trial.user_attrs[DRAW] for trial in self._of_slot(slot)})
            waiting = [self._queue({SLOT: slot, DRAW: draw})]
        trial_id = waiting[0]._trial_id
        self._storage.set_trial_state_values(trial_id, optuna.trial.TrialState.RUNNING)
        self.study.get_trials(deepcopy=False)  # its cache knows the trial then, also where no sampler asks for any
        self.study.sampler = _sampler(self.config, self._seed, slot, waiting[0].user_attrs[DRAW])
        return optuna.Trial(self.study, trial_id)  # study.ask() would take any that is queued, of whichever slot

    def _queue_again(
        self, trial: optuna.Trial | optuna.trial.FrozenTrial, *, has_died: bool = False
    ) -> optuna.trial.FrozenTrial | None:
        """End a trial that was cut off, and queue its values again; None once its workers died too often with them."""
        facts = trial.user_attrs | {DEATHS: trial.user_attrs.get(DEATHS, 0) + has_died}
        self._fail(trial)
        if facts[DEATHS] > self.config.max_retries:
            return None
        is_drawn = set(trial.params) == set(self.config.parameters)  # or else drawn anew, by the same numbers
        return self._queue(facts, trial.params if is_drawn else {}, trial.distributions if is_drawn else {})

    def _queue(
        self,
        facts: dict[str, int],
        params: dict[str, Any] | None = None,
        distributions: dict[str, optuna.distributions.BaseDistribution] | None = None,
    ) -> optuna.trial.FrozenTrial:
        queued = optuna.trial.create_trial(
            state=optuna.trial.TrialState.WAITING, user_attrs=facts, params=params, distributions=distributions
        )
        study_id = self._storage.get_study_id_from_name(self.study.study_name)
        return self._storage.get_trial(self._storage.create_new_trial(study_id, queued))

    def _fail(self, trial: optuna.Trial | optuna.trial.FrozenTrial) -> None:
        self.study.tell(trial.number, state=optuna.trial.TrialState.FAIL, skip_if_finished=True)

    def _is_told(self, slot: int) -> bool:
        return any(trial.state in _DONE for trial in self._of_slot(slot))

    def _of_slot(self, slot: int, state: str = "") -> list[optuna.trial.FrozenTrial]:
        trials = self.study.get_trials(deepcopy=False)
        return [t for t in trials if t.user_attrs.get(SLOT) == slot and state in ("", t.state.name)]


def _claim_of(slot: int) -> str:
    return f"trial {slot}"


def trials_of(study: optuna.Study, *, n_trials: int) -> list[optuna.trial.FrozenTrial]:
    """The trials within a budget: a study may have been given a larger one since."""
    return [t for t in study.get_trials(deepcopy=False) if t.user_attrs.get(SLOT, 0) < n_trials]


def trials_table(trials: Sequence[optuna.trial.FrozenTrial]) -> pl.DataFrame:
    """One row a trial: number, state, value (null unless complete), last epoch, seconds, parameters."""
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


@dataclass(frozen=True)
class Best:
    """The best complete trial.

    Attributes
    ----------
    value : its validation C-index
    overrides : its settings, by dotted path
    """

    value: float
    overrides: dict[str, Scalar]


def best_of(trials: Sequence[optuna.trial.FrozenTrial]) -> Best:
    """The best complete trial, read once: the first of those that are equal.

    Raises
    ------
    ConfigError
        If no trial is complete.
    """
    complete = [trial for trial in trials if trial.state == optuna.trial.TrialState.COMPLETE]
    if not complete:
        raise ConfigError(f"none of the {len(trials)} trials ran to its end; run more, or set search.pruner = 'none'")
    best = max(complete, key=lambda trial: (trial.value, -trial.user_attrs.get(SLOT, trial.number)))
    assert best.value is not None
    return Best(best.value, dict(best.params))
