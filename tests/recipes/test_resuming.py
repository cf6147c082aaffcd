"""Going on with a run from what the tracking server has: whole snapshots alone, and nothing said twice."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
import torch
from simulated import study

from ehrtrack.errors import CheckpointError, ConfigError, DataError
from ehrtrack.files import sha256_of
from ehrtrack.home import HERE, home
from ehrtrack.pipeline.run import RUNS, Recorder, Resumption
from ehrtrack.recipes.resume import _cache_here, _fetch_snapshot, _move_folder_here, resume
from ehrtrack.tracking import names
from ehrtrack.tracking.client import queries
from ehrtrack.tracking.client.connection import client
from ehrtrack.tracking.outbox.delivery import Delivery
from ehrtrack.tracking.outbox.journal import Journal, encoded, read_log
from ehrtrack.tracking.outbox.sync import send_left_behind, sync
from ehrtrack.tracking.recovery.orphans import claim_run
from ehrtrack.tracking.run import tracked_run
from ehrtrack.training.snapshots import CheckpointWriter, adopt, latest_snapshot, newest_whole_step

TENSORS = {"model/w": torch.arange(6.0)}


def states(folder: Path, steps: list[int]) -> list[Path]:
    """Training states as the loop writes them."""
    folder.mkdir(parents=True, exist_ok=True)
    best = folder / "best.safetensors"
    best.write_bytes(b"best weights")
    writer = CheckpointWriter(folder, n_kept=len(steps))
    for step in steps:
        writer.save(step, TENSORS, {"epoch": step}, beside=[best])
    writer.close()
    return [folder / f"step-{step:06d}" for step in steps]


def stopped_run(folder: Path, steps: list[int]) -> str:
    """A run that was stopped after its snapshots were sent."""
    run_ids: list[str] = []

    def interrupted() -> None:
        with tracked_run(experiment="s", name="x", kind="finetune") as run:
            run_ids.append(run.server_run_id)
            run.is_resumable = True
            run.log_metrics({"train/loss": 2.0}, step=1)
            for state in states(folder, steps):
                assert run.log_snapshot(state, is_last=True)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    return run_ids[0]


def flip(file: Path) -> None:
    """Change a bit in the middle."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def artifact_file(run_id: str, path: str) -> Path:
    return Path(client().get_run(run_id).info.artifact_uri.removeprefix("file://")) / path


def test_the_newest_snapshot_comes_from_the_server_with_the_best_weights_beside_it(local_store: Path) -> None:
    run_id = stopped_run(local_store / "a", [3, 6])
    assert queries.get_run(run_id).tags[names.RESUMABLE] == "true"
    assert _fetch_snapshot(run_id, local_store / "b") == 0  # step 6 is in slot 1, so that slot 0 is written next
    snapshot = latest_snapshot(local_store / "b")
    assert snapshot is not None
    assert (snapshot.step, snapshot.facts) == (6, {"epoch": 6})
    assert torch.equal(snapshot.tensors["model/w"], TENSORS["model/w"])
    assert (snapshot.folder / "best.safetensors").read_bytes() == b"best weights"


@pytest.mark.parametrize("file", ["state.safetensors", "facts.json", "best.safetensors"])
def test_a_damaged_snapshot_is_passed_over_aloud_for_the_one_before(
    file: str, local_store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_id = stopped_run(local_store / "a", [3, 6])
    damaged = artifact_file(run_id, f"resume/slot-1/{file}")
    flip(damaged)
    assert _fetch_snapshot(run_id, local_store / "b") == 1
    snapshot = latest_snapshot(local_store / "b")
    assert snapshot is not None
    assert snapshot.step == 3
    if file != "facts.json":  # whose step is not known then, so that it is not tried first
        assert "resume/slot-1 of the server is passed over" in capsys.readouterr().out


@pytest.mark.parametrize("n_damaged", [1, 2])
def test_damaged_snapshots_here_are_named_and_the_whole_ones_of_the_server_used(
    n_damaged: int, local_store: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    run_id = stopped_run(local_store / "a", [3, 6])
    for folder in states(local_store / "b", [3, 6])[-n_damaged:]:
        flip(folder / "state.safetensors")
    assert _fetch_snapshot(run_id, local_store / "b") == 0
    assert "the snapshot of step 6 was fetched from the server" in capsys.readouterr().out
    assert caplog.text.count("is damaged") == n_damaged
    snapshot = latest_snapshot(local_store / "b")
    assert snapshot is not None
    assert snapshot.step == 6


def test_a_whole_snapshot_here_before_a_damaged_one_is_used_where_the_server_has_none(local_store: Path) -> None:
    with tracked_run(experiment="s", name="x", kind="finetune") as run:
        pass
    flip(states(local_store / "b", [3, 6])[1] / "state.safetensors")
    assert _fetch_snapshot(run.server_run_id, local_store / "b") == 0
    snapshot = latest_snapshot(local_store / "b")
    assert snapshot is not None
    assert snapshot.step == 3


def test_without_any_whole_snapshot_it_is_refused(local_store: Path) -> None:
    run_id = stopped_run(local_store / "a", [3])
    artifact_file(run_id, "resume/slot-0/best.safetensors").write_bytes(b"other weights")
    with pytest.raises(CheckpointError, match="none of the 1 snapshots of run"):
        _fetch_snapshot(run_id, local_store / "b")


def test_snapshots_that_are_replaced_while_they_are_read_are_read_again(
    local_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = stopped_run(local_store / "a", [3])
    (newer,) = states(local_store / "c", [9])
    adopted = []

    def adopt_late(fetched: Path, folder: Path) -> int:
        """A live run writes its next snapshot while the one before is being fetched."""
        adopted.append(fetched)
        if len(adopted) == 1:
            flip(fetched / "state.safetensors")
            shutil.copytree(newer, artifact_file(run_id, "resume/slot-0"), dirs_exist_ok=True)
        return adopt(fetched, folder)

    monkeypatch.setattr(sys.modules[resume.__module__], "adopt", adopt_late)
    assert _fetch_snapshot(run_id, local_store / "b") == 1
    snapshot = latest_snapshot(local_store / "b")
    assert snapshot is not None
    assert snapshot.step == 9
    assert len(adopted) == 2


def test_damage_that_stays_is_read_once(local_store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_id = stopped_run(local_store / "a", [3])
    flip(artifact_file(run_id, "resume/slot-0/state.safetensors"))
    with pytest.raises(CheckpointError, match="none of the 1 snapshots of run"):
        _fetch_snapshot(run_id, local_store / "b")
    assert "are read again" not in capsys.readouterr().out


def test_a_run_that_ends_well_leaves_no_snapshot_on_the_server(local_store: Path) -> None:
    with tracked_run(experiment="s", name="x", kind="finetune") as run:
        for state in states(local_store / "a", [3, 6]):
            run.log_snapshot(state, is_last=True)
        run.log_text("kept", "notes.txt")
        run.remove_snapshots()
    assert queries.list_artifacts(run.server_run_id) == ["environment.json", "notes.txt", "sha256sums.txt"]
    checksums = artifact_file(run.server_run_id, "sha256sums.txt").read_text()
    assert "resume/" not in checksums
    with pytest.raises(ConfigError, match="has ended well"):
        resume(run.server_run_id)


def test_a_server_that_is_away_costs_the_disk_of_one_snapshot(
    local_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    monkeypatch.setenv("EHRTRACK_DRAIN_SECONDS", "0")
    with tracked_run(experiment="s", name="x", kind="finetune") as run:
        kept = [run.log_snapshot(state) for state in states(local_store / "a", [3, 6, 9])]
        assert run.log_snapshot(local_store / "a" / "step-000009", is_last=True)  # but the last word is kept
    assert kept == [True, False, False]


def test_a_metric_of_a_step_that_is_trained_again_is_not_sent_twice(local_store: Path) -> None:
    run_id = stopped_run(local_store / "a", [3])
    claim_run(queries.get_run(run_id))
    with tracked_run(experiment="s", name="x", kind="finetune", run_id=run_id, attempt=1) as again:
        again.log_metrics({"train/loss": 2.0}, step=1)
        again.log_metrics({"train/loss": 1.0}, step=2)
    rows = [(row.step, row.value) for row in client().get_metric_history(run_id, "train/loss")]
    assert sorted(rows) == [(1, 2.0), (2, 1.0)]
    assert queries.get_run(run_id).status == "FINISHED"


def test_epochs_that_were_never_sent_come_from_the_snapshot_and_the_others_stay_single(local_store: Path) -> None:
    """The journal that held them was not sent, because the run had been claimed elsewhere meanwhile."""
    run_id = stopped_run(local_store / "a", [3])
    record = queries.get_run(run_id)
    attempt = claim_run(record)
    config = study(local_store / "data", local_store / "cache")
    with tracked_run(experiment="s", name="x", kind="finetune", run_id=run_id, attempt=attempt) as again:
        run = Recorder(config, again, "finetune", local_store / "runs")
        run.log_epochs_again([{"train/loss": 2.0, "val/loss": 3.0}, {"train/loss": 1.0, "val/loss": 2.5}])
        again.log_metrics({"train/loss": 0.5}, step=3)
    rows = {key: client().get_metric_history(run_id, key) for key in ("train/loss", "val/loss")}
    assert sorted((row.step, row.value) for row in rows["train/loss"]) == [(1, 2.0), (2, 1.0), (3, 0.5)]
    assert sorted((row.step, row.value) for row in rows["val/loss"]) == [(1, 3.0), (2, 2.5)]


def test_the_checksums_of_a_run_name_what_a_lost_machine_sent(local_store: Path) -> None:
    run_id = stopped_run(local_store / "a", [3])
    for artifact in ("sha256sums.txt", "environment.json"):
        artifact_file(run_id, artifact).unlink()
    artifact_file(run_id, "run_config.json").write_text("{}")
    claim_run(queries.get_run(run_id))
    with tracked_run(experiment="s", name="x", kind="finetune", run_id=run_id, attempt=1):
        pass
    told = dict(reversed(line.split("  ")) for line in artifact_file(run_id, "sha256sums.txt").read_text().splitlines())
    assert set(told) == {"environment.json", "run_config.json"}
    assert told["run_config.json"] == sha256_of(artifact_file(run_id, "run_config.json"))


def test_the_journal_of_a_machine_that_was_overtaken_sends_nothing(local_store: Path) -> None:
    folder = local_store / "journal" / "k1"
    opening = {"do": "open", "key": "k1", "time": 1, "experiment": "s", "name": "x", "tags": {}}
    journal = Journal(folder)
    journal.append(opening | {"parent": None, "joined": None})
    drain = Delivery(folder, is_live=False)
    drain.send()
    journal.append(
        {"do": "metrics", "time": 2, "step": 1, "values": {"train/loss": 2.0}},
        {"do": "end", "status": "KILLED", "time": 3},
    )
    journal.close()
    claim_run(queries.get_run(drain.progress.run_id))
    (synced,) = sync(local_store / "journal")
    assert "was claimed by another process" in synced.remark
    run = queries.get_run(drain.progress.run_id)
    assert (run.metrics, run.status) == ({}, "RUNNING")
    assert sync(local_store / "journal") == []


def test_a_run_that_had_ended_well_is_sent_and_not_trained_again(
    local_store: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its process was killed between the last word that it wrote and the server's knowing of it."""
    journals = local_store / "cache" / "journal"
    with monkeypatch.context() as patch:
        patch.setenv("EHRTRACK_OFFLINE", "1")
        with tracked_run(experiment="s", name="x", kind="finetune", journal=journals) as run:
            run.log_json(study(local_store / "data", local_store / "cache").to_json(), "run_config.json")
            run.log_metrics({"test/c_index": 0.6}, step=0)
    log = journals / run.run_key / "journal.log"
    end = read_log(log.parent)[-1]
    whole = log.read_bytes()
    log.write_bytes(whole[: end.start])
    (synced,) = sync(journals)
    assert queries.get_run(synced.run_id).status == "RUNNING"
    log.write_bytes(whole)
    done = resume(synced.run_id, is_forced=True)
    assert "had ended well; what its journal still had to tell is sent" in capsys.readouterr().out
    assert (done.run_id, done.metrics) == (synced.run_id, {"test/c_index": 0.6})
    assert queries.get_run(synced.run_id).status == "FINISHED"
    assert not journals.exists() or not list(journals.iterdir())


def test_the_folder_of_a_run_is_found_where_a_clone_that_is_gone_had_kept_it(local_store: Path) -> None:
    """Or an earlier version, under its key."""
    config = study(local_store / "data", local_store / "cache")
    for place in (home() / RUNS, HERE / RUNS):
        run_id = stopped_run(local_store / f"a{place.is_absolute()}", [3])
        record = queries.get_run(run_id)
        name = run_id if place.is_absolute() else record.tags[names.RUN_KEY]
        states(place / name / "snapshots", [3, 6])
        _move_folder_here(record, config)
        assert newest_whole_step(local_store / "cache" / RUNS / run_id / "snapshots")[0] == 6
        assert not (place / name).exists()


def test_a_cache_that_cannot_be_here_gives_way_to_this_machines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert _cache_here(tmp_path / "scratch") == tmp_path / "scratch"
    (tmp_path / "file").write_text("")
    assert _cache_here(tmp_path / "file" / "cache") == HERE
    assert f"runtime.cache was {tmp_path / 'file' / 'cache'}, which cannot be used here" in capsys.readouterr().out


def test_an_odd_journal_of_another_run_does_not_keep_a_run_from_going_on(local_store: Path) -> None:
    journals = local_store / "journal"
    odd = Journal(journals / "odd")
    odd.append({"do": "metrics", "values": "none"})
    odd.close()
    (journals / "odd" / "progress").write_bytes(encoded({"run_id": 7, "colour": "red"}))
    (journals / "folder" / "journal.log").mkdir(parents=True)
    assert send_left_behind(journals, "1" * 32, attempt=0) is False


def test_other_data_are_refused_with_what_differs() -> None:
    begun = Resumption("1" * 32, 1, {"data": "aa", "vocabulary": "bb"}, 0)
    begun.check({"data": "aa", "vocabulary": "bb"})
    with pytest.raises(DataError, match=r"there differ: data \(then aa, now cc\)\. Give it the same data"):
        begun.check({"data": "cc", "vocabulary": "bb"})
