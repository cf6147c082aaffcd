"""A thread that sends an open run's journal, so that training never waits for the network or fails with it."""

from __future__ import annotations

import logging
import os
import random
import threading
import time
from collections.abc import Callable

from tqdm import tqdm

from ehrtrack.errors import TrackingError
from ehrtrack.tracking.client.connection import AccessRefused, ServerUnavailable, check_reachable, is_remote
from ehrtrack.tracking.outbox.delivery import Delivery
from ehrtrack.tracking.outbox.journal import Journal
from ehrtrack.tracking.recovery.lease import RunClaimLost

OFFLINE = "EHRTRACK_OFFLINE"
OPEN_SECONDS = 10
DEFAULT_DRAIN_SECONDS = 60.0
LINGER_SECONDS = 1.0  # records of this time go in one call
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 1.0, 60.0
REFUSED_PAUSE_SECONDS = 300.0  # for what only a person can change
CLOSING_PAUSE_SECONDS = 2.0
_SHOW_AFTER_SECONDS = 2.0

_log = logging.getLogger(__name__)


class Sender:
    """Sends a journal in the background until it is closed and empty, or abandoned.

    Parameters
    ----------
    on_claim_lost : called once by the thread when another process has claimed the run; nothing more is sent

    Attributes
    ----------
    trouble : why nothing can be sent at present
    refusal : why the run can never be opened, for example a deleted experiment
    """

    def __init__(self, journal: Journal, on_claim_lost: Callable[[RunClaimLost], object]) -> None:
        self.delivery = Delivery(journal.folder, is_live=True)
        self.trouble: TrackingError | None = None
        self.refusal: TrackingError | None = None
        self.is_complete = False
        self._journal = journal
        self._on_claim_lost = on_claim_lost
        self._first_try = threading.Event()
        self._news = threading.Event()
        self._closing = threading.Event()
        self._given_up = threading.Event()
        self._hurried = threading.Event()
        self._thread = threading.Thread(target=self._work, name=f"sender {journal.folder.name[:8]}", daemon=True)
        self._thread.start()

    def wait_for_registration(self) -> None:
        """Wait some seconds for the server to create the run.

        Raises
        ------
        TrackingError
            If it never will. An unreachable server is no reason: the run is created later.
        """
        self._first_try.wait(OPEN_SECONDS)
        self.delivery.is_begun = True
        if self.refusal is not None:
            raise self.refusal

    def notify(self) -> None:
        """Signal that the journal has new records."""
        self._news.set()

    def hurry(self) -> None:
        """Let `finish` stop extending its wait when records arrive, because the machine is about to be shut down."""
        self._hurried.set()

    def finish(self, seconds: float, *, is_urgent: bool = False) -> None:
        """Wait until everything is sent, for at most `seconds` in which nothing arrives.

        Parameters
        ----------
        is_urgent
            Whether `seconds` limits the whole wait, because the machine is about to be shut down.
        """
        if is_urgent:
            self.hurry()
        self._closing.set()
        self._news.set()
        deadline = time.monotonic() + seconds
        total, sent = len(self.delivery.pending()), 0
        try:
            with tqdm(total=total, desc="sending", unit="record", delay=_SHOW_AFTER_SECONDS, leave=False) as bar:
                while self._thread.is_alive() and time.monotonic() < deadline:
                    self._thread.join(0.1)
                    now_sent = max(total - len(self.delivery.pending()), sent)
                    if now_sent > sent and not self._hurried.is_set():
                        deadline = time.monotonic() + seconds
                    bar.update(now_sent - sent)
                    sent = now_sent
        finally:
            self._given_up.set()
            if not self._thread.is_alive():
                self._journal.close()

    def _work(self) -> None:
        pause = 0.0
        try:
            if is_offline():
                self.trouble = ServerUnavailable(f"{OFFLINE} is set")
                return
            while not self._given_up.is_set():
                is_last_try = self._closing.is_set()
                try:
                    self._try()
                except TrackingError as trouble:
                    is_passing = isinstance(trouble, ServerUnavailable)
                    if not (self._first_try.is_set() or is_passing or isinstance(trouble, AccessRefused)):
                        self.refusal = trouble
                        return
                    if isinstance(trouble, RunClaimLost):
                        self._on_claim_lost(trouble)
                        return
                    self._tell(trouble)
                    self.delivery.reopen()
                    if is_last_try and not is_passing:
                        return
                    pause = min(max(2 * pause, FIRST_PAUSE_SECONDS), LONGEST_PAUSE_SECONDS)
                    pause = pause if is_passing else REFUSED_PAUSE_SECONDS
                else:
                    self._tell(None)
                    pause = 0.0
                    if is_last_try:
                        self.is_complete = True
                        return
                self._first_try.set()
                self._wait(pause)
        finally:
            self._first_try.set()
            if self._closing.is_set():
                self._journal.close()

    def _try(self) -> None:
        if is_remote() and (self.trouble is not None or not self._first_try.is_set()):
            check_reachable()  # answers within seconds, where mlflow tries for a minute
        self.delivery.send()

    def _wait(self, pause: float) -> None:
        if self._closing.is_set():
            self._given_up.wait(min(pause, CLOSING_PAUSE_SECONDS))
        elif pause:
            self._closing.wait(pause * random.uniform(0.8, 1.2))
        else:
            self._news.wait()
            self._news.clear()
            self._closing.wait(LINGER_SECONDS)

    def _tell(self, trouble: TrackingError | None) -> None:
        if trouble is not None and str(trouble) != str(self.trouble):
            _log.warning("%s; the run continues, and keeps what it could not send in %s", trouble, self._journal.folder)
        if trouble is None and self.trouble is not None:
            _log.warning("the tracking server takes the run's records again")
        self.trouble = trouble


def is_offline() -> bool:
    """Whether EHRTRACK_OFFLINE=1 keeps runs in their journals until ``ehrtrack sync``.

    Raises
    ------
    TrackingError
        If it is neither 0 nor 1.
    """
    text = os.environ.get(OFFLINE, "") or "0"
    if text not in ("0", "1"):
        raise TrackingError(f"{OFFLINE} is {text!r}; needed is 1 to keep runs here until `ehrtrack sync`, or 0")
    return text == "1"


def drain_seconds() -> float:
    """How long the end of a run waits for a server that accepts nothing: EHRTRACK_DRAIN_SECONDS, or a minute."""
    text = os.environ.get("EHRTRACK_DRAIN_SECONDS", "")
    try:
        seconds = float(text or DEFAULT_DRAIN_SECONDS)
    except ValueError:
        seconds = -1.0
    if seconds < 0:
        raise TrackingError(f"EHRTRACK_DRAIN_SECONDS is {text!r}; needed is a number of seconds, such as 60")
    return seconds
