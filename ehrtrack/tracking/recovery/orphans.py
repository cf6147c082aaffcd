"""Find orphaned runs, whose process is gone, by their heartbeat; claim or close them.

A process is alive if its heartbeat is recent by the server's clock. If the server gives no time, or the heartbeat is
by the clock of a machine (runs of earlier versions), it is watched instead: if it changes, its process is alive.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from ehrtrack.errors import TrackingError
from ehrtrack.tracking import names
from ehrtrack.tracking.client.connection import client, server_time, tracking_errors
from ehrtrack.tracking.client.experiments import is_of_a_study
from ehrtrack.tracking.client.queries import RunRecord, all_runs, get_run
from ehrtrack.tracking.recovery.lease import DEFAULT_HEARTBEAT_SECONDS, RunClaimRefused, claim_attempt, heartbeat_tags

DEFAULT_STALE_MINUTES = 10.0
LOST_BEATS = 4
"""Heartbeats that a process must have missed before it is taken for gone: with 30 s more than the 94 s for which a call
that it began while it still lived may last."""
CERTAIN_SECONDS = 24 * 3600.0
"""Silence that needs no second look: no clock is so far off, and no environment of ``mlflow run`` takes so long."""
_LONGEST_LOOK_SECONDS = 1.0

_TO_DO = {
    "sweep": "start the sweep again: it keeps the trials that are done",
    "trial": "start its sweep again: it tries what this trial tried",
    "sensitivity": "start the sensitivity analysis again: it keeps the values that are done",
    "study": "start the study again: it keeps the cells that are done",
    "": "mlflow run ended, or still builds an environment, before the run began: start it again",
}


class StillAlive(TrackingError):
    """A process still writes to the run."""


@dataclass(frozen=True)
class Orphan:
    """A run that is RUNNING though no process seems to write to it, or that was stopped and can be resumed.

    Attributes
    ----------
    silent_minutes : minutes since its last heartbeat
    """

    record: RunRecord
    silent_minutes: float

    @property
    def can_resume(self) -> bool:
        """Whether there may be a snapshot to resume from."""
        return self.record.kind in names.RESUMABLE_KINDS

    def to_text(self) -> str:
        """A readable line that says what to do."""
        record = self.record
        why = "silent" if record.status == "RUNNING" else "told to stop"
        to_do = f"ehrtrack resume {record.run_id}" if self.can_resume else _TO_DO.get(record.kind, "start it again")
        return (
            f"{record.run_id}  {record.study or '-'}  {record.kind or 'not begun'}  {record.name}  {record.status}, "
            f"{why} {self.silent_minutes:.0f} minutes ago: {to_do}"
        )


def orphaned_runs(kinds: Sequence[str] = (), *, minutes: float = DEFAULT_STALE_MINUTES) -> list[Orphan]:
    """Runs that are RUNNING without a heartbeat for some minutes, or were stopped and can be resumed.

    Parameters
    ----------
    kinds : only runs of these; if empty, runs of every kind and those that ``mlflow run`` made and that never began
    """
    now = server_time() or datetime.now(UTC)
    running = [record for record in all_runs(kinds, "attributes.status = 'RUNNING'") if _is_ours(record)]
    # `mlflow run` makes FAILED of the KILLED that a run it started says of itself
    stopped = all_runs(kinds, f"attributes.status != 'RUNNING' and tags.`{names.RESUMABLE}` = 'true'")
    found = [Orphan(record, _silent_seconds(record, now) / 60) for record in running + stopped]
    return [
        run
        for run in found
        if run.record.status != "RUNNING" or run.silent_minutes * 60 >= max(60 * minutes, _lease_seconds(run.record))
    ]


def check_silent(record: RunRecord) -> None:
    """Check that no process writes to a run that is RUNNING; this may take the time of some heartbeats.

    Raises
    ------
    StillAlive
        If a process does, or did a moment ago.
    """
    if record.status != "RUNNING":
        return
    lease, now = _lease_seconds(record), server_time()
    silent = _silent_seconds(record, now or datetime.now(UTC))
    if silent >= CERTAIN_SECONDS:
        return
    if now is None or (names.HEARTBEAT in record.tags and names.HEARTBEAT_SECONDS not in record.tags):
        print(f"run {record.run_id} is watched for {lease:.0f} s: no common clock tells whether it lives", flush=True)
        if _changes_within(record, lease):
            raise StillAlive(f"run {record.run_id} is alive: it gave a sign of life while it was watched")
        return
    if silent < lease:
        raise StillAlive(
            f"run {record.run_id} gave a sign of life {max(silent, 0):.0f} s ago. If its machine is gone, try again "
            f"in {lease - silent:.0f} s, or say --force"
        )


def claim_run(record: RunRecord) -> int:
    """Claim a run for this process, which will resume it; returns the number of the claim.

    Records that earlier processes of the run have not sent yet will no longer be sent.

    Raises
    ------
    RunClaimRefused
        If another process has claimed the run since `record` was read, or the run has ended well.
    """
    run_id, attempt = record.run_id, record.attempt + 1
    claim_attempt(run_id, attempt)
    if get_run(run_id).status == "FINISHED":
        raise RunClaimRefused(f"run {run_id} has ended well just now; there is nothing left to do")
    note_tags(run_id, heartbeat_tags() | {names.ATTEMPT: str(attempt), names.RESUMABLE: "false"})
    with tracking_errors(f"claim run {run_id}"):
        client().update_run(run_id, status="RUNNING")
    return attempt


def note_tags(run_id: str, tags: Mapping[str, str]) -> None:
    """Set tags of a run that this process has claimed and has not opened yet."""
    with tracking_errors(f"set tags of run {run_id}"):
        for key, value in tags.items():
            client().set_tag(run_id, key, value)


def release_run(record: RunRecord, attempt: int) -> None:
    """Restore the status of a run that could not be resumed, unless another process has claimed it."""
    now = get_run(record.run_id)
    if now.status != "RUNNING" or now.attempt != attempt:
        return
    with tracking_errors(f"give back run {record.run_id}"):
        status = "KILLED" if record.status == "RUNNING" else record.status
        is_resumable = "true" if record.status == "RUNNING" else record.tags.get(names.RESUMABLE, "false")
        client().set_tag(record.run_id, names.RESUMABLE, is_resumable)
        client().set_terminated(record.run_id, status)


def close_run(run_id: str, reason: str) -> None:
    """End a run as KILLED whose process is known to be gone, and which another run replaces."""
    with tracking_errors(f"close run {run_id}"):
        client().set_tag(run_id, names.CLOSED, reason)
        client().set_terminated(run_id, "KILLED")


def close_orphans(found: Sequence[Orphan]) -> list[Orphan]:
    """End the runs that cannot be resumed as KILLED, with the reason as a tag; returns these runs.

    No process is disturbed: if one is alive after all, its next heartbeat sets its run to RUNNING again.
    """
    closed = []
    for run in found:
        if run.can_resume or not _is_gone(run):
            continue
        reason = f"no sign of life for {run.silent_minutes:.0f} minutes; closed by ehrtrack runs --stale --close"
        close_run(run.record.run_id, reason)
        closed.append(run)
    return closed


def _is_gone(run: Orphan) -> bool:
    """Check once more, immediately before the run is closed."""
    now = get_run(run.record.run_id)
    if now.status != "RUNNING":
        return False
    if names.HEARTBEAT not in now.tags:
        return run.silent_minutes * 60 >= CERTAIN_SECONDS  # its process may still prepare an environment
    try:
        check_silent(now)
    except StillAlive:
        return False
    return True


def _is_ours(record: RunRecord) -> bool:
    """Whether a run belongs to EHRTrack, or was made by ``mlflow run`` for EHRTrack."""
    if record.kind:
        return True
    return "mlflow.project.entryPoint" in record.tags and is_of_a_study(record.experiment_id)


def _lease_seconds(record: RunRecord) -> float:
    """How long a run's process may be silent, from the heartbeat interval that it logged."""
    return LOST_BEATS * float(record.tags.get(names.HEARTBEAT_SECONDS, DEFAULT_HEARTBEAT_SECONDS))


def _silent_seconds(record: RunRecord, now: datetime) -> float:
    """Seconds since a run's last heartbeat, or since its start if it never had one."""
    text = record.tags.get(names.HEARTBEAT, "")
    return (now - (datetime.fromisoformat(text) if text else record.started)).total_seconds()


def _changes_within(record: RunRecord, seconds: float) -> bool:
    """Whether a run's heartbeat changes within a number of seconds."""
    deadline = time.monotonic() + seconds
    while (left := deadline - time.monotonic()) > 0:
        time.sleep(min(left, _LONGEST_LOOK_SECONDS))
        if get_run(record.run_id).tags.get(names.HEARTBEAT) != record.tags.get(names.HEARTBEAT):
            return True
    return False
