"""The outbox of a run: an append-only journal of its tracking calls, on the local disk before any server.

A journal is a folder::

    journal.log      a line a call: length and CRC-32 of the rest as 8 hexadecimal digits each, then JSON
    artifacts/       the files that calls refer to, each in a folder named by its content's hash
    progress         how much the server has confirmed (a line of the same form, replaced as a whole)
    refused.jsonl    what the server will never accept, with its reason
    lock             held by the process that writes or sends

A line is written by one call and synced before the call returns. Reading needs no line to be whole: one that
was cut off or changed is passed over and named, and the others are read as ever.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import threading
import uuid
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from ehrtrack.errors import TrackingError
from ehrtrack.files import flush, sha256_of
from ehrtrack.tracking.outbox.masking import masked

LOG = "journal.log"
ARTIFACTS = "artifacts"
REFUSED = "refused.jsonl"
_PROGRESS = "progress"
_LOCK = "lock"
_HEADER = re.compile(rb"([0-9a-f]{8}) ([0-9a-f]{8}) ")

Record = dict[str, Any]

# What a record of each kind must have; `end` and `open` may have more.
_TYPES: dict[str, dict[str, Any]] = {
    "open": {"key": str, "time": int, "experiment": str, "name": str, "tags": dict}
    | dict.fromkeys(("parent", "joined"), (str, type(None))),
    "metrics": {"time": int, "step": int, "values": dict},
    "params": {"values": dict},
    "tags": {"values": dict},
    "dataset": {"name": str, "fingerprint": str, "source": str, "context": str},
    "artifact": {"path": str, "sha256": str, "file": str},
    "end": {"status": str, "time": int},
}
_ITEMS = (str, int, float)
_PROGRESS_TYPES = {
    "position": int,
    "run_id": str,
    "experiment_id": str,
    "server": str,
    "artifacts": dict,
    "users_tags": dict,
}


@dataclass(frozen=True)
class Entry:
    """Bytes ``start`` to ``end`` of a journal: a record, or None where they are damaged."""

    start: int
    end: int
    record: Record | None
    is_torn_tail: bool = False


@dataclass
class Progress:
    """How much of a journal the server has.

    Attributes
    ----------
    position : bytes of the log whose records are confirmed
    server : address, without login, for messages
    artifacts : SHA-256 by artifact path, of those the server has
    users_tags : tags that a user had given a run that was joined; they stay
    """

    position: int = 0
    run_id: str = ""
    experiment_id: str = ""
    server: str = ""
    artifacts: dict[str, str] = field(default_factory=dict)
    users_tags: dict[str, str] = field(default_factory=dict)


class JournalBusy(TrackingError):
    """Another process writes or sends this journal."""


class Journal:
    """The journal of a run, locked for writing by this process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = threading.Lock()
        with self._disk_errors():
            (folder / ARTIFACTS).mkdir(parents=True, exist_ok=True)
            self._process_lock = hold(folder)
            self._file = os.open(folder / LOG, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
            self._end_torn_line()
            flush(folder)

    def append(self, *records: Mapping[str, Any]) -> int:
        """Write records durably: once this returns, they survive a killed process and a power cut.

        Returns
        -------
        Bytes of the log up to the end of these records.

        Raises
        ------
        TrackingError
            If they cannot be written, such as on a full disk.
        """
        lines = b"".join(encoded(record) for record in records)
        with self._lock, self._disk_errors():
            size = os.fstat(self._file).st_size
            try:
                if os.write(self._file, lines) != len(lines):
                    raise OSError("the disk took only a part of the record")
                os.fsync(self._file)
            except OSError:
                os.ftruncate(self._file, size)
                raise
        return size + len(lines)

    def stage(self, name: str) -> Path:
        """A path in the journal's folder at which to write a file that `keep` then takes without copying."""
        with self._disk_errors():
            folder = self.folder / ARTIFACTS / f"staged-{uuid.uuid4().hex[:8]}"
            folder.mkdir()
        return folder / name

    def keep(self, file: Path, path: str, *, is_handed_over: bool = False) -> Record:
        """Take a file into the journal; returns the record to append that stores it as artifact `path`.

        Parameters
        ----------
        is_handed_over
            The caller will never write to the file again, so that a hard link does instead of a copy.
        """
        with self._disk_errors():
            if file.parent.parent != self.folder / ARTIFACTS:
                staged = self.stage(file.name)
                _link_or_copy(file, staged, is_linked=is_handed_over)
                file = staged
            digest = sha256_of(file)
            flush(file)
            kept = self.folder / ARTIFACTS / f"{digest}-{uuid.uuid4().hex[:8]}"
            file.parent.rename(kept)
            flush(kept)
            flush(self.folder / ARTIFACTS)
        return {
            "do": "artifact",
            "path": path,
            "sha256": digest,
            "file": f"{kept.name}/{file.name}",
            "bytes": (kept / file.name).stat().st_size,
        }

    def close(self) -> None:
        """Let other processes send this journal; may be called twice."""
        for descriptor in (self._file, self._process_lock):
            if descriptor >= 0:
                os.close(descriptor)
        self._file = self._process_lock = -1

    def _end_torn_line(self) -> None:
        size = os.fstat(self._file).st_size
        if size and os.pread(self._file, 1, size - 1) != b"\n":
            os.write(self._file, b"\n")

    def _disk_errors(self) -> _DiskErrors:
        return _DiskErrors(self.folder)


class _DiskErrors:
    """Turns a failed write of the journal into an error that says what it means."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, OSError):
            raise TrackingError(
                f"the run's journal cannot be written in {self.folder}: {error}; nothing more could be tracked. "
                "Free some disk, or set runtime.cache to a folder you may write to"
            ) from error


def encoded(record: Mapping[str, Any]) -> bytes:
    """A record as a line of the journal, in which secret environment variables and logins in addresses are masked."""
    payload = json.dumps(masked(record), ensure_ascii=False).encode()
    return b"%08x %08x %s\n" % (len(payload), zlib.crc32(payload), payload)


def entries(data: bytes) -> Iterator[Entry]:
    """The records in a journal's bytes, and the places where there should be one but the bytes are damaged."""
    start = 0
    while start < len(data):
        if data[start : start + 1] == b"\n":  # that which ended a line whose own newline was cut off
            start += 1
            continue
        record, end = _record_at(data, start)
        if record is not None:
            yield Entry(start, min(end + 1, len(data)), record)
            if data[end : end + 1] not in (b"\n", b""):
                yield Entry(end, end + 1, None)  # the newline was changed: nothing is lost
            start = end + 1
            continue
        newline = data.find(b"\n", start)
        if newline < 0:
            yield Entry(start, len(data), None, is_torn_tail=True)
            return
        yield Entry(start, newline + 1, None)
        start = newline + 1


def read_log(folder: Path, start: int = 0) -> list[Entry]:
    """The entries of a journal folder from byte `start` on; a record that lacks a part counts as damaged.

    Raises
    ------
    TrackingError
        If it cannot be read.
    """
    try:
        with (folder / LOG).open("rb") as file:
            file.seek(start)
            found = entries(file.read())
    except OSError as error:
        raise TrackingError(f"the journal {folder} cannot be read: {error}") from error
    return [
        replace(entry, start=entry.start + start, end=entry.end + start, record=_whole(entry.record)) for entry in found
    ]


def read_progress(folder: Path) -> Progress:
    """How much the server has confirmed; nothing if that is not known, since sending again does no harm.

    Fields that another version of ehrtrack added are ignored: see `progress_oddity`.

    Raises
    ------
    TrackingError
        If it cannot be read.
    """
    record = _progress_record(folder)
    known = {key: record[key] for key in _PROGRESS_TYPES if key in record}
    if not _has_types(known, {key: _PROGRESS_TYPES[key] for key in known}):
        return Progress()
    progress = Progress(**known)
    if not 0 <= progress.position <= (folder / LOG).stat().st_size:
        progress.position = 0
    return progress


def progress_oddity(folder: Path) -> str:
    """A message about content of the file that `read_progress` ignores; empty if there is none."""
    record = _progress_record(folder)
    unknown = sorted(set(record) - set(_PROGRESS_TYPES))
    wrong = sorted(
        key for key in set(record) & set(_PROGRESS_TYPES) if not _has_types(record, {key: _PROGRESS_TYPES[key]})
    )
    if wrong:
        return (
            f"{folder / _PROGRESS} has odd values of {', '.join(wrong)}: it was not used, and everything was sent again"
        )
    return f"{folder / _PROGRESS} has unknown entries, which were not used: {', '.join(unknown)}" if unknown else ""


def write_progress(folder: Path, progress: Progress) -> None:
    """Replace what `read_progress` returns; after a power cut it may be an older one, which does no harm."""
    aside = folder / f"{_PROGRESS}.new"
    aside.write_bytes(encoded(asdict(progress)))
    aside.replace(folder / _PROGRESS)


def hold(folder: Path) -> int:
    """Lock a journal for this process; the lock ends when the returned descriptor is closed or the process ends.

    Raises
    ------
    JournalBusy
        If another process holds it.
    TrackingError
        If the folder cannot be written.
    """
    try:
        descriptor = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise TrackingError(f"the journal {folder} cannot be locked: {error}; make it writable") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise JournalBusy(f"{folder} is being written or sent by another process, which sends it itself") from None
    return descriptor


def remove_journal(folder: Path) -> None:
    """Remove a journal that the server has completely."""
    shutil.rmtree(folder, ignore_errors=True)


def _record_at(data: bytes, start: int) -> tuple[Record | None, int]:
    """The record whose line begins at `start`, and the position of its newline; None if it is incomplete."""
    header = _HEADER.match(data, start)
    if header is None:
        return None, start
    end = header.end() + int(header[1], 16)
    payload = data[header.end() : end]
    if end > len(data) or zlib.crc32(payload) != int(header[2], 16):
        return None, start
    try:
        record = json.loads(payload)
    except (ValueError, RecursionError):  # bytes as they were written, by something else than a journal
        return None, start
    return (record, end) if isinstance(record, dict) else (None, start)


def _progress_record(folder: Path) -> Record:
    file = folder / _PROGRESS
    try:
        return (_record_at(file.read_bytes(), 0)[0] if file.exists() else None) or {}
    except OSError as error:
        raise TrackingError(f"the journal {folder} cannot be read: {error}") from error


def _whole(record: Record | None) -> Record | None:
    """The record, if it has all fields that its kind requires; records of unknown kinds are returned unchanged."""
    if record is None or not _has_types(record, {"do": str} | _TYPES.get(str(record.get("do")), {})):
        return None
    return record


def _has_types(record: Record, types: Mapping[str, Any]) -> bool:
    return all(key in record and isinstance(record[key], kind) for key, kind in types.items()) and all(
        isinstance(item, _ITEMS) for key in types if isinstance(record[key], dict) for item in record[key].values()
    )


def _link_or_copy(source: Path, target: Path, *, is_linked: bool) -> None:
    if is_linked:
        try:
            os.link(source, target)
        except OSError:  # another file system, or one without links
            pass
        else:
            return
    shutil.copyfile(source, target)
