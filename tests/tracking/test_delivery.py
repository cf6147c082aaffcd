"""Everything is on the server in the end, once: whatever the network, the server and the process did meanwhile."""

from __future__ import annotations

import hashlib
import json
import logging
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from weather import proxy

from ehrtrack.cli import cli
from ehrtrack.errors import TrackingError
from ehrtrack.tracking.client import queries
from ehrtrack.tracking.client.connection import client
from ehrtrack.tracking.client.experiments import every_experiment_id
from ehrtrack.tracking.logger import TrackedRun
from ehrtrack.tracking.outbox import sender
from ehrtrack.tracking.outbox.delivery import Delivery
from ehrtrack.tracking.outbox.journal import LOG, Journal, encoded, read_log
from ehrtrack.tracking.outbox.sync import find_journals, sync
from ehrtrack.tracking.run import tracked_run

NOBODY = "http://127.0.0.1:1"
SEED = 20261122
N_KILLS = 5

TRAINING = """
import os, signal
from ehrtrack.tracking.run import tracked_run
with tracked_run(experiment="study", name="killed", kind="finetune") as run:
    for step in range(1, 101):
        run.log_metrics({"train/loss": 1 / step}, step=step)
    run.log_text("last words", "notes.txt")
    os.kill(os.getpid(), signal.SIGKILL)
"""

ENDING = """
from ehrtrack.tracking.run import tracked_run
with tracked_run(experiment="study", name="ending", kind="finetune") as run:
    print(run.run_key, flush=True)
    input()
    run.log_metrics({"test/c_index": 0.6}, step=0)
    print("ends", flush=True)
"""


@pytest.fixture
def server(http_store: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """A real server, tried once a call, by drainers that do not pause for long."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setattr(sender, "LONGEST_PAUSE_SECONDS", 0.1)
    monkeypatch.setattr(sender, "CLOSING_PAUSE_SECONDS", 0.1)
    return http_store


@pytest.fixture
def offline(server: str, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """No server is there, nor waited for, until the returned function brings it back."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", NOBODY)
    monkeypatch.setenv("EHRTRACK_DRAIN_SECONDS", "0")

    def end() -> None:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")  # as users have it: a busy server may drop a call
        monkeypatch.delenv("EHRTRACK_DRAIN_SECONDS")

    return end


def fill(run: TrackedRun, folder: Path, n_steps: int = 30) -> None:
    """Metrics, tags, params, a dataset and artifacts, in a mixture that takes many calls to send."""
    weights = folder / f"weights-{run.run_key}"
    weights.mkdir(parents=True)
    for step in range(n_steps):
        run.log_metrics({"train/loss": 1 / (step + 1), "val/c_index": 0.5 + step / 100}, step=step)
        if step % 5 == 0:
            run.set_tags({"epoch": str(step)})
            (weights / "best.bin").write_bytes(random.Random(step).randbytes(2000))
            run.log_folder(weights, "checkpoint")
            run.log_params({f"at.{step}": step})
    run.log_dataset("eunomia", fingerprint="0123456789abcdef", source="data/eunomia", context="training")
    run.log_text("résumé", "notes/summary.md")
    run.set_description("# Good")


def runs_on_server(key: str) -> list[str]:
    """Ids of the runs of a key that were not deleted."""
    found = client().search_runs(every_experiment_id(), f"tags.`ehrtrack.run_key` = '{key}'")
    return [run.info.run_id for run in found]


def everything(run_id: str, folder: Path) -> dict[str, Any]:
    """All that the server says of a run."""
    run = client().get_run(run_id)
    info = run.info
    return {
        "info": (info.run_name, info.status, info.start_time, info.end_time, info.experiment_id),
        "params": run.data.params,
        "tags": run.data.tags,
        "metrics": {
            key: sorted((row.timestamp, row.step, row.value) for row in client().get_metric_history(run_id, key))
            for key in run.data.metrics
        },
        "inputs": [(entry.dataset.name, entry.dataset.digest) for entry in run.inputs.dataset_inputs],
        "artifacts": {
            path: hashlib.sha256(queries.download(run_id, path, folder).read_bytes()).hexdigest()
            for path in queries.list_artifacts(run_id)
        },
    }


def said(journal: Path) -> set[tuple[str, int, int, float]]:
    """The metric rows of a journal: key, time, step, value."""
    records = [entry.record for entry in read_log(journal) if entry.record]
    return {
        (key, record["time"], record["step"], value)
        for record in records
        if record["do"] == "metrics"
        for key, value in record["values"].items()
    }


def rows(found: dict[str, Any]) -> list[tuple[str, int, int, float]]:
    return [(key, *row) for key, history in found["metrics"].items() for row in history]


def test_a_run_that_never_saw_a_server_is_there_after_sync(offline: Callable[[], None], tmp_path: Path) -> None:
    with tracked_run(experiment="never", name="sweep", kind="sweep") as parent:
        assert parent.server_run_id is None
        with tracked_run(experiment="never", name="t0", kind="trial", parent_run_id=parent.reference) as child:
            fill(child, tmp_path / "w")
    journals = find_journals(Path(".ehrtrack"))
    assert [journal.name for journal in journals] == [parent.run_key, child.run_key]
    wanted = said(journals[1])
    ends = [read_log(journal)[-1].record for journal in journals]
    offline()
    assert [(run.problem, run.remark, run.account.left) for run in sync(Path(".ehrtrack"))] == [("", "", 0)] * 2
    (parent_id,), (child_id,) = runs_on_server(parent.run_key), runs_on_server(child.run_key)
    found = everything(child_id, tmp_path / "got")
    assert found["tags"]["mlflow.parentRunId"] == parent_id
    assert found["tags"]["epoch"] == "25"
    assert found["params"] == {f"cfg.at.{step}": str(step) for step in range(0, 30, 5)}
    assert len(rows(found)) == len(wanted) == 60
    assert set(rows(found)) == wanted
    assert found["inputs"] == [("eunomia", "0123456789abcdef")]
    last = hashlib.sha256(random.Random(25).randbytes(2000)).hexdigest()
    assert found["artifacts"]["checkpoint/best.bin"] == last
    assert f"{last}  checkpoint/best.bin\n" in queries.download(child_id, "sha256sums.txt", tmp_path / "s").read_text()
    assert [end and end["time"] for end in ends] == [
        everything(run_id, tmp_path / "e")["info"][3] for run_id in (parent_id, child_id)
    ]
    assert not find_journals(Path(".ehrtrack"))  # what is wholly there is not kept


def test_sent_three_times_it_is_there_once(offline: Callable[[], None], tmp_path: Path) -> None:
    with tracked_run(experiment="thrice", name="x", kind="demo") as run:
        fill(run, tmp_path / "w")
    for n in range(3):
        shutil.copytree(Path(".ehrtrack"), tmp_path / f"machine{n}")
    offline()
    states, sent = [], []
    for n in range(3):
        (synced,) = sync(tmp_path / f"machine{n}")
        assert (synced.problem, synced.account.left) == ("", 0)
        (run_id,) = runs_on_server(run.run_key)
        states.append(everything(run_id, tmp_path / f"got{n}"))
        sent.append(synced.account.already_there)
    assert states[1] == states[0]
    assert states[2] == states[0]
    assert sent == [0, 3, 3]  # environment.json, checkpoint/best.bin, notes/summary.md: by their hashes


def test_killed_at_any_request_of_a_drain_nothing_is_lost_or_doubled(
    offline: Callable[[], None], server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tracked_run(experiment="killed drain", name="x", kind="demo") as run:
        fill(run, tmp_path / "w")
    (journal,) = find_journals(Path(".ehrtrack"))
    wanted = said(journal)
    offline()
    draws = random.Random(SEED)
    with proxy(server) as weather:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", weather.address)
        for _ in range(N_KILLS):
            weather.seen.clear()
            kill_at, is_after = draws.randint(3, 14), draws.random() < 0.5
            child = subprocess.Popen(
                [sys.executable, "-m", "ehrtrack", "sync"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
            )

            def kill(number: int, path: str, child: Any = child, at: int = kill_at, is_after: bool = is_after) -> None:
                if number == at:
                    weather.mode = "lossy" if is_after else "silent"  # the server has it, or never gets it
                    child.kill()

            weather.on_request = kill
            child.communicate()
            assert child.returncode == -signal.SIGKILL
            weather.mode = "fair"
        weather.on_request = lambda number, path: None
        (synced,) = sync(Path(".ehrtrack"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    assert (synced.problem, synced.account.left, synced.account.refused) == ("", 0, 0)
    (run_id,) = runs_on_server(run.run_key)
    found = everything(run_id, tmp_path / "got")
    assert len(rows(found)) == len(wanted)
    assert set(rows(found)) == wanted
    assert set(found["artifacts"]) == {
        *("environment.json", "checkpoint/best.bin", "notes/summary.md", "sha256sums.txt")
    }
    assert (found["tags"]["epoch"], found["info"][1]) == ("25", "FINISHED")


@pytest.mark.parametrize("mode", ["503", "500", "lossy"])
def test_a_server_that_fails_in_the_middle_misses_nothing(
    mode: str, server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    has_failed = threading.Event()
    with proxy(server) as weather:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", weather.address)
        with tracked_run(experiment="middle", name=mode, kind="demo") as run:
            run.log_metrics({"a": 1.0}, step=1)
            weather.mode = mode
            weather.on_request = lambda number, path: has_failed.set()
            run.log_metrics({"a": 2.0}, step=2)
            assert has_failed.wait(30)
            run.log_metrics({"a": 3.0}, step=3)
            weather.mode = "fair"
        monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    assert not find_journals(Path(".ehrtrack"))
    assert queries.metric_history(run.server_run_id, "a") == {1: 1.0, 2: 2.0, 3: 3.0}
    assert queries.get_run(run.server_run_id).status == "FINISHED"
    assert runs_on_server(run.run_key) == [run.server_run_id]


def test_a_server_that_stops_and_comes_back_misses_nothing(
    server: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with proxy(server) as weather:
        address = weather.address
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        opened = tracked_run(experiment="stops", name="x", kind="demo")
        run = opened.__enter__()
        run.log_metrics({"a": 1.0}, step=1)
    told = threading.Event()
    monkeypatch.setattr(sender, "_log", logging.getLogger("told"))
    logging.getLogger("told").addFilter(lambda record: told.set() or True)
    run.log_metrics({"a": 2.0}, step=2)
    assert told.wait(30)
    with proxy(server, port=int(address.rsplit(":", 1)[1])):
        opened.__exit__(None, None, None)
        assert queries.metric_history(run.server_run_id, "a") == {1: 1.0, 2: 2.0}
    assert "the run goes on, and keeps what it has to tell in" in caplog.text
    assert "the tracking server takes the run's records again" in caplog.text


def test_sigterm_while_the_last_is_sent_does_not_cut_that_off(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    has_failed = threading.Event()
    with proxy(server) as weather:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", weather.address)
        child = subprocess.Popen(
            [sys.executable, "-c", ENDING], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert child.stdout is not None
        with child, child.stdout as lines:
            key = lines.readline().strip()
            weather.mode = "503"
            weather.on_request = lambda number, path: has_failed.set()
            assert child.stdin is not None
            child.stdin.write("\n")
            child.stdin.flush()
            assert lines.readline() == "ends\n"
            assert has_failed.wait(60)
            child.send_signal(signal.SIGTERM)
            weather.mode = "fair"
        assert child.returncode == 128 + signal.SIGTERM
        assert not find_journals(Path(".ehrtrack"))
        (run_id,) = runs_on_server(key)
        record = queries.get_run(run_id)
    assert (record.status, record.metrics) == ("FINISHED", {"test/c_index": 0.6})


def test_a_refused_login_is_named_and_the_rest_sent_later(
    server: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with proxy(server) as weather:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", weather.address)
        with tracked_run(experiment="login", name="x", kind="demo") as run:
            weather.mode = "403"
            run.log_metrics({"a": 1.0}, step=1)
        n_seen = len(weather.seen)
        assert "set or correct MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD" in caplog.text
        (journal,) = find_journals(Path(".ehrtrack"))
        assert f"Send them with: ehrtrack sync {journal.absolute()}" in caplog.text
        weather.mode = "fair"
        sync(journal)
        assert len(weather.seen) > n_seen
        monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    assert queries.metric_history(run.server_run_id, "a") == {1: 1.0}


def test_logging_never_touches_the_network(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server takes connections and never answers; who connects is counted by thread."""
    connecting: list[int] = []
    connect = socket.socket.connect
    monkeypatch.setattr(
        socket.socket, "connect", lambda self, to: (connecting.append(threading.get_ident()), connect(self, to))[1]
    )
    monkeypatch.setattr(sender, "OPEN_SECONDS", 0.1)
    monkeypatch.setenv("EHRTRACK_DRAIN_SECONDS", "0")
    with proxy(server) as weather:
        weather.mode = "silent"
        monkeypatch.setenv("MLFLOW_TRACKING_URI", weather.address)
        with tracked_run(experiment="silent", name="x", kind="demo") as run:
            for step in range(100):
                run.log_metrics({"a": 1.0}, step=step)
            run.log_text("text", "a.txt")
            assert run.server_run_id is None
        assert len(weather.seen) <= 1
        (journal,) = find_journals(Path(".ehrtrack"))
        assert len(said(journal)) == 100
    assert threading.get_ident() not in connecting


def test_what_the_server_refuses_is_set_aside_and_the_rest_goes_on(
    server: str, caplog: pytest.LogCaptureFixture
) -> None:
    with tracked_run(experiment="refused", name="x", kind="demo") as run:
        run.log_metrics({f"m{n}": float(n) for n in range(20)} | {"bad@name": 1.0}, step=1)
        run._append({"do": "params", "values": {"cfg.bad@name": "1", "cfg.good": "1"}})
        run._append({"do": "sing"})
        run.log_metrics({"after": 1.0}, step=2)
    record = queries.get_run(run.server_run_id)
    assert set(record.metrics) == {f"m{n}" for n in range(20)} | {"after"}
    assert (record.params, record.status) == ({"good": "1"}, "FINISHED")
    assert "is on the server but for 3 of its values, which the server refuses" in caplog.text
    (journal,) = find_journals(Path(".ehrtrack"))
    lines = (journal / "refused.jsonl").read_text().splitlines()
    assert [part in line for part, line in zip(("bad@name", "cfg.bad@name", "sing"), lines, strict=True)] == [True] * 3
    done = CliRunner().invoke(cli, ["sync"])
    assert done.exit_code == 1
    assert "0 sent" in done.stdout
    assert "3 refused, 0 damaged, 0 left" in done.stdout


def test_a_lost_answer_to_the_making_of_a_run_makes_no_second(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """mlflow sends the call again by itself, and so makes two."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    creations: list[int] = []
    with proxy(server) as weather:

        def lose_the_first(number: int, path: str) -> None:
            if path.endswith("runs/create"):
                creations.append(number)
            weather.mode = "lossy" if creations == [number] else "fair"

        weather.on_request = lose_the_first
        monkeypatch.setenv("MLFLOW_TRACKING_URI", weather.address)
        with tracked_run(experiment="twice", name="x", kind="demo") as run:
            run.log_metrics({"a": 1.0}, step=1)
        assert len(creations) == 2
        assert runs_on_server(run.run_key) == [run.server_run_id]
        assert queries.metric_history(run.server_run_id, "a") == {1: 1.0}


def test_a_run_deleted_on_the_server_is_not_taken_for_bad_records(
    server: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with tracked_run(experiment="deleted", name="x", kind="demo") as run:
        client().delete_run(run.server_run_id)
        run.log_metrics({"a": 1.0}, step=1)
    assert f"mlflow runs restore --run-id {run.server_run_id}" in caplog.text
    (journal,) = find_journals(Path(".ehrtrack"))
    assert not (journal / "refused.jsonl").exists()
    (synced,) = sync(journal)
    assert "was deleted on" in synced.problem
    client().restore_run(run.server_run_id)
    sync(journal)
    assert queries.metric_history(run.server_run_id, "a") == {1: 1.0}
    assert not journal.exists()


def test_a_killed_training_loses_nothing_it_said(server: str) -> None:
    child = subprocess.run([sys.executable, "-c", TRAINING], check=False)
    assert child.returncode == -signal.SIGKILL
    (journal,) = find_journals(Path(".ehrtrack"))
    done = CliRunner().invoke(cli, ["sync"])
    assert done.exit_code == 0
    (run_id,) = runs_on_server(journal.name)
    assert queries.metric_history(run_id, "train/loss") == {step: 1 / step for step in range(1, 101)}
    assert "notes.txt" in queries.list_artifacts(run_id)
    assert "ended without reporting it, so the server shows it as RUNNING" in done.stdout


@pytest.mark.parametrize("n_damaged", [0, 3])
def test_a_damaged_record_is_named_and_the_others_sent(
    n_damaged: int, offline: Callable[[], None], caplog: pytest.LogCaptureFixture
) -> None:
    """Entry 0 is the first of the two opening lines; entry 3 is a row of metrics."""
    with tracked_run(experiment="damaged", name=f"d{n_damaged}", kind="demo") as run:
        for step in range(4):
            run.log_metrics({"a": float(step)}, step=step)
    (journal,) = find_journals(Path(".ehrtrack"))
    found = read_log(journal)
    first = next(n for n, entry in enumerate(found) if entry.record and entry.record["do"] == "metrics")
    entry = found[0 if n_damaged == 0 else first]
    data = bytearray((journal / LOG).read_bytes())
    data[entry.start + 40] ^= 1
    (journal / LOG).write_bytes(data)
    offline()
    (synced,) = sync(journal)
    assert (synced.account.lost, synced.problem) == (1, "")
    assert f"is damaged from byte {entry.start} to {entry.end}; at most one record is lost" in caplog.text
    (run_id,) = runs_on_server(run.run_key)
    lost = {0} if n_damaged else set()
    assert set(queries.metric_history(run_id, "a")) == {0, 1, 2, 3} - lost


@pytest.mark.parametrize(
    ("place", "lost"),
    [
        *(("cut in the last record's length", 3), ("cut in its values", 3), ("cut before its newline", None)),
        *(("another length", 1), ("another checksum", 1), ("another value", 1), ("another newline", None)),
    ],
)
def test_a_journal_cut_or_changed_is_sent_but_for_that_record(
    place: str, lost: int | None, server: str, tmp_path: Path
) -> None:
    key = hashlib.md5(place.encode(), usedforsecurity=False).hexdigest()
    journal = Journal(tmp_path / "journal" / key)
    opening = {"do": "open", "key": key, "time": 1, "experiment": "cut", "name": place, "tags": {}}
    journal.append(*[opening | {"parent": None, "joined": None}] * 2)
    for step in range(4):
        journal.append({"do": "metrics", "time": 1 + step, "step": step, "values": {"a": float(step)}})
    journal.close()
    log = journal.folder / LOG
    data = bytearray(log.read_bytes())
    last, second = read_log(journal.folder)[-1], read_log(journal.folder)[3]
    if place.startswith("cut"):
        size = {"length": last.start + 4, "values": last.end - 5, "newline": last.end - 1}[place.split()[-1]]
        del data[size:]
    else:
        starts = {"length": 0, "checksum": 10, "value": 30, "newline": second.end - second.start - 1}
        data[second.start + starts[place.split()[-1]]] ^= 1
    log.write_bytes(data)
    for _ in range(3):
        (synced,) = sync(journal.folder)
        assert (synced.problem, synced.account.left) == ("", 0)
    (run_id,) = runs_on_server(key)
    assert queries.metric_history(run_id, "a") == {step: float(step) for step in range(4) if step != lost}
    assert sorted(queries.get_run(run_id).metrics) == ["a"]


@pytest.mark.parametrize(
    ("record", "progress", "named"),
    [
        ([1, 2], None, "damaged places in"),
        ("words", None, "damaged places in"),
        ({"do": "metrics", "time": 9, "step": 9}, None, "damaged places in"),
        ({"do": "metrics", "time": 9, "step": 9, "values": {"a": None}}, None, "damaged places in"),
        ({"no": "do"}, None, "damaged places in"),
        (None, {"colour": "red"}, "unknown entries, which were not used: colour"),
        (None, {"position": "far"}, "odd values of position: it was not used"),
        (None, {"artifacts": {"a.txt": [1]}}, "odd values of artifacts"),
    ],
)
def test_an_odd_journal_is_named_and_hinders_no_other(
    record: object, progress: dict[str, object] | None, named: str, offline: Callable[[], None]
) -> None:
    """Its checksums are right, so that it was written as it is: by another version, or another program."""
    keys = []
    for number in range(3):
        with tracked_run(experiment="odd", name=f"o{number}", kind="demo") as run:
            run.log_metrics({"a": 1.0}, step=1)
        keys.append(run.run_key)
    odd = Path(".ehrtrack/journal") / keys[1]
    if record is not None:
        payload = json.dumps(record).encode()
        with (odd / LOG).open("ab") as file:
            file.write(b"%08x %08x %s\n" % (len(payload), zlib.crc32(payload), payload))
    if progress is not None:
        (odd / "progress").write_bytes(encoded(progress))
    offline()
    done = CliRunner().invoke(cli, ["sync"])
    assert done.exit_code == 0, done.output
    (line,) = [line for line in done.stdout.splitlines() if named in line]
    assert str(odd) in line
    for key in keys:
        (run_id,) = runs_on_server(key)
        assert queries.metric_history(run_id, "a") == {1: 1.0}
        assert queries.get_run(run_id).status == "FINISHED"


def test_a_journal_that_cannot_be_read_is_named_and_hinders_no_other(offline: Callable[[], None]) -> None:
    with tracked_run(experiment="odd", name="whole", kind="demo") as run:
        run.log_metrics({"a": 1.0}, step=1)
    (Path(".ehrtrack/journal/folder") / LOG).mkdir(parents=True)
    offline()
    done = CliRunner().invoke(cli, ["sync"])
    assert done.exit_code == 1
    assert "the journal .ehrtrack/journal/folder cannot be read" in done.stdout
    (run_id,) = runs_on_server(run.run_key)
    assert queries.metric_history(run_id, "a") == {1: 1.0}


def test_what_was_sent_is_not_missed_when_that_is_no_longer_known(
    offline: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file goes from the journal once it is on the server."""
    with tracked_run(experiment="odd", name="sent", kind="demo") as run:
        run.log_text("notes", "notes.txt")
    (journal,) = find_journals(Path(".ehrtrack"))
    offline()
    with monkeypatch.context() as patch:
        patch.setattr(Delivery, "_send_end", lambda self, records: pytest.fail("cut off"))
        with pytest.raises(pytest.fail.Exception):
            sync(journal)
    (journal / "progress").write_bytes(b"torn")
    (synced,) = sync(journal)
    assert (synced.problem, synced.account.refused) == ("", 0)
    (run_id,) = runs_on_server(run.run_key)
    assert {"notes.txt", "environment.json"} <= set(queries.list_artifacts(run_id))


def test_a_damaged_artifact_is_not_sent(offline: Callable[[], None]) -> None:
    with tracked_run(experiment="damaged", name="artifact", kind="demo") as run:
        run.log_text("weights", "w.txt")
    (journal,) = find_journals(Path(".ehrtrack"))
    (kept,) = journal.glob("artifacts/*/w.txt")
    kept.write_text("weightz")
    offline()
    (synced,) = sync(journal)
    assert (synced.account.refused, synced.account.left) == (1, 0), synced.problem
    (run_id,) = runs_on_server(run.run_key)
    assert "w.txt" not in queries.list_artifacts(run_id)


def test_a_journal_whose_beginning_went_elsewhere_is_not_split(
    offline: Callable[[], None], local_store: Path, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    journal = Journal(Path("j").absolute())
    opening = {"do": "open", "key": "k" * 32, "time": 1, "experiment": "e", "name": "n", "tags": {}}
    journal.append(*[opening | {"parent": None, "joined": None}] * 2)
    Delivery(journal.folder, is_live=True).send()
    journal.append({"do": "end", "status": "FINISHED", "time": 2})
    journal.close()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{local_store / 'mlflow.db'}")
    (synced,) = sync(Path("j"))
    assert f"are on {server}: set MLFLOW_TRACKING_URI to that server" in synced.problem
    assert synced.account.left == 1


def test_sync_leaves_a_run_alone_that_sends_itself(server: str) -> None:
    with tracked_run(experiment="busy", name="x", kind="demo") as run:
        (synced,) = sync(Path(".ehrtrack"))
        assert "is being written or sent by another process" in synced.problem
        run.log_metrics({"a": 1.0}, step=1)
    assert queries.metric_history(run.server_run_id, "a") == {1: 1.0}


def test_sync_without_a_server_says_so(offline: Callable[[], None]) -> None:
    with tracked_run(experiment="s", name="x", kind="demo"):
        pass
    with pytest.raises(TrackingError, match="cannot be reached"):
        sync(Path(".ehrtrack"))


def test_nothing_to_send_is_well(server: str) -> None:
    done = CliRunner().invoke(cli, ["sync"])
    assert (done.exit_code, done.stdout) == (0, "nothing to send in .ehrtrack\n")


def test_of_the_folder_that_all_projects_share_the_others_runs_are_left(
    offline: Callable[[], None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A project's runs must not land on the server of another one; whoever names the folder means it."""
    monkeypatch.setenv("EHRTRACK_HOME", str(tmp_path / "home"))
    with tracked_run(experiment="others", name="x", kind="demo") as others:
        pass
    offline()
    with monkeypatch.context() as patch:
        patch.setenv("EHRTRACK_OFFLINE", "1")
        with tracked_run(experiment="ours", name="y", kind="demo") as ours:
            pass
    done = CliRunner().invoke(cli, ["sync"])
    assert done.exit_code == 0
    assert f"begun for {NOBODY}, so it was left; set MLFLOW_TRACKING_URI to that, or send it to" in done.stdout
    assert [len(runs_on_server(run.run_key)) for run in (others, ours)] == [0, 1]
    (journal,) = find_journals(tmp_path / "home")
    assert CliRunner().invoke(cli, ["sync", str(journal)]).exit_code == 0
    assert len(runs_on_server(others.run_key)) == 1


def test_trials_do_not_wait_for_a_server_that_is_away(offline: Callable[[], None], server: str) -> None:
    """Only the block that holds them does, when it ends; then they are sent with it."""
    with tracked_run(experiment="trials", name="sweep", kind="sweep") as parent:
        children = []
        for number in range(3):
            with tracked_run(
                experiment="trials", name=f"t{number}", kind="trial", parent_run_id=parent.reference
            ) as run:
                run.log_metrics({"a": 1.0}, step=number)
            children.append(run)
        offline()
    assert not find_journals(Path(".ehrtrack"))
    assert {queries.get_run(run.server_run_id).parent_run_id for run in children} == {parent.server_run_id}


@pytest.mark.parametrize("text", ["soon", "-1"])
def test_a_drain_time_that_is_none_is_refused(text: str, server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EHRTRACK_DRAIN_SECONDS", text)
    with pytest.raises(TrackingError, match="needed is a number of seconds, such as 60"):
        tracked_run(experiment="s", name="x", kind="demo").__enter__()


def test_an_offline_switch_that_says_neither_is_refused(local_store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EHRTRACK_OFFLINE", "yes")
    with pytest.raises(TrackingError, match="EHRTRACK_OFFLINE is 'yes'; needed is 1 to keep runs here"):
        tracked_run(experiment="s", name="x", kind="demo").__enter__()


def test_an_offline_run_asks_no_server_and_is_there_after_sync(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with proxy(server) as weather:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", weather.address)
        with monkeypatch.context() as patch:
            patch.setenv("EHRTRACK_OFFLINE", "1")
            with tracked_run(experiment="offline", name="x", kind="demo") as run:
                run.log_metrics({"a": 1.0}, step=1)
        assert weather.seen == []
        (synced,) = sync(Path(".ehrtrack"))
        assert (synced.problem, synced.account.left) == ("", 0)
        (run_id,) = runs_on_server(run.run_key)
        assert queries.metric_history(run_id, "a") == {1: 1.0}
