"""Find and resume the run of a sweep or a study, which its workers keep one after the other."""

from __future__ import annotations

from pathlib import Path

from ehrtrack.errors import TrackingError
from ehrtrack.pipeline.run import Resumption
from ehrtrack.tracking.client.queries import get_run
from ehrtrack.tracking.outbox.sender import is_offline
from ehrtrack.tracking.outbox.sync import send_left_behind
from ehrtrack.tracking.recovery.orphans import claim_run
from ehrtrack.tracking.run import JOURNALS


def is_there(run_id: str, what: str) -> bool:
    """Whether the present tracking server has the run in which a sweep or study was begun; prints a line if not.

    Parameters
    ----------
    what : was begun, such as "sweep"
    """
    try:
        if not is_offline():
            get_run(run_id)
            return True
    except TrackingError as error:
        print(error, flush=True)
    print(f"run {run_id}, in which this {what} was begun, is not on the server: a new run takes its place", flush=True)
    return False


def claim_record(run_id: str, cache: Path) -> Resumption | None:
    """Claim a run that an earlier worker began, so that nothing is logged twice; None if it has ended well."""
    record = get_run(run_id)
    if record.status == "FINISHED":
        return None
    send_left_behind(cache / JOURNALS, run_id, attempt=record.attempt)
    if get_run(run_id).status == "FINISHED":
        return None
    attempt = claim_run(record)
    print(f"continues run {run_id}", flush=True)
    return Resumption(run_id, attempt, {}, slot=0)
