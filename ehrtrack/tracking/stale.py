"""Runs whose process is gone, and taking them up: at most one process goes on with a run."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime

import psutil
from mlflow.exceptions import MlflowException

from ehrtrack.errors import TrackingError
from ehrtrack.tracking import names
from ehrtrack.tracking.heartbeat import utc_now
from ehrtrack.tracking.queries import RunRecord, all_runs, get_run
from ehrtrack.tracking.server import client, tracking_errors

DEFAULT_STALE_MINUTES = 10.0
ABANDONED_SECONDS = 600.0
"""Age from which a claim is that of a process that died while it took a run up."""


class TakenUp(TrackingError):
    """Another process goes on with the run."""


@dataclass(frozen=True)
class StaleRun:
    """A run that can go on, and that no process seems to write to.

    Attributes
    ----------
    silent_minutes : since its last heartbeat
    """

    record: RunRecord
    silent_minutes: float

    def to_text(self) -> str:
        """A line for people."""
        record = self.record
        why = "told to stop" if record.status == "KILLED" else "silent"
        return (
            f"{record.run_id}  {record.study}  {record.kind}  {record.name}  {record.status}, "
            f"{why} {self.silent_minutes:.0f} minutes ago"
        )


def silent_minutes(record: RunRecord) -> float:
    """Minutes since a run's last heartbeat, by this machine's clock; since its start if it never had one."""
    text = record.tags.get(names.HEARTBEAT, "")
    last = datetime.fromisoformat(text) if text else record.started
    return (datetime.now(UTC) - last).total_seconds() / 60


def stale_runs(kinds: Sequence[str], *, minutes: float = DEFAULT_STALE_MINUTES) -> list[StaleRun]:
    """Runs of some kinds that are RUNNING without a heartbeat for so long, or were told to stop and can go on."""
    running = all_runs(kinds, "attributes.status = 'RUNNING'")
    stopped = all_runs(kinds, f"attributes.status = 'KILLED' and tags.`{names.RESUMABLE}` = 'true'")
    found = [StaleRun(record, silent_minutes(record)) for record in running + stopped]
    return [run for run in found if run.record.status == "KILLED" or run.silent_minutes >= minutes]


@contextmanager
def claimed(record: RunRecord) -> Iterator[int]:
    """While inside, no other process can take up this run; yields the number of the attempt that is to be made.

    MLflow has no test-and-set of tags. What a server does at most once is to register a model of one name, so the
    claim is an empty registered model, named by the run and the attempt, and removed when the run has been taken up.

    Raises
    ------
    TakenUp
        If another process holds the claim, or has taken the run up since `record` was read.
    """
    attempt = int(record.tags.get(names.ATTEMPT, 0)) + 1
    claims: list[str] = []
    with tracking_errors(f"claim run {record.run_id}"):
        name = _claim(f"ehrtrack-claim-{record.run_id}-{attempt}", record.run_id, claims)
    try:
        now = get_run(record.run_id)
        if int(now.tags.get(names.ATTEMPT, 0)) + 1 != attempt or now.status == "FINISHED":
            raise TakenUp(f"run {record.run_id} was taken up by another process just now")
        yield attempt
    finally:
        with tracking_errors(f"remove the claim {name}"):
            for claim in claims:
                _delete_claim(claim)


def take_up(run_id: str, attempt: int) -> None:
    """Mark a claimed run as running in this process; what older processes still have to say is not sent any more."""
    with tracking_errors(f"take up run {run_id}"):
        client().set_tag(run_id, names.ATTEMPT, str(attempt))
        client().set_tag(run_id, names.HEARTBEAT, utc_now())
        client().set_tag(run_id, names.RESUMABLE, "false")
        client().update_run(run_id, status="RUNNING")


def give_back(record: RunRecord) -> None:
    """Give a run that could not go on after all the status that it had; it can be taken up again."""
    with tracking_errors(f"give back run {record.run_id}"):
        status = "KILLED" if record.status == "RUNNING" else record.status
        is_resumable = "true" if record.status == "RUNNING" else record.tags.get(names.RESUMABLE, "false")
        client().set_tag(record.run_id, names.RESUMABLE, is_resumable)
        client().set_terminated(record.run_id, status)


def _claim(stem: str, run_id: str, claims: list[str]) -> str:
    """Register the claim; the next number after one whose process died before it could take the run up."""
    number = 0
    while True:
        name = f"{stem}-{number}"
        try:
            client().create_registered_model(name, description=_this_process())
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            if not _is_abandoned(name):
                raise TakenUp(f"run {run_id} is being taken up by another process") from error
            claims.append(name)
            number += 1
        else:
            claims.append(name)
            return name


def _this_process() -> str:
    return f"{socket.gethostname()} {os.getpid()} {psutil.Process().create_time()}"


def _is_dead(process: str) -> bool:
    """Whether a process of this machine, as `_this_process` names it, is no more."""
    host, _, rest = process.partition(" ")
    if host != socket.gethostname():
        return False
    number, _, created = rest.partition(" ")
    try:
        return str(psutil.Process(int(number)).create_time()) != created
    except (psutil.NoSuchProcess, ValueError):
        return True


def _is_abandoned(name: str) -> bool:
    """Whether a claim's process is gone: known at once on its own machine, and after a while on another."""
    try:
        claim = client().get_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return False  # it was removed just now: its process has taken the run up
    return _is_dead(claim.description) or time.time() - claim.creation_timestamp / 1000 > ABANDONED_SECONDS


def _delete_claim(name: str) -> None:
    try:
        client().delete_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
