"""Who runs which cell: a queue in the database that all workers of a study see.

Each cell is a trial of an Optuna study, so that `optuna-dashboard` shows how far the study is: its parameters are the
settings, and its value is the metric of the test subjects. A worker holds the claim to a cell while it runs it; the
claim of one that died lapses, and another resumes the cell. The tracking server has the last word on what is
done: what the queue says counts for as long as nobody has lost the database, or the runs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, cast

import optuna
from optuna.distributions import CategoricalDistribution
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState

from ehrtrack.study.cells import Cell, Study
from ehrtrack.tracking.recovery.claims import ClaimLost, Claims

BEAT_SECONDS = 30.0
MAX_FAILURES = 2
"""A cell that failed is tried once more."""
CELL, RUN, FAILURES, REASON, WORKER = "cell", "run", "failures", "reason", "worker"
"""Attributes of a trial: the cell's key, the run that it is, how often it failed and why, and who runs it."""
FILLING = "filling the queue"

State = Literal["waiting", "running", "done", "failed", "blocked"]
_STATES: Mapping[TrialState, State] = {
    TrialState.WAITING: "waiting",
    TrialState.RUNNING: "running",
    TrialState.COMPLETE: "done",
    TrialState.FAIL: "failed",
    TrialState.PRUNED: "failed",
}


@dataclass(frozen=True)
class Standing:
    """How a cell stands.

    Attributes
    ----------
    state : blocked is a cell whose pretraining failed
    run_id : of a cell that is done, or that was begun and is known
    reason : why it failed the last time
    """

    state: State = "waiting"
    run_id: str = ""
    failures: int = 0
    reason: str = ""


@dataclass(frozen=True)
class Finished:
    """A cell's run that has ended well.

    Attributes
    ----------
    value : the metric of its test subjects; 0 of a pretraining, which has none
    """

    run_id: str
    value: float


class Queue:
    """The cells of a study, as one worker takes them.

    Parameters
    ----------
    key : of the task that this worker is (`Claims`)
    """

    def __init__(self, study: Study, storage: RDBStorage, *, key: str = "") -> None:
        self.study = study
        # of the study's name and not of its question: a cell that two questions share is run by one worker, too
        self.claims = Claims(storage.engine, f"study {study.name}", beat_seconds=BEAT_SECONDS, key=key)
        self._storage = storage
        self._trials = optuna.create_study(
            study_name=study.queue, storage=storage, direction="maximize", load_if_exists=True
        )
        self._study_id = storage.get_study_id_from_name(study.queue)

    def fill(self, finished: Mapping[str, Finished], *, tries_again: bool = False) -> None:
        """Have each cell in the queue once, and what is done on the tracking server done here.

        A cell that is done here and is on the server no more waits again.

        Parameters
        ----------
        finished : runs on the server, by the key of their cell
        tries_again : cells that failed, as often as they may, are tried once more
        """
        with self._alone():
            there = self._last_trials()
            for cell in self.study.cells:
                trial = there.get(cell.key)
                if trial is not None and trial.state == TrialState.COMPLETE and cell.key not in finished:
                    print(f"{cell.label}: its run is not on the tracking server any more; it is made again", flush=True)
                    trial = None
                if trial is not None and trial.state == TrialState.FAIL and (tries_again or cell.key in finished):
                    trial = self._enqueue(cell, failures=MAX_FAILURES - 1)
                if trial is None:
                    trial = self._enqueue(cell)
                if cell.key in finished and not trial.state.is_finished():
                    self._tell(trial, finished[cell.key])

    def take(self) -> Cell | None:
        """The next cell whose base is there, for this worker alone; None if there is none at the moment."""
        there = self._last_trials()
        for cell in self.study.cells:
            if not self._can_begin(cell, there) or not self.claims.take(_claim(cell)):
                continue
            trial = self._last_trials()[cell.key]  # what another worker may have done since
            if trial.state.is_finished():
                self.claims.release(_claim(cell))
                continue
            begun = {WORKER: self.claims.worker}
            if (
                self._set(trial, TrialState.WAITING)
                and self._set(trial, TrialState.RUNNING, begun)
                and self._holds(cell)
            ):
                return cell
            self.claims.release(_claim(cell))
        return None

    def finish(self, cell: Cell, finished: Finished) -> None:
        """A cell that is held is done.

        Raises
        ------
        ClaimLost
            If another worker took it over.
        """
        self.claims.hold(_claim(cell))
        trial = self._last_trials()[cell.key]
        if trial.state == TrialState.FAIL:  # by a worker that had lost the cell and did not know it yet
            trial = self._enqueue(cell)
        self._tell(trial, finished)
        self.claims.release(_claim(cell))

    def fail(self, cell: Cell, reason: str) -> bool:
        """A cell that is held failed; whether it is to be tried again, by whoever comes first.

        Raises
        ------
        ClaimLost
            If another worker took it over.
        """
        self.claims.hold(_claim(cell))
        trial = self._last_trials()[cell.key]
        failures = trial.user_attrs.get(FAILURES, 0) + 1
        tries_again = bool(failures < MAX_FAILURES)
        state = TrialState.WAITING if tries_again else TrialState.FAIL
        is_open = self._set(trial, state, {FAILURES: failures, REASON: reason})
        self.claims.release(_claim(cell))
        return tries_again and is_open

    def put_back(self, cell: Cell) -> None:
        """Leave a cell that is held to whoever comes: it was cut off."""
        if self._holds(cell):
            self._set(self._last_trials()[cell.key], TrialState.WAITING)
            self.claims.release(_claim(cell))

    def standing(self) -> dict[str, Standing]:
        """How each cell stands, by its key."""
        there = self._last_trials()
        found = {cell.key: _standing(there.get(cell.key)) for cell in self.study.cells}
        for cell in self.study.cells:
            if cell.base and found[cell.base].state == "failed" and found[cell.key].state == "waiting":
                found[cell.key] = Standing("blocked", reason="its pretraining failed")
        return found

    def _holds(self, cell: Cell) -> bool:
        """Whether a cell that this worker took is still its own."""
        try:
            self.claims.hold(_claim(cell))
        except ClaimLost:
            return False
        return True

    def _can_begin(self, cell: Cell, there: Mapping[str, FrozenTrial]) -> bool:
        is_base_there = not cell.base or there[cell.base].state == TrialState.COMPLETE
        return is_base_there and not there[cell.key].state.is_finished()

    def _last_trials(self) -> dict[str, FrozenTrial]:
        """Of each cell the last trial; there was one before only where its run is gone, or had failed for good."""
        trials = self._storage.get_all_trials(self._study_id, deepcopy=False)
        return {trial.user_attrs[CELL]: trial for trial in trials if CELL in trial.user_attrs}

    def _enqueue(self, cell: Cell, *, failures: int = 0) -> FrozenTrial:
        facts = {CELL: cell.key, "recipe": cell.recipe, "label": cell.label, FAILURES: failures}
        params = parameters(cell)
        trial = optuna.trial.create_trial(
            state=TrialState.WAITING,
            user_attrs=facts,
            params=params,
            distributions={path: CategoricalDistribution(self._choices[path]) for path in params},
        )
        return self._storage.get_trial(self._storage.create_new_trial(self._study_id, trial))

    @property
    def _choices(self) -> dict[str, Sequence[str]]:
        """Of each parameter all values that it has in the study, of which there may be no more later."""
        every = [item for cell in self.study.cells for item in parameters(cell).items()]
        return {path: sorted({value for other, value in every if other == path}) for path, _ in every}

    def _tell(self, trial: FrozenTrial, finished: Finished) -> None:
        self._set(trial, TrialState.COMPLETE, {RUN: finished.run_id}, [finished.value])

    def _set(
        self,
        trial: FrozenTrial,
        state: TrialState,
        notes: Mapping[str, str | int] = MappingProxyType({}),
        values: Sequence[float] | None = None,
    ) -> bool:
        """Whether the trial was open: nothing changes of one that is done, as another worker saw on the server."""
        try:
            for name, value in notes.items():
                self._note(trial, name, value)
            self._storage.set_trial_state_values(trial._trial_id, state, values)
        except UpdateFinishedTrialError:
            return False
        return True

    def _note(self, trial: FrozenTrial, name: str, value: str | int) -> None:
        self._storage.set_trial_user_attr(trial._trial_id, name, value)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """While inside, no other worker fills the queue."""
        while not self.claims.take(FILLING):
            self.claims.wait()
        try:
            yield
        finally:
            self.claims.release(FILLING)


def parameters(cell: Cell) -> dict[str, str]:
    """What the dashboard shows of a cell: its settings, and what repeats it, as text."""
    return {path: str(value) for path, value in {"recipe": cell.recipe, **cell.settings, **cell.repeat}.items()}


def _claim(cell: Cell) -> str:
    return f"cell {cell.key}"


def _standing(trial: FrozenTrial | None) -> Standing:
    if trial is None:
        return Standing()
    facts = trial.user_attrs
    return Standing(
        _STATES[trial.state], str(facts.get(RUN, "")), cast(int, facts.get(FAILURES, 0)), str(facts.get(REASON, ""))
    )
