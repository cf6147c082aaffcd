"""Claims of tasks by one of several workers, kept in the database that they share, by that database's clock.

A claim is a row under a unique key, so that of two workers that take it at the same moment one succeeds. It is a lease:
its worker's thread renews it, and once it is not renewed any more another worker may take it over; at once where the
worker was a process of the same machine that is no more. What was done under a claim counts only if it is still held
then (`hold`), so that a worker that slept through its lease spoils nothing.
"""

from __future__ import annotations

import hashlib
import logging
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import psutil
import sqlalchemy as sql

from ehrtrack.errors import EhrtrackError
from ehrtrack.tracking.recovery.liveness import is_process_running

POLL_SECONDS = 1.0
LOST_BEATS = 2
"""Renewals that a worker must have missed before it is taken for dead."""

_log = logging.getLogger(__name__)

_TABLE = sql.Table(
    "ehrtrack_claims",
    sql.MetaData(),
    sql.Column("scope", sql.String(255), primary_key=True),
    sql.Column("what", sql.String(64), primary_key=True),
    sql.Column("holder", sql.String(255), nullable=False),  # empty: nobody
    sql.Column("n_beats", sql.Integer, nullable=False),
    sql.Column("beat", sql.DateTime, nullable=False),
    sql.Column("is_done", sql.Boolean, nullable=False),
    sql.Column("note", sql.Text, nullable=False),
)


class ClaimLost(EhrtrackError):
    """Another worker has taken over the task."""


@dataclass(frozen=True)
class Claim:
    """The state of a claim in the database.

    Attributes
    ----------
    is_held : whether a live worker holds it
    is_done : whether its task is finished for good
    note : a text that its workers left for later ones
    """

    is_held: bool = False
    is_done: bool = False
    note: str = ""


class Claims:
    """The claims of one scope, such as a study, as one worker takes them.

    Parameters
    ----------
    beat_seconds : time between two renewals
    key : of the task that this worker is, if another is only ever started in its place, as a scheduler does: what a
        worker before held under it is free at once
    """

    def __init__(self, engine: sql.Engine, scope: str, *, beat_seconds: float, key: str = "") -> None:
        self.scope = scope
        self.worker = f"{_this_process()} {uuid.uuid4().hex}"
        task = f" {hashlib.sha256(key.encode()).hexdigest()[:16]}" if key else ""
        self.worker += task
        self.beat_seconds = beat_seconds
        self._engine = engine
        try:
            _TABLE.create(engine, checkfirst=True)
        except sql.exc.DBAPIError:  # another worker made it in between
            if not sql.inspect(engine).has_table(_TABLE.name):
                raise
        if task:
            self._free(task)

    def look(self, what: str) -> Claim:
        """The present state of a claim."""
        with self._engine.connect() as connection:
            row = self._row(connection, what)
        if row is None:
            return Claim()
        return Claim(bool(row.holder) and not self._is_lapsed(row), row.is_done, row.note)

    def lives(self, what: str) -> bool:
        """Whether the holder of a claim is alive: it is watched until it renews the claim or lets it lapse."""
        first = now = self._seen(what)
        while now is not None:
            if _is_here(now.holder) or (now.holder, now.n_beats) != (first.holder, first.n_beats):
                return True
            self.wait()
            now = self._seen(what)
        return False

    def _seen(self, what: str) -> Any:
        """The row of a claim whose holder may be alive; None for any other."""
        with self._engine.connect() as connection:
            row = self._row(connection, what)
        return row if row is not None and row.holder and not self._is_lapsed(row) else None

    def finished(self) -> set[str]:
        """The claims whose tasks are finished."""
        with self._engine.connect() as connection:
            done = sql.select(_TABLE.c.what).where((_TABLE.c.scope == self.scope) & _TABLE.c.is_done)
            return set(connection.scalars(done))

    def take(self, what: str) -> bool:
        """Take a claim that nobody holds; False if another worker holds it, or its task is finished."""
        try:
            with self._engine.begin() as connection:
                connection.execute(
                    _TABLE.insert().values(
                        scope=self.scope,
                        what=what,
                        holder=self.worker,
                        n_beats=0,
                        beat=sql.func.now(),
                        is_done=False,
                        note="",
                    )
                )
        except sql.exc.IntegrityError:
            return self._take_over(what)
        return True

    def hold(self, what: str) -> None:
        """Renew a claim now, so that it is certain to be held for a while.

        Raises
        ------
        ClaimLost
            If another worker took it over.
        """
        self._change(what, n_beats=_TABLE.c.n_beats + 1, beat=sql.func.now())

    def leave_note(self, what: str, note: str) -> None:
        """Store a note with a claim that is held."""
        self._change(what, note=note)

    def finish(self, what: str) -> None:
        """Mark the task of a held claim as finished, so that nobody does it again."""
        self._change(what, holder="", is_done=True)

    def release(self, what: str) -> None:
        """Give up a claim for other workers; a claim that is already lost is left as it is."""
        try:
            self._change(what, holder="")
        except ClaimLost as lost:
            _log.warning("%s", lost)

    def wait(self) -> None:
        """Wait a moment before looking at the claims of other workers again."""
        time.sleep(POLL_SECONDS)

    @contextmanager
    def renewed(self) -> Iterator[None]:
        """Within the block, a thread renews all claims of this worker."""
        stopped = threading.Event()

        def renew() -> None:
            while not stopped.wait(self.beat_seconds):
                try:
                    self._renew()
                except sql.exc.SQLAlchemyError as trouble:  # `hold` says whether it mattered
                    _log.warning("the claims of this worker could not be renewed: %s", str(trouble).splitlines()[0])

        thread = threading.Thread(target=renew, name="claims", daemon=True)
        thread.start()
        try:
            yield
        finally:
            stopped.set()
            thread.join()

    def _renew(self) -> None:
        mine = (_TABLE.c.scope == self.scope) & (_TABLE.c.holder == self.worker)
        with self._engine.begin() as connection:
            connection.execute(_TABLE.update().where(mine).values(n_beats=_TABLE.c.n_beats + 1, beat=sql.func.now()))

    def _free(self, task: str) -> None:
        """Release the claims that earlier workers held under the same key, unless they are seen to be alive."""
        before = (_TABLE.c.scope == self.scope) & _TABLE.c.holder.endswith(task)
        with self._engine.begin() as connection:
            for holder in set(connection.scalars(sql.select(_TABLE.c.holder).where(before))):
                if not _is_here(holder):
                    connection.execute(_TABLE.update().where(before & (_TABLE.c.holder == holder)).values(holder=""))

    def _take_over(self, what: str) -> bool:
        with self._engine.connect() as connection:
            row = self._row(connection, what)
        if row is None or row.is_done or (row.holder and not self._is_lapsed(row)):
            return False
        as_seen = self._key(what) & (_TABLE.c.holder == row.holder) & (_TABLE.c.n_beats == row.n_beats)
        with self._engine.begin() as connection:
            taken = connection.execute(
                _TABLE.update()
                .where(as_seen)
                .values(holder=self.worker, n_beats=_TABLE.c.n_beats + 1, beat=sql.func.now())
            )
        return taken.rowcount == 1

    def _change(self, what: str, **values: Any) -> None:
        held = self._key(what) & (_TABLE.c.holder == self.worker)
        with self._engine.begin() as connection:
            if connection.execute(_TABLE.update().where(held).values(**values)).rowcount != 1:
                raise ClaimLost(f"{what} of {self.scope} was taken over by another worker")

    def _key(self, what: str) -> sql.ColumnElement[bool]:
        return (_TABLE.c.scope == self.scope) & (_TABLE.c.what == what)

    def _row(self, connection: sql.Connection, what: str) -> Any:
        return connection.execute(sql.select(_TABLE, sql.func.now().label("now")).where(self._key(what))).first()

    def _is_lapsed(self, row: Any) -> bool:
        if _is_dead(row.holder):
            return True
        silence = row.now.replace(tzinfo=None) - row.beat.replace(tzinfo=None)
        return bool(silence > timedelta(seconds=LOST_BEATS * self.beat_seconds))


def _this_process() -> str:
    return f"{socket.gethostname()} {psutil.Process().pid} {psutil.Process().create_time()}"


def _is_dead(holder: str) -> bool:
    """Whether a holder was a process of this machine that has ended."""
    host, number, began, *_ = holder.split(" ")
    return host == socket.gethostname() and not is_process_running(int(number), float(began))


def _is_here(holder: str) -> bool:
    """Whether a holder is a running process of this machine."""
    return holder.split(" ")[0] == socket.gethostname() and not _is_dead(holder)
