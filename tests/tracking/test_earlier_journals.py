"""A journal written by an earlier version is sent as a whole: its bytes here are those that the version wrote."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from ehrtrack.tracking.client import queries
from ehrtrack.tracking.client.connection import client
from ehrtrack.tracking.outbox.journal import Progress, progress_oddity, read_progress, write_progress
from ehrtrack.tracking.outbox.sync import find_journals, sync

WRITTEN = Path(__file__).parent / "outbox_of_2026_11_29"
"""Made at a3f370c, without a server: `tracked_run` with params, tags, two epochs, a dataset, a text and a summary."""
KEY = "8ea68bbeb1dc412c8e5fc790653646e5"
PROGRESS = (
    b'000000fd a244d4f5 {"position": 412, "run_id": "9c9c9c9c9c9c9c9c9c9c9c9c9c9c9c9c", "experiment_id": "3", '
    b'"server": "https://runs.example.org", "artifacts": {"notes.txt": '
    b'"abababababababababababababababababababababababababababababababab"}, "users_tags": {"team": "cardio"}}\n'
)
"""What the same version wrote of a journal that was sent in part."""


def test_a_journal_of_2026_11_29_is_sent_as_a_whole(local_store: Path) -> None:
    journals = local_store / "cache" / "journal"
    shutil.copytree(WRITTEN, journals)
    assert find_journals(local_store / "cache") == [journals / KEY]
    (sent,) = sync(local_store / "cache")
    assert (sent.name, sent.problem, sent.remark) == ("lora r8", "", "")
    assert (sent.account.sent, sent.account.refused, sent.account.lost, sent.account.left) == (11, 0, 0, 0)
    assert find_journals(local_store / "cache") == []
    (record,) = queries.search_runs("gi_bleed")
    assert (record.run_id, record.kind, record.status) == (sent.run_id, "finetune", "FINISHED")
    assert record.tags["ehrtrack.run_key"] == KEY
    assert record.tags["fingerprint.cohort"] == "ab12"
    assert record.tags["mlflow.note.content"] == "**done**"
    assert record.tags["mlflow.user"] == "ada"
    assert record.params == {"strategy.name": "lora", "train.lr": "0.001"}
    assert (record.started.timestamp(), record.duration_seconds) == (1764403200, 3)
    assert queries.metric_history(record.run_id, "val/c_index") == {1: 0.625, 2: 0.75}
    assert queries.metric_history(record.run_id, "val/loss") == {1: 0.5}
    assert queries.list_artifacts(record.run_id) == ["environment.json", "notes.txt", "sha256sums.txt"]
    assert queries.download(record.run_id, "notes.txt", local_store).read_text(encoding="utf-8") == "naïve\n"
    environment = queries.download(record.run_id, "environment.json", local_store).read_text()
    assert json.loads(environment) == {"python": "3.11.9"}
    (dataset,) = client().get_run(record.run_id).inputs.dataset_inputs
    assert (dataset.dataset.name, dataset.dataset.digest) == ("eunomia", "fe" * 8)


def test_the_progress_file_of_2026_11_29_is_read_and_written_alike(tmp_path: Path) -> None:
    (tmp_path / "journal.log").write_bytes(bytes(500))
    (tmp_path / "progress").write_bytes(PROGRESS)
    progress = Progress(
        412, "9c" * 16, "3", "https://runs.example.org", {"notes.txt": "ab" * 32}, users_tags={"team": "cardio"}
    )
    assert read_progress(tmp_path) == progress
    assert progress_oddity(tmp_path) == ""
    write_progress(tmp_path, progress)
    assert (tmp_path / "progress").read_bytes() == PROGRESS
