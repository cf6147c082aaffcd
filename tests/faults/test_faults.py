"""A run that is killed, on a machine that is lost or not, ends as if nothing had happened."""

from __future__ import annotations

import re
import signal
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pods
import pytest
from click.testing import CliRunner
from harness import Account, Outcome, disturb, undisturbed
from pods import AFTERWARDS, Fault
from study import outcome_of, run_ids, write_study

from ehrtrack.cli import cli
from ehrtrack.tracking import names
from ehrtrack.tracking.client.connection import client
from ehrtrack.tracking.recovery.orphans import orphaned_runs

KILL, TERM = signal.SIGKILL, signal.SIGTERM


@pytest.fixture(scope="session", autouse=True)
def imports() -> None:
    """What pods are forked from imports while the server starts."""
    pods.begin_to_import()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("faults")


@pytest.fixture(scope="module")
def config(place: Path) -> Path:
    return write_study(place, "disturbed")


@pytest.fixture(scope="module")
def whole(place: Path, config: Path, mlflow_server: str) -> Outcome:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", mlflow_server)
        return undisturbed(place, mlflow_server, config, "disturbed")


FAULTS = [
    (Fault("step", 2, KILL, 0.005), False),
    (Fault("checkpoint", 1, TERM, 0.001), True),
    (Fault("validation", 1, TERM), True),
    (Fault("drain", 1, TERM), False),
    (Fault("upload", 4, KILL, AFTERWARDS), False),
    (Fault("end", 1, KILL), True),
]
"""Every phase, three times each signal; True where the machine is lost as well. `make faults` has the random ones.

What the training waits for comes first: sending goes on beside it, and on a busy machine may be at its fourth file when
the training is at its end, after which there is no validation left to be killed in.
"""


def test_a_run_disturbed_in_every_phase_is_on_the_server_as_if_it_never_was(
    whole: Outcome, config: Path, http_store: str, tmp_path: Path
) -> None:
    faults, moves = zip(*FAULTS, strict=True)
    account = Account()
    run = disturb(tmp_path, http_store, config, "disturbed", list(faults), account, moves=list(moves))
    account.judge(whole, run)
    assert (account.n_faults, account.n_resumed) == (6, 1)
    assert account.n_new_machines == sum(moves)
    assert run == Outcome(whole.rows | run.rows, whole.params, whole.artifacts, "FINISHED")
    assert run.values == whole.values
    assert account.n_wrong == 0
    # Killed at the end on a machine that is lost: a snapshot is there until the server knows the end.
    log = pods.log_of(tmp_path / "pod-6")
    assert re.search(r"the snapshot of step \d+ was fetched.*continues in epoch", log, re.DOTALL)


def test_a_run_that_began_offline_and_was_killed_goes_on_from_its_own_snapshot(
    whole: Outcome, config: Path, http_store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words, folder = ("finetune", "--config", str(config)), tmp_path / "pod"
    known = run_ids("disturbed")
    fault = Fault("step", 6, KILL)
    assert pods.run(*words, folder=folder, server=http_store, fault=fault, EHRTRACK_OFFLINE="1") == -KILL
    assert run_ids("disturbed") == known
    assert CliRunner().invoke(cli, ["sync", str(folder / ".ehrtrack")]).exit_code == 0
    (run_id,) = [found for found in run_ids("disturbed") if found not in known]
    assert pods.run("resume", run_id, "--force", folder=folder, server=http_store) == 0
    run = outcome_of(run_id)
    assert re.search(r"continues in epoch 2, after [12] of its batches", pods.log_of(folder))
    assert (run.values, run.artifacts, run.status) == (whole.values, whole.artifacts, "FINISHED")


def test_ctrl_c_finishes_the_step_says_how_to_go_on_and_shows_no_traceback(
    whole: Outcome, config: Path, http_store: str, tmp_path: Path
) -> None:
    known, folder = set(run_ids("disturbed")), tmp_path / "pod"
    fault = Fault("step", 4, signal.SIGINT)
    assert pods.run("finetune", "--config", str(config), folder=folder, server=http_store, fault=fault) == 130
    (run_id,) = set(run_ids("disturbed")) - known
    log = pods.log_of(folder)
    assert f"to continue: ehrtrack resume {run_id}\n" in log
    assert re.search(r"told to stop; epoch \d is kept after \d+ batches", log)
    assert "Traceback" not in log
    stopped = client().get_run(run_id)
    assert (stopped.info.status, stopped.data.tags[names.RESUMABLE]) == ("KILLED", "true")
    assert pods.run("resume", run_id, folder=folder, server=http_store) == 0
    run = outcome_of(run_id)
    assert (run.values, run.artifacts, run.status) == (whole.values, whole.artifacts, "FINISHED")


def test_of_two_processes_that_resume_the_same_stale_run_exactly_one_continues(
    whole: Outcome, config: Path, http_store: str, tmp_path: Path
) -> None:
    for other in orphaned_runs(("pretrain", "finetune")):  # left on the server by other tests
        client().delete_run(other.record.run_id)
    known = set(run_ids("disturbed"))
    fault = Fault("upload", 9, KILL, AFTERWARDS)  # what the run consists of, and the first snapshot
    assert pods.run("finetune", "--config", str(config), folder=tmp_path / "pod", server=http_store, fault=fault) < 0
    (run_id,) = set(run_ids("disturbed")) - known
    long_ago = datetime.now(UTC) - timedelta(minutes=11)
    client().set_tag(run_id, names.HEARTBEAT, long_ago.isoformat())
    listed = CliRunner().invoke(cli, ["runs", "--stale"])
    assert f"{run_id}  disturbed  finetune  scratch · tiny  RUNNING, silent 11 minutes ago" in listed.stdout
    folders = [tmp_path / "first", tmp_path / "second"]
    both = [pods.start("resume", "--stale", folder=folder, server=http_store) for folder in folders]
    for process in both:
        process.join(pods.START_SECONDS)
    assert [process.exitcode for process in both] == [0, 0]
    logs = [pods.log_of(folder) for folder in folders]
    assert sorted("finetune done" in log for log in logs) == [False, True]
    assert sorted("no run was resumed" in log for log in logs) == [False, True]
    assert any(re.search(r"the snapshot of step \d+ was fetched from the server", log) for log in logs)
    run = outcome_of(run_id)
    assert (run.values, run.artifacts, run.status) == (whole.values, whole.artifacts, "FINISHED")
    assert client().get_run(run_id).data.tags[names.ATTEMPT] == "1"
    assert run_id not in CliRunner().invoke(cli, ["runs", "--stale"]).stdout
