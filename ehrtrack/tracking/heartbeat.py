"""A tag that says when a run's process was last alive, since a killed one leaves its run RUNNING for ever."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from datetime import UTC, datetime

from ehrtrack.errors import TrackingError
from ehrtrack.tracking import names
from ehrtrack.tracking.server import client, tracking_errors

DEFAULT_HEARTBEAT_SECONDS = 30.0
_log = logging.getLogger(__name__)


class Heartbeat:
    """Sets the tag from a thread of its own, so that neither training nor a long upload holds it up.

    Parameters
    ----------
    run_id : the server's id of the run; empty as long as there is none
    """

    def __init__(self, run_id: Callable[[], str]) -> None:
        self._run_id = run_id
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._beat, args=(heartbeat_seconds(),), name="heartbeat", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Set the tag no more."""
        self._stopped.set()

    def _beat(self, seconds: float) -> None:
        while not self._stopped.wait(seconds):
            run_id = self._run_id()
            if not run_id:
                continue
            try:
                with tracking_errors(f"tell that run {run_id} lives"):
                    client().set_tag(run_id, names.HEARTBEAT, utc_now())
            except TrackingError as trouble:
                _log.debug("%s", trouble)  # the drainer says it aloud, once


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
    if seconds <= 0:
        raise TrackingError(f"EHRTRACK_HEARTBEAT_SECONDS is {text!r}; needed is a number of seconds, such as 30")
    return seconds


def utc_now() -> str:
    """This moment, as the tag holds it."""
    return datetime.now(UTC).isoformat(timespec="seconds")
