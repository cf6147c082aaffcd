"""A study: all runs that answer a question, made by any number of workers, and gathered in one table."""

from __future__ import annotations

import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path

import optuna
import sqlalchemy.exc

from ehrtrack.config import Override
from ehrtrack.data.events import fingerprint_of
from ehrtrack.errors import ConfigError, EhrtrackError, TrackingError
from ehrtrack.home import make_cache
from ehrtrack.pipeline.record import claim_record, is_there
from ehrtrack.pipeline.run import Place, Recorder, describe, open_run
from ehrtrack.recipes._cell import run_cell
from ehrtrack.recipes._notified import end_is_told
from ehrtrack.recipes._study_screen import StudyScreen
from ehrtrack.recipes._terminal import LogOf, watched
from ehrtrack.recipes._workers import helped, sharing_cores
from ehrtrack.recipes.report import log_report
from ehrtrack.search.storage import shared_storage, shown, storage_place
from ehrtrack.signals import INTERRUPTIONS, received
from ehrtrack.study.cells import Cell, Study, read_study
from ehrtrack.study.pace import Pace, left_text
from ehrtrack.study.questions import check_questions
from ehrtrack.study.queue import Queue
from ehrtrack.study.results import StudyResults, Unfinished, finished, finished_cells, study_results
from ehrtrack.study.stored import CELLS, to_json
from ehrtrack.tracking.client.connection import ServerUnavailable
from ehrtrack.tracking.client.experiments import describe_experiment
from ehrtrack.tracking.client.queries import RunRecord, search_runs
from ehrtrack.tracking.names import STUDY_KEY
from ehrtrack.tracking.outbox.sender import is_offline
from ehrtrack.tracking.recovery.claims import ClaimLost
from ehrtrack.tracking.recovery.lease import RunClaimLost, RunClaimRefused
from ehrtrack.training.ranks import join_ranks

SECTIONS = ("study",)
MOST_OF_A_DESCRIPTION = 5000
"""Characters of an experiment's tag that mlflow keeps."""
MOST_WAITS = 600
"""Times that a worker looks, a second apart, whether a tracking server that went away is back."""


def study(path: Path, overrides: Sequence[Override] = (), *, key: str = "", n_workers: int = 1) -> StudyResults | None:
    """Run a study: all of its cells that are not done yet, and then its table.

    Started again, it goes on: a cell that is finished is not run again, one that was cut off is resumed, and one that
    failed is tried once more. Started several times at once, or beside `work`, all take cells of it, and one keeps the
    record: the run that the cells are nested under, and that holds the table.

    Parameters
    ----------
    overrides : dotted paths under ``runtime``, of this machine
    key : of the task that this worker is, if a scheduler starts another in its place (`Claims`)
    n_workers : processes of this machine that take cells, this one among them; they share its cores, which two with a
        thread each use better than one with two threads

    Returns
    -------
    What it came to; None if another worker keeps the record.

    Raises
    ------
    EhrtrackError
        If the study, the data or the tracking server cannot be used, or cells have failed.
    """
    shared = sharing_cores(n_workers, overrides)

    def work() -> StudyResults | None:
        queue = open_queue(path, shared, key=key, tries_again=True)
        helpers = partial(helped, n_workers - 1, path, shared, queue.study.runtime.cache)
        with queue.claims.renewed():
            return take_part(queue, helpers)

    return end_is_told(path, work)


def open_queue(path: Path, overrides: Sequence[Override] = (), *, key: str = "", tries_again: bool = False) -> Queue:
    """Read a study, and have its cells in the queue."""
    made = read_study(path, overrides)
    check_questions(made)
    if join_ranks(made.runtime.device).count > 1:
        raise ConfigError("a worker of a study is one process; start it several times, and all take cells of the study")
    if is_offline():
        raise ConfigError(
            "EHRTRACK_OFFLINE=1, and the workers of a study find on the tracking server what is done: leave it out"
        )
    make_cache(made.runtime.cache)
    optuna.logging.set_verbosity(optuna.logging.ERROR)  # what becomes of a cell is told here
    with queue_errors(made):
        queue = Queue(made, shared_storage(made.runtime.storage, made.runtime.cache), key=key)
        with queue.claims.renewed():
            done = {cell: finished(record) for cell, record in finished_cells(made).items()}
            queue.fill(done, tries_again=tries_again)
    print(f"{made.settings.question}\n{made.name}: {len(made.cells)} cells, {len(done)} of them are done", flush=True)
    return queue


@contextmanager
def queue_errors(study: Study) -> Iterator[None]:
    """Say what is to be done where the database of the queue fails."""
    try:
        yield
    except (sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
        where = storage_place(study.runtime.storage, study.runtime.cache)
        raise TrackingError(
            f"the queue of the study in {shown(where)} cannot be used: {str(error).splitlines()[0]}. What is done is "
            "kept on the tracking server: start again when the database is back"
        ) from error


def take_part(queue: Queue, helpers: Callable[[], AbstractContextManager[None]] = nullcontext) -> StudyResults | None:
    """Keep the record if nobody does; else run cells for the one who does, and see whether that one still lives.

    Parameters
    ----------
    helpers : within which the one who keeps the record runs cells
    """
    claims, record, has_helped = queue.claims, record_of(queue.study), False
    while True:
        standing = claims.look(record)
        if claims.take(record):
            return _keep_record(queue, record, standing.note, helpers)
        if has_helped and claims.lives(record):
            print(f"no cell is left for this worker; another one keeps the record, run {standing.note}", flush=True)
            return None
        if standing.note:
            run_cells(queue, standing.note, waits=False)
            has_helped = True  # after which one that keeps the record may be dead, and nobody else be left
        else:  # the other one is about to open its run
            claims.wait()


def record_of(study: Study) -> str:
    """The claim of the one who keeps the study's run; what is noted there is the run's id."""
    return f"record {fingerprint_of(study.queue)}"


def _keep_record(
    queue: Queue, record: str, begun: str, helpers: Callable[[], AbstractContextManager[None]]
) -> StudyResults:
    """Run cells under a run of one's own, or the one that a worker before had begun, and gather what came out."""
    made, claims = queue.study, queue.claims
    try:
        begun = begun if begun and is_there(begun, "study") else _own_run(made)
        resumption = claim_record(begun, made.runtime.cache) if begun else None
        if begun and resumption is None and _is_done(queue):
            return _told(queue, begun)
        place = Place(tags={STUDY_KEY: made.queue})
        with open_run(
            made.config, kind="study", sections=SECTIONS, name="study", place=place, resume=resumption
        ) as run:
            claims.leave_note(record, run.logger.reference)
            run.logger.log_json(to_json(made), CELLS)
            with helpers():
                run_cells(queue, run.logger.reference, waits=True)
            claims.hold(record)
            return _conclude(queue, run)
    finally:
        claims.release(record)


def _own_run(study: Study) -> str:
    """The run that was begun for this study when its queue was in another database; empty if there is none."""
    found = search_runs(study.name, kinds=["study"], status=None, tags={STUDY_KEY: study.queue})
    return found[-1].run_id if found else ""


def _is_done(queue: Queue) -> bool:
    return all(standing.state == "done" for standing in queue.standing().values())


def _told(queue: Queue, run_id: str) -> StudyResults:
    print(f"this study is done: run {run_id}", flush=True)
    results = study_results(queue.study, queue.standing(), run_id=run_id)
    print(f"\n{results.findings().short}\n", flush=True)
    print(
        f"`ehrtrack report {queue.study.file}` writes its report anew, as this version of the program has it",
        flush=True,
    )
    return results


def run_cells(queue: Queue, parent_run_id: str, *, waits: bool) -> None:
    """Run cells until none is left that is not done, failed, or run by another worker.

    Parameters
    ----------
    parent_run_id : the study's own run
    waits : until other workers have ended their cells, or are dead and their cells are run here; if not, only until
        what cells start from is there
    """
    with watched(StudyScreen(queue)) as log_of:
        _run_all(queue, _Worker(queue, parent_run_id, log_of), waits=waits)


def _run_all(queue: Queue, worker: _Worker, *, waits: bool) -> None:
    told = ""
    while True:
        with queue_errors(queue.study):
            cell = queue.take()
            if cell is None:
                states = [standing.state for standing in queue.standing().values()]
        if cell is not None:
            worker.run(cell)
            told = ""
            continue
        n_waiting, n_running = states.count("waiting"), states.count("running")
        if not n_waiting and not (waits and n_running):
            return
        text = f"waiting for {n_running} cells of other workers; {n_waiting} start from one of them, or are taken now"
        if text != told:
            print(text, flush=True)
        told = text
        queue.claims.wait()


class _Worker:
    """What runs one cell after the other for the study's own run."""

    def __init__(self, queue: Queue, parent_run_id: str, log_of: LogOf) -> None:
        self._queue = queue
        self._parent_run_id = parent_run_id
        self._log_of = log_of
        self._n_waits = 0
        self._pace = Pace()

    def run(self, cell: Cell) -> None:
        """Run a cell that is held, and tell the queue what came of it."""
        queue = self._queue
        with queue_errors(queue.study):
            base_run_id = queue.standing()[cell.base].run_id if cell.base else ""
        self._say(cell, f"{cell.recipe} begins")
        begun = time.monotonic()
        try:
            with self._log_of(cell.label, cell.key):
                record = run_cell(
                    cell, queue.study, base_run_id=base_run_id, parent_run_id=self._parent_run_id, claims=queue.claims
                )
        except (RunClaimLost, RunClaimRefused) as lost:
            queue.put_back(cell)
            self._say(cell, f"{lost}; what came out here does not count")
        except ServerUnavailable as away:
            queue.put_back(cell)
            self._wait_for_server(away)
        except INTERRUPTIONS:
            queue.put_back(cell)
            raise
        except Exception as error:  # noqa: BLE001  one cell's failure is told, and the others are run
            self._failed(cell, error)
        else:
            self._pace.note(cell.configuration, time.monotonic() - begun)
            self._done(cell, record)

    def _done(self, cell: Cell, record: RunRecord) -> None:
        self._n_waits = 0
        try:
            with queue_errors(self._queue.study):
                self._queue.finish(cell, finished(record))
        except ClaimLost as lost:
            self._say(cell, f"{lost}; it is done all the same, run {record.run_id}")
        else:
            self._say(cell, f"done, run {record.run_id}{_score(record)}")

    def _failed(self, cell: Cell, error: Exception) -> None:
        """Note a failure; a mistake of the program is shown whole, and the other cells are run all the same."""
        if received() is not None:  # a query that Ctrl-C broke into has an error of its own
            self._queue.put_back(cell)
            raise error
        if not isinstance(error, EhrtrackError):
            traceback.print_exception(error)
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:500]
        try:
            with queue_errors(self._queue.study):
                tries_again = self._queue.fail(cell, reason)
            self._say(cell, f"failed, {'and is tried once more' if tries_again else 'for good'}: {reason}")
        except ClaimLost as lost:
            self._say(cell, f"failed, and {lost}: {reason}")

    def _wait_for_server(self, away: ServerUnavailable) -> None:
        if self._n_waits == 0:
            print(f"{away}; waiting for it", flush=True)
        self._n_waits += 1
        if self._n_waits > MOST_WAITS:
            raise away
        self._queue.claims.wait()

    def _say(self, cell: Cell, what: str) -> None:
        """One line an event, with how far the study is."""
        with queue_errors(self._queue.study):
            states = {key: standing.state for key, standing in self._queue.standing().items()}
        counts = Counter(states.values())
        n_failed = counts["failed"] + counts["blocked"]
        left = left_text(self._queue.study, states, self._pace)
        far = [f"{counts['done']} of {len(states)} done", f"{n_failed} failed" if n_failed else "", left]
        print(f"[{', '.join(filter(None, far))}] {cell.label}: {what}", flush=True)


def _score(record: RunRecord) -> str:
    value = finished(record).value
    return f", test {value:.3f}" if record.kind != "pretrain" and value else ""


def _describe(made: Study, markdown: str) -> None:
    """Have the answer on the experiment's page, unless somebody wrote another text there."""
    runs = search_runs(made.name, kinds=["study"], status=None, tags={STUDY_KEY: made.queue})
    if runs and not describe_experiment(runs[-1].experiment_id, markdown):
        print("the experiment's description is somebody's own and stays; the answer is on the study's run", flush=True)


def _conclude(queue: Queue, run: Recorder) -> StudyResults:
    """Log and print what came out.

    Raises
    ------
    Unfinished
        If cells have no result.
    """
    made = queue.study
    results = study_results(made, queue.standing(), run_id=run.logger.reference)
    found = results.findings()
    text = found.markdown
    run.logger.log_table(found.table, "study/results.csv")
    run.logger.log_text(text, "study/results.md")
    facts = {
        "question": made.settings.question,
        "cells": f"{len(made.cells) - len(results.missing)} of {len(made.cells)}",
    }
    run.logger.set_description(describe(f"Study {made.name}", facts) + f"\n{text}")
    if results.repeats:
        log_report(results, found, made, run.logger)
        _describe(made, f"## {made.settings.question}\n\n{found.answer}"[:MOST_OF_A_DESCRIPTION])
    print(f"\n{found.short}\n", flush=True)
    if results.missing:
        listed = "\n".join(f"- {label}: {reason}" for label, reason in results.missing.items())
        raise Unfinished(
            f"{len(results.missing)} of {len(made.cells)} cells have no result; start the study again to try them once "
            f"more, or leave them out by `exclude`:\n{listed}",
            results,
        )
    run.finished({})
    return results
