"""A run has one process at a time: one that lives is left alone, and one that was overtaken notices and ends."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pods
import psutil
import pytest
from click.testing import CliRunner
from harness import Outcome, undisturbed
from pods import AFTERWARDS, Clock, Fault
from study import Quiet, outcome_of, run_ids, write_study

from ehrtrack.cli import cli
from ehrtrack.errors import TrackingError
from ehrtrack.tracking import names
from ehrtrack.tracking.client import queries
from ehrtrack.tracking.client.connection import client
from ehrtrack.tracking.recovery.orphans import check_silent, orphaned_runs

SERVER_SECONDS = {"EHRTRACK_HEARTBEAT_SECONDS": "1"}
"""A second is what the clock of a server counts in."""


@pytest.fixture(scope="session", autouse=True)
def imports() -> None:
    """What pods are forked from imports while the server starts."""
    pods.begin_to_import()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("leases")


@pytest.fixture(scope="module")
def config(place: Path) -> Path:
    return write_study(place, "leases")


@pytest.fixture(scope="module")
def whole(place: Path, config: Path, mlflow_server: str) -> Outcome:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", mlflow_server)
        return undisturbed(place, mlflow_server, config, "leases")


class PausedBeforeTakingUp:
    """A pod that stands still when all is ready for it to go on with a run."""

    def plant(self) -> None:
        """Have this process stop itself there."""
        from ehrtrack.recipes import resume

        claim_run = resume.claim_run

        def paused(*arguments: Any) -> Any:
            signal.raise_signal(signal.SIGSTOP)  # to this thread, which gets no further
            return claim_run(*arguments)

        resume.claim_run = paused


def is_gone(run_id: str) -> bool:
    try:
        check_silent(queries.get_run(run_id))
    except TrackingError:
        return False
    return True


def n_epochs(run_id: str) -> int:
    return len(queries.metric_history(run_id, "train/loss"))


def new_run(study: str, known: set[str]) -> Callable[[], bool]:
    return lambda: bool(set(run_ids(study)) - known)


@pytest.mark.parametrize("point", ["step", "drain"])
def test_a_run_that_was_paused_and_overtaken_notices_at_its_next_write_and_ends(
    point: str, whole: Outcome, config: Path, http_store: str, tmp_path: Path
) -> None:
    """It stands still between two steps, or right where it was about to send an epoch."""
    known = set(run_ids("leases"))
    call, is_ready = (5, Quiet()) if point == "step" else (2, None)
    fault = Fault(point, call, signal.SIGSTOP, is_ready=is_ready)
    words, folder = ("finetune", "--config", str(config)), tmp_path / "paused"
    paused = pods.start(*words, folder=folder, server=http_store, fault=fault, **SERVER_SECONDS)
    process = psutil.Process(paused.pid)
    pods.wait_until(lambda: process.status() == psutil.STATUS_STOPPED, folder=folder)
    (run_id,) = set(run_ids("leases")) - known
    pods.wait_until(lambda: is_gone(run_id), folder=folder)
    assert pods.run("resume", run_id, folder=tmp_path / "other", server=http_store, **SERVER_SECONDS) == 0
    process.send_signal(signal.SIGCONT)
    paused.join(pods.START_SECONDS)
    log = pods.log_of(folder)
    assert paused.exitcode == 2, log
    assert f"ehrtrack: run {run_id} was claimed by another process" in log
    run = outcome_of(run_id)
    assert {row: values for row, values in run.rows.items() if len(values) > 1} == {}
    assert (run.values, run.artifacts, run.status) == (whole.values, whole.artifacts, "FINISHED")
    assert not list((folder / ".ehrtrack" / "journal").iterdir())
    assert not list((folder / ".ehrtrack" / "runs").iterdir())
    if point == "step":  # where it stood in a call, the little that is left to train may end before that is answered
        assert "finetune done" not in log


def test_a_live_run_on_a_machine_whose_clock_is_20_minutes_behind_is_left_alone_and_ends_when_taken_by_force(
    http_store: str, tmp_path: Path
) -> None:
    config = write_study(tmp_path, "clocks", epochs=1000)
    words, folder = ("finetune", "--config", str(config)), tmp_path / "behind"
    behind = pods.start(*words, folder=folder, server=http_store, fault=Clock(-20), **SERVER_SECONDS)
    pods.wait_until(lambda: bool(run_ids("clocks")) and n_epochs(run_ids("clocks")[0]) >= 2, folder=folder)
    (run_id,) = run_ids("clocks")
    last = queries.get_run(run_id).tags[names.HEARTBEAT]
    pods.wait_until(lambda: queries.get_run(run_id).tags[names.HEARTBEAT] != last, folder=folder)
    assert run_id not in [found.record.run_id for found in orphaned_runs()]
    other = tmp_path / "other"
    assert pods.run("resume", run_id, folder=other, server=http_store, **SERVER_SECONDS) == 2
    assert "gave a sign of life" in pods.log_of(other)
    forced = pods.start("resume", run_id, "--force", folder=other, server=http_store, **SERVER_SECONDS)
    behind.join(pods.START_SECONDS)
    assert behind.exitcode == 2, pods.log_of(folder)
    assert f"ehrtrack: run {run_id} was claimed by another process" in pods.log_of(folder)
    n_then = n_epochs(run_id)
    pods.wait_until(lambda: n_epochs(run_id) > n_then + 1, folder=other)
    forced.terminate()
    forced.join(pods.START_SECONDS)
    assert forced.exitcode == 128 + signal.SIGTERM
    history = client().get_metric_history(run_id, "train/loss")
    assert max(Counter(row.step for row in history).values()) == 1
    assert queries.get_run(run_id).tags[names.RESUMABLE] == "true"
    client().delete_run(run_id)  # nobody is to go on with it


@pytest.mark.skipif(shutil.which("unshare") is None, reason="unshare (util-linux) makes namespaces of processes")
def test_of_two_containers_with_one_host_name_exactly_one_goes_on(
    whole: Outcome, config: Path, http_store: str, tmp_path: Path
) -> None:
    """One has numbers of processes of its own, in which those of the other do not exist."""
    known = set(run_ids("leases"))
    fault = Fault("upload", 9, signal.SIGKILL, AFTERWARDS)
    assert pods.run("finetune", "--config", str(config), folder=tmp_path / "pod", server=http_store, fault=fault) < 0
    (run_id,) = set(run_ids("leases")) - known
    client().set_tag(run_id, names.HEARTBEAT, "2026-01-01T00:00:00+00:00")
    alone = ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--mount-proc"]
    if subprocess.run([*alone, "true"], check=False, capture_output=True).returncode:
        pytest.skip("this system lets no namespaces be made")
    first, second = tmp_path / "first", tmp_path / "second"
    waiting = pods.start("resume", run_id, folder=first, server=http_store, fault=PausedBeforeTakingUp())
    process = psutil.Process(waiting.pid)
    pods.wait_until(lambda: process.status() == psutil.STATUS_STOPPED, folder=first)
    environment = {"EHRTRACK_SUBJECT_SECRET": pods.SUBJECT_SECRET, "OMP_NUM_THREADS": "1"}
    second.mkdir()
    command = [*alone, sys.executable, "-m", "ehrtrack", "resume", run_id]
    done = subprocess.run(
        command, cwd=second, env=os.environ | environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    process.send_signal(signal.SIGCONT)
    waiting.join(pods.START_SECONDS)
    assert waiting.exitcode == 2, pods.log_of(first)
    assert f"run {run_id} was claimed by another process just now" in pods.log_of(first)
    run = outcome_of(run_id)
    assert {row: values for row, values in run.rows.items() if len(values) > 1} == {}
    assert (run.values, run.artifacts, run.status) == (whole.values, whole.artifacts, "FINISHED")


def test_what_a_killed_sweep_leaves_is_listed_with_what_to_do_and_closed(http_store: str, tmp_path: Path) -> None:
    config = write_study(tmp_path, "killed sweep")
    config.write_text(
        config.read_text() + '\n[search]\nn_trials = 2\n[search.parameters]\n"train.lr" = {choices = [0.001]}\n'
    )
    fault = Fault("step", 2, signal.SIGKILL)
    folder = tmp_path / "pod"
    code = pods.run("sweep", "--config", str(config), folder=folder, server=http_store, fault=fault, **SERVER_SECONDS)
    assert code == -signal.SIGKILL, pods.log_of(folder)
    left = {run.kind: run for run in queries.search_runs("killed sweep", status="RUNNING")}
    assert set(left) == {"sweep", "trial"}
    for run in left.values():
        pods.wait_until(lambda run_id=run.run_id: is_gone(run_id), folder=folder)  # type: ignore[misc]
    listed = CliRunner().invoke(cli, ["runs", "--stale", "--minutes", "0"]).stdout
    assert "start the sweep again: it keeps the trials that are done" in listed
    assert all(run.run_id in listed for run in left.values())
    CliRunner().invoke(cli, ["runs", "--stale", "--minutes", "0", "--close"])
    assert {run.status for run in queries.search_runs("killed sweep", status=None)} == {"KILLED"}
