"""A tracked run from start to end: it is registered or joined, and always ended."""

from __future__ import annotations

import logging
import os
import signal
import threading
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from ehrtrack.errors import TrackingError
from ehrtrack.home import usual_cache
from ehrtrack.privacy import Privacy
from ehrtrack.signals import INTERRUPTIONS, STOPPING, end_here, may_handle, raise_for, raised_again, second_is_at_once
from ehrtrack.signals import TerminatedBySignal as TerminatedBySignal
from ehrtrack.tracking import names
from ehrtrack.tracking.client.connection import redacted, tracking_uri
from ehrtrack.tracking.client.experiments import chosen_experiment
from ehrtrack.tracking.logger import Scalar, TrackedRun, now_ms
from ehrtrack.tracking.outbox.journal import Journal
from ehrtrack.tracking.outbox.registration import RUN_ID
from ehrtrack.tracking.outbox.sender import drain_seconds, is_offline
from ehrtrack.tracking.provenance import UNKNOWN, environment, git_state, user_name
from ehrtrack.tracking.recovery.lease import RunClaimLost
from ehrtrack.tracking.recovery.liveness import watch_mlflow_run
from ehrtrack.tracking.system import sampled

JOURNALS = "journal"
MAX_ERROR_CHARACTERS = 500

_log = logging.getLogger(__name__)


@contextmanager
def tracked_run(
    *,
    experiment: str,
    name: str,
    kind: str,
    params: Mapping[str, Scalar] | None = None,
    tags: Mapping[str, str] | None = None,
    group: str = "",
    parent_run_id: str | None = None,
    run_id: str | None = None,
    attempt: int = 0,
    stops: tuple[type[Exception], ...] = (),
    journal: Path | None = None,
    privacy: Privacy | None = None,
) -> Iterator[TrackedRun]:
    """Open a run that ends with its block: FINISHED, FAILED on an exception, KILLED on Ctrl-C or SIGTERM.

    At top level under ``mlflow run`` this is the run that mlflow made (it stays in the experiment mlflow
    chose, keeps the name and the tags that its user gave it, and carries the study as a tag); a run with a
    parent is a new one, in its parent's experiment. A run that already belongs to somebody is never joined.

    Once another process has claimed the run, every call that logs raises RunClaimLost.

    Parameters
    ----------
    experiment
        The study; the tag ``ehrtrack.study``, and the experiment's name unless MLFLOW_EXPERIMENT_ID or
        MLFLOW_EXPERIMENT_NAME says where runs belong.
    kind
        pretrain, finetune, baseline, sweep, trial, compare or demo; the tag ``ehrtrack.kind``.
    tags
        Of the run from its first moment on.
    group
        What repeats of the run share, such as "lora r8": the param `names.GROUP`, by which the UI groups runs.
    parent_run_id
        The `TrackedRun.reference` of the run to nest this one under, whether or not the server has made that one yet.
    run_id
        The server's id of a run that was begun before, and is resumed or joined.
    attempt
        The number of this process's claim to that run (`claim_run`); 0 for a new run.
    stops
        Exceptions that end the run as FINISHED all the same, such as optuna's TrialPruned; still raised.
    journal
        The folder in which this run's journal is kept until the server has all of it; `usual_cache`'s if None.
    privacy
        How tables and messages are changed before they are logged; None logs them as they are.
    """
    with _signals_end_the_run() as termination:
        watch_mlflow_run()
        run = _open_run(
            experiment=experiment,
            name=name,
            kind=kind,
            own_tags=tags or {},
            parent_run_id=parent_run_id,
            run_id=run_id,
            attempt=attempt,
            journals=journal or usual_cache() / JOURNALS,
        )
        try:
            try:
                run.privacy = privacy
                if privacy:
                    run.set_tags({names.SUBJECT_KEY: privacy.fingerprint})
                run.log_params(params or {})
                if group:
                    run.log_group(group)
                run.log_json(environment(), "environment.json")
                with sampled(kind, lambda values, moment: run.log_metrics(values, step=moment)):
                    yield run
            except RunClaimLost:
                raise  # the process that claimed the run will record its end
            except BaseException as error:
                _end_aloud(run, error, stops)
                raise
            run.end("FINISHED")
        finally:
            termination.closing = run
            run.close(is_nested=parent_run_id is not None)
            termination.closing = None
        run.check_is_ours()
        if termination.late is not None:
            raise_for(termination.late)


def _open_run(
    *,
    experiment: str,
    name: str,
    kind: str,
    own_tags: Mapping[str, str],
    parent_run_id: str | None,
    run_id: str | None,
    attempt: int,
    journals: Path,
) -> TrackedRun:
    tracking_uri()  # an address that can never be used is refused here
    drain_seconds()  # as are settings that cannot be
    is_offline()
    key = uuid.uuid4().hex
    is_joining = run_id is None and parent_run_id is None
    joined_id = os.environ.get(RUN_ID) if is_joining else run_id
    chosen = chosen_experiment()
    tags = {names.STUDY: experiment, names.KIND: kind, "mlflow.runName": name}
    tags |= _code_tags() | dict(own_tags)
    source = {
        "mlflow.user": user_name(),
        "mlflow.source.name": f"ehrtrack {kind}",
        "mlflow.source.type": "LOCAL",
    }
    registration = {
        "do": "open",
        "key": key,
        "time": now_ms(),
        "experiment": chosen.name or experiment,
        "experiment_id": chosen.id,
        "server": redacted(tracking_uri()),
        "name": name,
        "tags": tags,
        "source": source,  # of a run that is made, not joined
        "parent": parent_run_id,
        "joined": joined_id,
        "attempt": attempt,
    }
    journal = Journal(journals.absolute() / key)
    journal.append(registration, registration)  # twice, so that one damaged byte leaves one
    run = TrackedRun(journal, run_key=key, name=name, resumed_run_id=run_id if attempt else None, attempt=attempt)
    try:
        run.wait_for_registration()
    except TrackingError:
        run.give_up()
        raise
    if is_joining:
        os.environ.pop(RUN_ID, None)  # the next run of this process is another one
    return run


def _code_tags() -> dict[str, str]:
    git = git_state()
    tags = {names.GIT_COMMIT: git.commit, names.GIT_DIRTY: git.dirty}
    return tags if git.commit == UNKNOWN else tags | {"mlflow.source.git.commit": git.commit}


def _end_aloud(run: TrackedRun, error: BaseException, stops: tuple[type[Exception], ...]) -> None:
    """End a run after an exception; a failure of the server must not hide that exception."""
    message = ". ".join([*getattr(error, "__notes__", []), f"{type(error).__name__}: {error}"])
    message = (run.privacy.message(message) if run.privacy else message)[:MAX_ERROR_CHARACTERS]
    try:
        if isinstance(error, stops):
            run.end("FINISHED", tag=names.STOPPED, reason=message)
        elif isinstance(error, INTERRUPTIONS):
            run.end("KILLED", tag=names.ERROR, reason="interrupted by " + _signal_of(error))
        elif isinstance(error, SystemExit) and not error.code:
            run.end("FINISHED")
        else:
            run.end("FAILED", tag=names.ERROR, reason=message)
    except RunClaimLost as lost:
        _log.warning("%s", lost)
    except TrackingError as failure:
        _log.error("run %s is left RUNNING on the server: %s", run.label, failure)


def _signal_of(error: BaseException) -> str:
    return "SIGTERM" if isinstance(error, TerminatedBySignal) else "the keyboard"


class _Termination:
    """The effect of the first Ctrl-C or SIGTERM: end the run, or shorten the sending of one that has ended.

    Attributes
    ----------
    closing : the run that is being closed
    late : the signal that arrived in the meantime
    """

    def __init__(self) -> None:
        self.closing: TrackedRun | None = None
        self.late: int | None = None

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self.closing is None:
            end_here(number, frame)
            return
        second_is_at_once()
        self.late = number
        self.closing.hurry()


_termination: _Termination | None = None
"""That of the outermost run that is open: runs within it are closed under its eyes."""


@contextmanager
def _signals_end_the_run() -> Iterator[_Termination]:
    """Within the block, the first Ctrl-C or SIGTERM raises; handlers set by other code are left alone."""
    global _termination
    if _termination is not None and threading.current_thread() is threading.main_thread():
        yield _termination
        return
    ours = [number for number in STOPPING if may_handle(number)]
    if not ours:
        yield _Termination()
        return
    before = {number: signal.getsignal(number) for number in ours}
    _termination = _Termination()
    for number in ours:
        signal.signal(number, _termination)
    try:
        with raised_again():
            yield _termination
    finally:
        _termination = None
        for number in ours:
            signal.signal(number, before[number])
