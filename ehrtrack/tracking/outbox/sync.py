"""``ehrtrack sync``: send the journals that runs left behind; it can be repeated."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from os import close
from pathlib import Path

from tqdm import tqdm

from ehrtrack.errors import TrackingError
from ehrtrack.tracking.client.connection import (
    AccessRefused,
    ServerUnavailable,
    check_reachable,
    redacted,
    tracking_uri,
)
from ehrtrack.tracking.outbox.delivery import Account, Delivery
from ehrtrack.tracking.outbox.journal import (
    LOG,
    REFUSED,
    hold,
    progress_oddity,
    read_log,
    read_progress,
    remove_journal,
)
from ehrtrack.tracking.outbox.registration import Registration
from ehrtrack.tracking.recovery.lease import RunClaimLost


@dataclass(frozen=True)
class SyncOutcome:
    """The outcome of one journal; `problem` says why the server does not have all of it, `remark` is a note."""

    folder: Path
    name: str
    run_id: str
    account: Account
    problem: str = ""
    remark: str = ""
    is_server_away: bool = False

    def to_text(self) -> str:
        """A readable line, with a second one if something has to be done."""
        account = self.account
        line = (
            f"{self.name}  run {self.run_id or 'not made'}: "
            f"{account.sent} sent, {account.already_there} already there, "
            f"{account.refused} refused, {account.lost} damaged, {account.left} left"
        )
        return line + "".join(f"\n  {text}" for text in (self.problem, self.remark) if text)


def sync(folder: Path, *, is_shared: bool = False) -> list[SyncOutcome]:
    """Send every journal in a folder, parents first; journals that the server has completely are removed.

    Parameters
    ----------
    folder
        A run's journal, a folder of such, or a cache folder (``.ehrtrack``).
    is_shared
        Whether the folder also holds journals of other projects, so that only those that were begun for this server
        are sent.

    Raises
    ------
    TrackingError
        If there is something to send and no server accepts it.
    """
    journals = find_journals(folder)
    others = [_for_elsewhere(journal) for journal in journals if is_shared and is_for_elsewhere(journal)]
    journals = [journal for journal in journals if journal not in {run.folder for run in others}]
    if not journals:
        return others
    check_reachable()
    total = sum(_n_pending(journal) for journal in journals)
    runs: list[SyncOutcome] = []
    with tqdm(total=total, desc=f"sending to {redacted(tracking_uri())}", unit="record") as bar:
        for journal in journals:
            runs.append(_sync_one(journal, bar.update))
            if runs[-1].is_server_away:
                break
    left = journals[len(runs) :]
    return runs + [_untried(journal, "not tried, since the server went away") for journal in left] + others


def is_for_elsewhere(folder: Path) -> bool:
    """Whether the run of a journal was begun for another server than the present one."""
    return _server(folder) not in ("", redacted(tracking_uri()))


def _for_elsewhere(folder: Path) -> SyncOutcome:
    remark = (
        f"begun for {_server(folder)}, so it was left; set MLFLOW_TRACKING_URI to that, or send it to "
        f"{redacted(tracking_uri())} all the same: ehrtrack sync {shlex.quote(str(folder))}"
    )
    return SyncOutcome(folder, _name(folder), "", Account(left=_n_pending(folder)), remark=remark)


def _server(folder: Path) -> str:
    """The address of the server that a journal's run was begun for; empty if it is not recorded."""
    try:
        return str(Registration(folder).record.get("server", ""))
    except TrackingError:
        return ""


def send_left_behind(folder: Path, run_id: str, *, attempt: int) -> bool:
    """Send the journals that earlier processes of a run left, before the run is resumed with a new one.

    Parameters
    ----------
    attempt : the number of the claim of the run's last process

    Returns
    -------
    Whether one belonged to that last process, which is then no longer alive, since it would hold its journal.

    Raises
    ------
    TrackingError
        If a process still writes one of them, or the server does not accept all of it.
    """
    is_last_here = False
    found = [journal for journal in find_journals(folder) if run_id in _ids(journal)]
    for journal in found:
        is_of_last = _attempt(journal) == attempt
        synced = _sync_one(journal, lambda n_records: None)
        is_last_here |= is_of_last and synced.run_id == run_id  # not one that wanted to join it, and became another
        if synced.problem:
            raise TrackingError(f"run {run_id} cannot be resumed before its journal is sent: {synced.problem}")
        remove_journal(journal)
    return is_last_here


def _attempt(folder: Path) -> int:
    try:
        return Registration(folder).attempt
    except TrackingError:
        return -1


def _ids(folder: Path) -> set[str]:
    """The identifiers by which the run of a journal may be known."""
    found: set[str] = set()
    with suppress(TrackingError):  # what cannot be read says nothing about a run
        found.add(read_progress(folder).run_id)
        registration = Registration(folder)
        found |= {registration.key, str(registration.record["joined"])}
    return found


def find_journals(folder: Path) -> list[Path]:
    """The journal folders in a folder, oldest first, so that parents come before the runs within them."""
    patterns = (LOG, f"*/{LOG}", f"journal/*/{LOG}")
    found = {log.parent for pattern in patterns for log in folder.glob(pattern)}
    return sorted(found, key=lambda journal: (_opening_time(journal), journal))


def _sync_one(folder: Path, on_confirmed: Callable[[int], object]) -> SyncOutcome:
    try:
        lock = hold(folder)
    except TrackingError as unusable:
        return _untried(folder, str(unusable))
    try:
        return _sync_held(folder, on_confirmed)
    except TrackingError as unreadable:
        return _untried(folder, str(unreadable))
    except OSError as error:
        return _untried(folder, f"{folder} cannot be used: {error}")
    finally:
        close(lock)


def _sync_held(folder: Path, on_confirmed: Callable[[int], object]) -> SyncOutcome:
    name, problem, remarks, is_server_away = _name(folder), "", [progress_oddity(folder)], False
    is_claim_lost = False
    delivery = Delivery(folder, is_live=False)
    delivery.account.already_there = len(read_log(folder)) - len(delivery.pending())
    try:
        delivery.send(on_confirmed)
        if not delivery.is_finished():
            delivery.write_checksums()
    except RunClaimLost as lost:
        is_claim_lost = True
        remarks.append(str(lost))
    except TrackingError as trouble:
        problem = str(trouble)
        is_server_away = isinstance(trouble, ServerUnavailable | AccessRefused) and not _answers()
    if delivery.account.lost:
        remarks.append(f"damaged places in {folder / LOG}, left out: {delivery.account.lost}")
    delivery.account.left, delivery.account.refused = len(delivery.pending()), _n_refused(folder)
    if is_claim_lost:
        remove_journal(folder)
        delivery.account.left = 0
    elif delivery.account.refused:
        problem = problem or f"what the server refuses, and why, is in {folder / REFUSED}"
    elif delivery.is_finished():
        remove_journal(folder)
    elif not problem:
        remarks.append(f"its process ended without reporting it, so the server shows it as RUNNING; kept in {folder}")
    remark = "\n  ".join(filter(None, remarks))
    return SyncOutcome(folder, name, delivery.progress.run_id, delivery.account, problem, remark, is_server_away)


def _untried(folder: Path, problem: str) -> SyncOutcome:
    return SyncOutcome(folder, _name(folder), "", Account(left=_n_pending(folder)), problem)


def _answers() -> bool:
    try:
        check_reachable()
    except TrackingError:
        return False
    return True


def _name(folder: Path) -> str:
    try:
        return str(Registration(folder).record["name"])
    except TrackingError:
        return folder.name


def _n_pending(folder: Path) -> int:
    try:
        return len(Delivery(folder, is_live=False).pending())
    except TrackingError:
        return 0


def _n_refused(folder: Path) -> int:
    file = folder / REFUSED
    return len(file.read_text(encoding="utf-8").splitlines()) if file.exists() else 0


def _opening_time(folder: Path) -> int:
    try:
        return int(Registration(folder).record["time"])
    except TrackingError:
        return 0
