"""Deliver a journal to the tracking server; repeating a delivery does not change the result."""

from __future__ import annotations

import json
import logging
import re
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from shutil import rmtree
from typing import Any, TypeVar

from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag

from ehrtrack.errors import TrackingError
from ehrtrack.files import sha256_of
from ehrtrack.tracking import names
from ehrtrack.tracking.client.connection import (
    CallRefused,
    ServerUnavailable,
    client,
    redacted,
    tracking_errors,
    tracking_uri,
)
from ehrtrack.tracking.client.queries import artifact_store, download, list_artifacts
from ehrtrack.tracking.outbox.journal import (
    ARTIFACTS,
    REFUSED,
    Entry,
    Record,
    read_log,
    read_progress,
    write_progress,
)
from ehrtrack.tracking.outbox.masking import without_secrets
from ehrtrack.tracking.outbox.registration import Registration, fetch_checksums, under_users_tags
from ehrtrack.tracking.recovery.lease import RunClaimLost, check_claim

_Row = TypeVar("_Row")

# mlflow's limits for one call.
ROWS_PER_CALL = {"metrics": 1000, "params": 100, "tags": 100}

_log = logging.getLogger(__name__)


@dataclass
class Account:
    """The outcome of a journal's records; `lost` are damaged places, `refused` records the server never accepts."""

    sent: int = 0
    already_there: int = 0
    refused: int = 0
    lost: int = 0
    left: int = 0


class Delivery:
    """The delivery of one journal: its records are sent in order, and its progress is kept in the folder.

    Parameters
    ----------
    is_live : whether the journal is still being written, so that an incomplete last line will be completed

    Attributes
    ----------
    is_begun : whether the run's work has begun, so that a refusal to join another run can no longer stop it
    """

    def __init__(self, folder: Path, *, is_live: bool) -> None:
        self.folder = folder
        self.is_live = is_live
        self.is_begun = not is_live
        self.progress = read_progress(folder)
        self.account = Account()
        self._is_open = False
        self._rows_there: set[tuple[str, int]] = set()
        self._sends: dict[str, Callable[[list[Record]], None]] = {
            "open": lambda records: None,
            "metrics": self._send_metrics,
            "params": self._send_params,
            "tags": self._send_tags,
            "dataset": self._send_dataset,
            "artifact": self._send_artifact,
            "end": self._send_end,
        }

    def pending(self) -> list[Entry]:
        """The records that are not confirmed yet."""
        return [entry for entry in read_log(self.folder, self.progress.position) if not entry.is_torn_tail]

    def is_finished(self) -> bool:
        """Whether the run has ended and the server has everything."""
        every = read_log(self.folder)
        is_ended = any(entry.record is not None and entry.record["do"] == "end" for entry in every)
        return is_ended and not self.pending() and not (self.folder / REFUSED).exists()

    def send(self, on_confirmed: Callable[[int], object] = lambda n_records: None) -> None:
        """Send all pending records, including those that are added in the meantime.

        Parameters
        ----------
        on_confirmed
            Called with the number of records whenever some have arrived.

        Raises
        ------
        RunClaimLost
            If another process claimed the run; what is left must not be sent.
        ServerUnavailable, AccessRefused
            If it stopped because of the server; the next call continues where it stopped.
        TrackingError
            If nothing more can be sent, such as when the run was deleted on the server.
        """
        self.open()
        while pending := self.pending():
            self._superseded = _superseded(pending)
            for group in _groups(pending):
                self._send_group(group)
                self.progress.position = group[-1].end
                write_progress(self.folder, self.progress)
                on_confirmed(len(group))
        if not self.is_live and read_log(self.folder, self.progress.position):
            self.account.lost += 1
            _log.warning("%s ends within a record: its writer was killed; earlier records are complete", self.folder)

    def open(self) -> None:
        """Find the run on the server, or make it.

        Raises
        ------
        RunClaimLost
            If another process claimed it.
        """
        if self._is_open:
            return
        registration = Registration(self.folder)
        opened = registration.find_or_make(self.progress, is_begun=self.is_begun)
        self.progress.run_id, self.progress.experiment_id = opened.run_id, opened.experiment_id
        self.progress.users_tags |= opened.users_tags
        self.progress.server = redacted(tracking_uri())
        if not opened.is_new:
            check_claim(opened.run_id, registration.attempt)
            if registration.attempt:
                self._rows_there = _metric_rows(opened.run_id)
            self.progress.artifacts = fetch_checksums(opened.run_id) | self.progress.artifacts
        write_progress(self.folder, self.progress)
        self._registration = registration
        self._is_open = True

    def reopen(self) -> None:
        """Check again, before the next record, that the run exists and that this journal may still write to it."""
        self._is_open = False

    def write_checksums(self) -> None:
        """Store the checksums of all artifacts beside them."""
        if self._registration.attempt:
            self._hash_what_others_sent()
        if not self.progress.artifacts:
            return
        lines = [f"{digest}  {path}\n" for path, digest in sorted(self.progress.artifacts.items())]
        with tempfile.TemporaryDirectory(prefix="ehrtrack-") as folder:
            file = Path(folder) / names.CHECKSUMS
            file.write_text("".join(lines))
            with self._failures("store the checksums"):
                self._check_is_ours()
                client().log_artifact(self.progress.run_id, str(file))

    def _hash_what_others_sent(self) -> None:
        """Compute the checksums of artifacts that a lost machine sent and that were not sent again."""
        known = {names.CHECKSUMS, *self.progress.artifacts}
        for path in list_artifacts(self.progress.run_id):
            if path not in known and not path.startswith(f"{names.RESUME_ARTIFACTS}/"):
                with tempfile.TemporaryDirectory(prefix="ehrtrack-") as folder:
                    self.progress.artifacts[path] = sha256_of(download(self.progress.run_id, path, Path(folder)))

    def _send_group(self, group: list[Entry]) -> None:
        records = [entry.record for entry in group if entry.record is not None]
        if not records:
            (damage,) = group
            self.account.lost += 1
            _log.warning(
                "%s is damaged from byte %d to %d; at most one record is lost", self.folder, damage.start, damage.end
            )
            return
        refused = self.account.refused
        send = self._sends.get(records[0]["do"])
        if send is None:
            self._set_aside(records[0], "this version of ehrtrack does not know this kind of record")
        elif group[0].start in self._superseded:
            self._discard(records[0])
        else:
            send(records)
        self.account.sent += len(records) - min(len(records), self.account.refused - refused)

    def _send_metrics(self, records: list[Record]) -> None:
        rows = [
            Metric(key, value, record["time"], record["step"])
            for record in records
            for key, value in record["values"].items()
            if (key, record["step"]) not in self._rows_there  # a part of an epoch that is trained again says it again
        ]
        if rows:
            self._send_rows(rows, lambda part: client().log_batch(self.progress.run_id, metrics=part))

    def _send_params(self, records: list[Record]) -> None:
        rows = [Param(key, value) for key, value in _merged(records).items()]
        self._send_rows(rows, lambda part: client().log_batch(self.progress.run_id, params=part))

    def _send_tags(self, records: list[Record]) -> None:
        tags = under_users_tags(_merged(records), self.progress.users_tags)
        rows = [RunTag(key, value) for key, value in tags.items()]
        self._send_rows(rows, lambda part: client().log_batch(self.progress.run_id, tags=part))

    def _send_dataset(self, records: list[Record]) -> None:
        (record,) = records
        source = json.dumps({"uri": record["source"]})
        dataset = Dataset(record["name"], digest=record["fingerprint"], source_type="local", source=source)
        tags = [InputTag("mlflow.data.context", record["context"])] if record["context"] else []
        rows = [DatasetInput(dataset, tags)]
        self._send_rows(rows, lambda part: client().log_inputs(self.progress.run_id, part))

    def _send_artifact(self, records: list[Record]) -> None:
        (record,) = records
        if self.progress.artifacts.get(record["path"]) == record["sha256"]:
            self._note_already_there(record)
            return
        if not _is_kept_file(record["file"]):
            self._set_aside(record, f"its file {record['file']!r} is none that a journal keeps")
            return
        file = self.folder / ARTIFACTS / record["file"]
        found = sha256_of(file) if file.is_file() else "gone"
        if found == "gone" and self._is_on_server(record):
            self._note_already_there(record)
            return
        if found != record["sha256"]:
            self._set_aside(record, f"its file {file} is {'gone' if found == 'gone' else 'damaged'}")
            return
        refused = self.account.refused
        parent = PurePosixPath(record["path"]).parent
        folder = None if parent == PurePosixPath() else str(parent)
        self._send_rows([record], lambda _: client().log_artifact(self.progress.run_id, str(file), folder))
        if self.account.refused == refused:
            self.progress.artifacts[record["path"]] = record["sha256"]
            write_progress(self.folder, self.progress)  # before the file goes
            self._discard(record)

    def _note_already_there(self, record: Record) -> None:
        self.account.already_there += 1
        self.account.sent -= 1
        self.progress.artifacts[record["path"]] = record["sha256"]
        self._discard(record)

    def _is_on_server(self, record: Record) -> bool:
        """Whether an artifact was sent before; its file is removed after sending, and the progress may be lost."""
        run_id, path = self.progress.run_id, record["path"]
        if path not in list_artifacts(run_id):
            return False
        with tempfile.TemporaryDirectory(prefix="ehrtrack-") as folder:
            return sha256_of(download(run_id, path, Path(folder))) == str(record["sha256"])

    def _remove(self, folder: str) -> None:
        """Remove a folder of artifacts; it stays if the server does not allow that."""
        try:
            with self._failures(f"remove {folder} of"):
                self._check_is_ours()
                store = artifact_store(self.progress.run_id)
                if folder in {entry.path for entry in store.list_artifacts()}:
                    store.delete_artifacts(folder)  # type: ignore[no-untyped-call]
        except TrackingError as refusal:
            if isinstance(refusal, ServerUnavailable | RunClaimLost):
                raise
            _log.warning("%s; it is no longer needed, and stays", refusal)

    def _send_end(self, records: list[Record]) -> None:
        (record,) = records
        removed = names.checked_artifact_path(record["remove"]) if "remove" in record else None
        for path in [path for path in self.progress.artifacts if removed and path.startswith(f"{removed}/")]:
            del self.progress.artifacts[path]
        self.write_checksums()
        self._registration.remove_doubles(self.progress)
        with self._failures("end the run"):
            self._check_is_ours()
            client().set_terminated(self.progress.run_id, record["status"], record["time"])
        if removed:
            self._remove(removed)

    def _send_rows(self, rows: list[_Row], send: Callable[[list[_Row]], object]) -> None:
        """Send rows in one call; if the server refuses it, find the offending row and send the others."""
        try:
            with self._failures("log to"):
                self._check_is_ours()
                send(rows)
        except CallRefused as refusal:
            self._check_still_there()
            if len(rows) == 1:
                row = rows[0]
                self._set_aside(row if isinstance(row, dict) else _plain(row), str(refusal))
                return
            middle = len(rows) // 2
            self._send_rows(rows[:middle], send)
            self._send_rows(rows[middle:], send)

    def _check_is_ours(self) -> None:
        """The last check before a write, so that a paused process writes nothing once another has claimed its run."""
        check_claim(self.progress.run_id, self._registration.attempt)

    def _check_still_there(self) -> None:
        """Distinguish a refused record from a run that no longer accepts any."""
        try:
            with self._failures("read"):
                stage = client().get_run(self.progress.run_id).info.lifecycle_stage
        except CallRefused as refusal:
            raise ServerUnavailable(str(refusal)) from refusal
        if stage != "active":
            raise TrackingError(
                f"run {self.progress.run_id} was deleted on {redacted(tracking_uri())}; bring it back with "
                f"`mlflow runs restore --run-id {self.progress.run_id}`, or remove {self.folder}"
            )

    def _set_aside(self, record: Record, reason: str) -> None:
        self.account.refused += 1
        line = json.dumps({"record": record, "reason": without_secrets(reason)}, ensure_ascii=False)
        with (self.folder / REFUSED).open("a", encoding="utf-8") as file:
            file.write(line + "\n")
        _log.warning("set aside in %s, the rest is sent: %s", self.folder / REFUSED, reason)

    def _discard(self, record: Record) -> None:
        if _is_kept_file(record["file"]):
            rmtree((self.folder / ARTIFACTS / record["file"]).parent, ignore_errors=True)

    def _failures(self, doing: str) -> Any:
        return tracking_errors(f"{doing} run {self.progress.run_id}")


def _is_kept_file(name: str) -> bool:
    """Whether a name has the form of those that `Journal.keep` makes.

    A journal may come from elsewhere, and must not be able to send or remove other files of this machine.
    """
    return bool(re.fullmatch(r"[0-9a-f]{64}-[0-9a-f]{8}/[^/\0]+", name)) and not name.endswith("/..")


def _metric_rows(run_id: str) -> set[tuple[str, int]]:
    """Name and step of every metric of a run that the server has."""
    with tracking_errors(f"read the metrics of run {run_id}"):
        keys = client().get_run(run_id).data.metrics
        return {(key, row.step) for key in keys for row in client().get_metric_history(run_id, key)}


def _superseded(pending: list[Entry]) -> set[int]:
    """Positions of the pending artifacts that a later one of the same path replaces, or that are removed later."""
    last: dict[str, int] = {}
    replaced = set()
    for entry in pending:
        if entry.record is not None and entry.record["do"] == "artifact":
            if entry.record["path"] in last:
                replaced.add(last[entry.record["path"]])
            last[entry.record["path"]] = entry.start
        if entry.record is not None and "remove" in entry.record:
            replaced |= {start for path, start in last.items() if path.startswith(f"{entry.record['remove']}/")}
    return replaced


def _groups(pending: list[Entry]) -> Iterator[list[Entry]]:
    """Group neighbouring records of one kind that fit into one call; every other record is a group by itself."""
    group: list[Entry] = []
    n_rows = 0
    for entry in pending:
        kind, size = _kind(entry), len((entry.record or {}).get("values", ()))
        fits = group and kind in ROWS_PER_CALL and kind == _kind(group[0]) and n_rows + size <= ROWS_PER_CALL[kind]
        if group and not fits:
            yield group
            group, n_rows = [], 0
        group.append(entry)
        n_rows += size
    if group:
        yield group


def _kind(entry: Entry) -> str:
    return "damage" if entry.record is None else str(entry.record["do"])


def _merged(records: list[Record]) -> dict[str, str]:
    return {key: value for record in records for key, value in record["values"].items()}


def _plain(row: Any) -> Record:
    if isinstance(row, DatasetInput):
        return {"dataset": row.dataset.name, "digest": row.dataset.digest}
    return {name: value for name, value in dict(row).items() if value is not None}
