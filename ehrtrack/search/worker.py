"""One of those that run the trials of a sweep together."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState, create_trial

from ehrtrack.errors import TrainingError
from ehrtrack.search.drawing import DEFAULTS, Direction, all_drawn, distribution_of, open_study, sampler, within
from ehrtrack.search.outcome import DEATHS, DRAW, ENDED, FAILURE, SLOT, hours_of, n_without_gain, trials_of
from ehrtrack.search_space import Scalar, SearchConfig
from ehrtrack.signals import INTERRUPTIONS
from ehrtrack.tracking.recovery.claims import ClaimLost, Claims

Score = float | Sequence[float]
_POLL_SECONDS = 1.0


class _Disturbed(Exception):
    """Another worker, which had lost the slot and did not know it yet, has begun or ended the trial."""


class Worker:
    """One of those that run the trials of a study together, `config.n_trials` in all.

    The budget is so many slots. A slot is claimed before its trial begins, and is done once a trial of it ran to its
    end or was pruned, so that no worker can run one too many. A trial that was cut off is queued again with its values
    and with what it had reported. Once hours or patience are over, no slot is begun that was not begun before.

    Who takes a slot over ends its trial, which can be done once: a worker that was taken for dead and lives on finds it
    ended, whatever it is about to tell of it.

    Parameters
    ----------
    defaults : settings of the first trial by dotted path, those of the configuration itself; drawn as all others if
        None
    directions : of each score, ``maximize`` or ``minimize``
    key : of the task that this worker is, if a scheduler starts another in its place (`Claims`)
    """

    def __init__(
        self,
        config: SearchConfig,
        *,
        name: str,
        storage: RDBStorage,
        seed: int,
        defaults: Mapping[str, Scalar] | None = None,
        directions: Sequence[Direction] = ("maximize",),
        key: str = "",
    ) -> None:
        self.config = config
        self.directions = tuple(directions)
        self.study = open_study(config, name=name, storage=storage, seed=seed, directions=directions)
        self.claims = Claims(storage.engine, name, beat_seconds=config.heartbeat_seconds, key=key)
        self._storage = storage
        self._seed = seed
        self._defaults = defaults

    def run(self, objective: Callable[[optuna.Trial], Score], *, waits: bool = False) -> None:
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

    def trials(self) -> list[FrozenTrial]:
        """The trials of the budget so far."""
        return trials_of(self.study, n_trials=self.config.n_trials)

    def why_over(self) -> str:
        """Why no other trial is begun although there is room for some; empty if one may be."""
        config = self.config
        if config.max_hours is None and config.patience is None:
            return ""
        trials = self.trials()
        if config.max_hours is not None and hours_of(trials) >= config.max_hours:
            return f"trials have taken {hours_of(trials):.2f} of search.max_hours = {config.max_hours:g}"
        if config.patience is not None and n_without_gain(trials, self.directions) >= config.patience:
            return f"search.patience = {config.patience} trials in a row were no gain"
        return ""

    @property
    def is_over(self) -> bool:
        """Whether all that is to be tried is done, so that every worker sees the same best."""
        return not self._open_slots()

    def _open_slots(self) -> list[int]:
        """The slots of the budget that are not done: all of them, or once it is over those that were begun."""
        done = self.claims.finished()
        slots = [slot for slot in range(self.config.n_trials) if _claim_of(slot) not in done]
        if not slots or not self.why_over():
            return slots
        unended = (TrialState.RUNNING, TrialState.WAITING)
        begun = {trial.user_attrs.get(SLOT) for trial in self.trials() if trial.state in unended}
        return [slot for slot in slots if slot in begun]

    def _take(self, passed_over: set[int]) -> int | None:
        slots = (slot for slot in self._open_slots() if slot not in passed_over)
        return next((slot for slot in slots if self.claims.take(_claim_of(slot))), None)

    def _held_by_others(self, failed: set[int]) -> list[int]:
        return [slot for slot in self._open_slots() if slot not in failed or self.claims.look(_claim_of(slot)).is_held]

    def _run(self, slot: int, objective: Callable[[optuna.Trial], Score], failed: set[int]) -> None:
        claim = _claim_of(slot)
        try:
            trial = self._begin(slot)
            if trial is not None:
                self.claims.hold(claim)
                self._finish(trial, claim, objective)
            self.claims.finish(claim)
        except TrainingError as error:
            failed.add(slot)
            print(f"trial {slot + 1} of {self.config.n_trials} failed: {error}", flush=True)
            self.claims.release(claim)
        except ClaimLost as lost:
            print(f"{lost}; what came out here does not count", flush=True)
        except (_Disturbed, UpdateFinishedTrialError):
            told = f"another worker was at trial {slot + 1} of {self.config.n_trials} too"
            print(f"{told}; what came out here does not count", flush=True)
            self.claims.release(claim)
        except BaseException:
            self.claims.release(claim)
            raise

    def _finish(self, trial: optuna.Trial, claim: str, objective: Callable[[optuna.Trial], Score]) -> None:
        """Run a trial, and tell what came of it if the claim is still held then."""
        value: Score | None
        try:
            value, state = objective(trial), TrialState.COMPLETE
        except optuna.TrialPruned:
            value, state = None, TrialState.PRUNED
        except INTERRUPTIONS:
            self._queue_again(trial)
            raise
        except Exception as error:
            self.claims.hold(claim)
            kind = "" if isinstance(error, TrainingError) else f"{type(error).__name__}: "
            self._fail(trial, kind + " ".join(str(error).split()))
            raise
        self.claims.hold(claim)
        if self.study.tell(trial, value, state, skip_if_finished=True).state != state:
            raise _Disturbed

    def _begin(self, slot: int) -> optuna.Trial | None:
        """The trial of a slot, one that is queued or new; None if one is done, by a worker that did not say so yet."""
        for dead in self._of_slot(slot, "RUNNING"):
            self._queue_again(dead, has_died=True)
        if any(trial.state in ENDED for trial in self._of_slot(slot)):
            return None
        waiting = self._of_slot(slot, "WAITING") or [self._new(slot)]
        trial_id = waiting[0]._trial_id
        if not self._storage.set_trial_state_values(trial_id, TrialState.RUNNING):
            raise _Disturbed
        self.study.get_trials(deepcopy=False)  # its cache knows the trial then, also where no sampler asks for any
        self.study.sampler = sampler(self.config, self._seed, slot, waiting[0].user_attrs[DRAW])
        return optuna.Trial(self.study, trial_id)  # study.ask() would take any that is queued, of whichever slot

    def _new(self, slot: int) -> FrozenTrial:
        """A trial that is to be drawn; the first one of all has the configuration's own settings."""
        draw = len({trial.user_attrs[DRAW] for trial in self._of_slot(slot)})
        facts: dict[str, Any] = {SLOT: slot, DRAW: draw}
        if self._defaults is None or slot or draw:
            return self._queue(facts)
        params = within(self.config.parameters, self._defaults)
        distributions = {path: distribution_of(self.config.parameters[path]) for path in params}
        return self._queue(facts | {DEFAULTS: dict(self._defaults)}, params, distributions)

    def _queue_again(self, trial: optuna.Trial | FrozenTrial, *, has_died: bool = False) -> None:
        """End a trial that was cut off, and queue its values again, unless its workers died too often with them."""
        facts = trial.user_attrs | {DEATHS: trial.user_attrs.get(DEATHS, 0) + has_died}
        reported = self._storage.get_trial(trial._trial_id).intermediate_values
        gives_up = facts[DEATHS] > self.config.max_retries
        try:
            self._fail(trial, f"{facts[DEATHS]} workers died with it" if gives_up else "")
        except UpdateFinishedTrialError:  # by another worker, which has queued it again if need be
            return
        if gives_up:
            return
        if not all_drawn(trial, self.config.parameters):  # drawn anew, by the same numbers
            self._queue(facts)
        else:
            self._queue(facts, trial.params, trial.distributions, reported)

    def _queue(
        self,
        facts: dict[str, Any],
        params: dict[str, Any] | None = None,
        distributions: dict[str, BaseDistribution] | None = None,
        reported: dict[int, float] | None = None,
    ) -> FrozenTrial:
        queued = create_trial(
            state=TrialState.WAITING,
            user_attrs=facts,
            params=params,
            distributions=distributions,
            intermediate_values=reported,
        )
        study_id = self._storage.get_study_id_from_name(self.study.study_name)
        return self._storage.get_trial(self._storage.create_new_trial(study_id, queued))

    def _fail(self, trial: optuna.Trial | FrozenTrial, reason: str = "") -> None:
        """End a trial without a score; UpdateFinishedTrialError if it is ended already."""
        if reason:
            self._storage.set_trial_user_attr(trial._trial_id, FAILURE, reason[:500])
        self._storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)

    def _of_slot(self, slot: int, state: str = "") -> list[FrozenTrial]:
        trials = self.study.get_trials(deepcopy=False)
        return [t for t in trials if t.user_attrs.get(SLOT) == slot and state in ("", t.state.name)]


def _claim_of(slot: int) -> str:
    return f"trial {slot}"


def report(trial: optuna.Trial, value: float, step: int) -> bool:
    """Tell the score of a step, once; False if it was told before, by a worker that the trial was taken over from."""
    if step in trial.storage.get_trial(trial._trial_id).intermediate_values:
        return False
    trial.report(value, step)
    return True
