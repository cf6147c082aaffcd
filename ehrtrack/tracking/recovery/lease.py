"""The lease of a run: a heartbeat that shows that its process is alive, and a claim that shows which process it is.

A killed process leaves its run RUNNING forever, so a tag of the run says when its process was last alive. Whoever
resumes the run claims it: each claim has the next number (the attempt), which every later write of any process checks.

MLflow changes no tag conditionally. A param it lets be set once: of two processes that log one name with different
values, the second is refused, by the primary key of the store's table. So the n-th claim is the param
``ehrtrack.attempt.n`` with a value that no other process has. Only who may write to the run can set it.
"""

from __future__ import annotations

import logging
import math
import os
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from mlflow.exceptions import MlflowException

from ehrtrack.errors import TrackingError
from ehrtrack.tracking import names
from ehrtrack.tracking.client.connection import client, server_time, tracking_errors
from ehrtrack.tracking.client.queries import attempt_of

DEFAULT_HEARTBEAT_SECONDS = 30.0
_log = logging.getLogger(__name__)


class RunClaimLost(TrackingError):
    """Another process has claimed the run and repeats what this one has not sent, which must not be logged twice."""


class RunClaimRefused(TrackingError):
    """Another process has claimed the run first."""


class Heartbeat:
    """Sets the heartbeat tag from a thread of its own, so that neither training nor a long upload delays it.

    Parameters
    ----------
    run_id : the server's id of the run; empty as long as there is none
    attempt : the number of this process's claim
    on_claim_lost : called once by the thread when another process has claimed the run
    is_wanted : whether a run, as the server holds it, should get the tag
    """

    def __init__(
        self,
        run_id: Callable[[], str],
        *,
        attempt: int = 0,
        on_claim_lost: Callable[[RunClaimLost], object] = lambda lost: None,
        is_wanted: Callable[[Any], bool] = lambda run: True,
    ) -> None:
        self._run_id = run_id
        self._attempt = attempt
        self._on_claim_lost = on_claim_lost
        self._is_wanted = is_wanted
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._beat, args=(heartbeat_seconds(),), name="heartbeat", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop setting the tag."""
        self._stopped.set()

    def _beat(self, seconds: float) -> None:
        while not self._stopped.wait(seconds):
            run_id = self._run_id()
            if not run_id:
                continue
            try:
                run = check_claim(run_id, self._attempt)
                if self._is_wanted(run):
                    _set_heartbeat(run)
            except RunClaimLost as lost:
                self._on_claim_lost(lost)
                return
            except TrackingError as trouble:
                _log.debug("%s", trouble)  # the sender warns about it, once


def heartbeat_tags() -> dict[str, str]:
    """The tags that mark a run as alive now, by the server's clock, since the clocks of two machines may differ."""
    now = server_time() or datetime.now(UTC)  # without a server's time the tag is watched for changes, not read
    return {names.HEARTBEAT: now.isoformat(), names.HEARTBEAT_SECONDS: f"{heartbeat_seconds():g}"}


def check_claim(run_id: str, attempt: int) -> Any:
    """Check that a run still belongs to its writer; returns the run.

    Parameters
    ----------
    attempt : the number of the writer's claim

    Raises
    ------
    RunClaimLost
        If another process has claimed it since.
    """
    with tracking_errors(f"read run {run_id}"):
        run = client().get_run(run_id)
    if attempt_of(run.data.tags, run.data.params) > attempt:
        raise RunClaimLost(
            f"run {run_id} was claimed by another process, which continues it from its last snapshot; what this "
            "one has not sent yet is repeated there, and is not sent"
        )
    return run


def claim_attempt(run_id: str, attempt: int) -> None:
    """Claim a run under this number; after that, processes that held it before may no longer write.

    Raises
    ------
    RunClaimRefused
        If another process has claimed it under this number.
    """
    with tracking_errors(f"claim run {run_id}"):
        try:
            # sent again after a lost answer, it is the same value, and no conflict
            client().log_param(run_id, f"{names.CLAIM_PARAM}{attempt}", uuid.uuid4().hex)
        except MlflowException as error:
            if error.error_code != "INVALID_PARAMETER_VALUE":
                raise
            raise RunClaimRefused(f"run {run_id} was claimed by another process just now") from error


@contextmanager
def mlflow_run_has_heartbeat() -> Iterator[None]:
    """Within the block, the run that ``mlflow run`` made for this process has a heartbeat until it is joined.

    Preparing data may take hours before that. A run that has been joined gets its heartbeat elsewhere.
    """
    if "MLFLOW_RUN_ID" not in os.environ:
        yield
        return
    heartbeat = Heartbeat(
        lambda: os.environ.get("MLFLOW_RUN_ID", ""),  # taken away when the run is joined
        is_wanted=lambda run: run.info.status == "RUNNING" and names.KIND not in run.data.tags,
    )
    try:
        yield
    finally:
        heartbeat.stop()


def heartbeat_seconds() -> float:
    """Time between two heartbeats: EHRTRACK_HEARTBEAT_SECONDS, or 30.

    Raises
    ------
    TrackingError
        If that is not a positive number.
    """
    text = os.environ.get("EHRTRACK_HEARTBEAT_SECONDS", "")
    try:
        seconds = float(text or DEFAULT_HEARTBEAT_SECONDS)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < math.inf:
        raise TrackingError(f"EHRTRACK_HEARTBEAT_SECONDS is {text!r}; needed is a number of seconds, such as 30")
    return seconds


def _set_heartbeat(run: Any) -> None:
    run_id = run.info.run_id
    with tracking_errors(f"send the heartbeat of run {run_id}"):
        for key, value in heartbeat_tags().items():
            if run.data.tags.get(key) != value:
                client().set_tag(run_id, key, value)
        if names.CLOSED in run.data.tags:  # it was taken for dead: its network was away, or it was paused
            client().update_run(run_id, status="RUNNING")
            client().delete_tag(run_id, names.CLOSED)
