"""The journal on disk: what survives a cut, a changed byte, a full disk; and what never gets into it."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from ehrtrack.errors import TrackingError
from ehrtrack.tracking.outbox.journal import (
    ARTIFACTS,
    LOG,
    Journal,
    JournalBusy,
    Progress,
    encoded,
    entries,
    read_log,
    read_progress,
    sha256_of,
    write_progress,
)

RECORDS = [{"do": "metrics", "time": 1700000000000 + n, "step": n, "values": {"val/é": n / 7}} for n in range(5)]
LOG_BYTES = b"".join(encoded(record) for record in RECORDS)


def readable(data: bytes) -> list[object]:
    return [entry.record for entry in entries(data) if entry.record is not None]


def test_what_is_appended_is_read_back(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j")
    journal.append(*RECORDS[:2])
    journal.append(*RECORDS[2:])
    found = read_log(tmp_path / "j")
    assert [entry.record for entry in found] == RECORDS
    later = read_log(tmp_path / "j", found[2].end)
    assert [(entry.start, entry.end, entry.record) for entry in later] == [
        (entry.start, entry.end, entry.record) for entry in found[3:]
    ]


def test_nan_and_infinity_keep_their_value(tmp_path: Path) -> None:
    (record,) = readable(encoded({"do": "metrics", "values": {"a": float("inf"), "b": -0.0}}))
    assert str(record) == "{'do': 'metrics', 'values': {'a': inf, 'b': -0.0}}"


def test_cut_at_every_byte_of_its_last_record_it_loses_at_most_that_one(tmp_path: Path) -> None:
    last_begins = len(LOG_BYTES) - len(encoded(RECORDS[-1]))
    for size in range(last_begins, len(LOG_BYTES) + 1):
        cut = LOG_BYTES[:size]
        is_whole = size >= len(LOG_BYTES) - 1  # the newline may be missing
        assert readable(cut) == (RECORDS if is_whole else RECORDS[:-1])
        torn = [entry for entry in entries(cut) if entry.is_torn_tail]
        assert len(torn) == (not is_whole and size > last_begins)

        (tmp_path / str(size)).mkdir()
        (tmp_path / str(size) / LOG).write_bytes(cut)
        journal = Journal(tmp_path / str(size))  # goes on after the cut
        journal.append({"do": "end"})
        journal.close()
        assert readable((tmp_path / str(size) / LOG).read_bytes()) == [*readable(cut), {"do": "end"}]


def test_any_byte_that_becomes_any_other_loses_at_most_its_record_and_is_named() -> None:
    lines = [encoded(record) for record in RECORDS[:3]]
    whole = b"".join(lines)
    for position, was in enumerate(whole):
        its_record = next(n for n in range(3) if position < sum(len(line) for line in lines[: n + 1]))
        others = [record for n, record in enumerate(RECORDS[:3]) if n != its_record]
        for now in set(range(256)) - {was}:
            found = list(entries(whole[:position] + bytes([now]) + whole[position + 1 :]))
            records = [entry.record for entry in found if entry.record is not None]
            assert records in (others, RECORDS[:3]), (position, now)
            damage = [entry for entry in found if entry.record is None]
            assert any(entry.start <= position < entry.end for entry in damage) or now == ord("\n"), (position, now)


def test_a_changed_progress_means_sending_again_never_leaving_out(tmp_path: Path) -> None:
    (tmp_path / LOG).write_bytes(LOG_BYTES)
    written = Progress(position=len(LOG_BYTES) // 2, run_id="a" * 32, artifacts={"x": "y"})
    write_progress(tmp_path, written)
    assert read_progress(tmp_path) == written
    whole = (tmp_path / "progress").read_bytes()
    for position in range(len(whole) - 1):
        (tmp_path / "progress").write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
        assert read_progress(tmp_path) == Progress()


def test_a_progress_beyond_the_journal_is_not_believed(tmp_path: Path) -> None:
    (tmp_path / LOG).write_bytes(LOG_BYTES)
    write_progress(tmp_path, Progress(position=len(LOG_BYTES) + 1, run_id="a" * 32))
    assert read_progress(tmp_path) == Progress(position=0, run_id="a" * 32)


def test_a_kept_file_is_the_journals_own(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j")
    given = tmp_path / "weights.bin"
    given.write_bytes(b"one")
    copied = journal.keep(given, "model/weights.bin")
    linked = journal.keep(given, "model/weights.bin", is_handed_over=True)
    given.unlink()
    for record in (copied, linked):
        kept = tmp_path / "j" / ARTIFACTS / record["file"]
        assert kept.read_bytes() == b"one"
        assert sha256_of(kept) == record["sha256"]
        assert kept.parent.name.startswith(record["sha256"])
    assert copied["file"] != linked["file"]


def test_a_file_handed_over_is_linked_and_any_other_copied(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j")
    given = tmp_path / "weights.bin"
    given.write_bytes(b"one")
    copied, linked = journal.keep(given, "a"), journal.keep(given, "b", is_handed_over=True)
    inodes = [(tmp_path / "j" / ARTIFACTS / record["file"]).stat().st_ino for record in (copied, linked)]
    assert [inode == given.stat().st_ino for inode in inodes] == [False, True]


def test_one_process_at_a_time(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j")
    with pytest.raises(JournalBusy, match="is being written or sent by another process"):
        Journal(tmp_path / "j")
    journal.close()
    Journal(tmp_path / "j").close()


def test_a_full_disk_is_an_error_at_once_and_leaves_what_was_there(tmp_path: Path) -> None:
    """A limit on the size of files stands for the disk; the kernel then takes a part of the record, as it would."""
    code = f"""
import resource, signal
from pathlib import Path
from ehrtrack.errors import TrackingError
from ehrtrack.tracking.outbox.journal import Journal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
journal = Journal(Path({str(tmp_path / "j")!r}))
journal.append({{"do": "tags", "values": {{"n": "1"}}}})
resource.setrlimit(resource.RLIMIT_FSIZE, (200, resource.RLIM_INFINITY))
try: journal.append({{"do": "tags", "values": {{"long": "x" * 500}}}})
except TrackingError as error: print(error)
journal.append({{"do": "tags", "values": {{"n": "2"}}}})
"""
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "the run's journal cannot be written in" in child.stdout
    assert "Free some disk, or set runtime.cache" in child.stdout
    found = list(entries((tmp_path / "j" / LOG).read_bytes()))
    assert [entry.record and entry.record["values"] for entry in found] == [{"n": "1"}, {"n": "2"}]


def test_a_folder_that_cannot_be_written_is_an_error_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(TrackingError, match=r"cannot be written in .*set runtime\.cache to a folder"):
        Journal(tmp_path / "file" / "j")


def test_no_secret_of_the_environment_reaches_the_journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", 'pass"word-\\1')
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wJalrXUtnFEMI")
    monkeypatch.setenv("HF_TOKEN", "12345678")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://anna:hunter22@example.org")
    journal = Journal(tmp_path / "j")
    said = {"a wJalrXUtnFEMI": ["https://anna:hunter22@example.org", 'x pass"word-\\1 y'], "n": 12345678}
    journal.append({"do": "tags", "values": said})
    text = (tmp_path / "j" / LOG).read_text()
    assert json.loads(text[18:])["values"] == {"a ***": ["https://***@example.org", "x *** y"], "n": 12345678}


def test_the_journal_is_for_its_owner_alone(tmp_path: Path) -> None:
    Journal(tmp_path / "j").close()
    assert os.stat(tmp_path / "j" / LOG).st_mode & 0o077 == 0
