"""Studies of two workers that are killed at known points: table and runs are as if nothing had happened."""

from __future__ import annotations

import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pods
import pytest
from pods import Fault
from studied import SMALL, Studied, Workers, studied, write

from ehrtrack.server import postgres
from ehrtrack.tracking.client.queries import search_runs

N_CELLS = 5


@pytest.fixture(scope="session", autouse=True)
def imports() -> None:
    """What pods are forked from imports while the server starts."""
    pods.begin_to_import()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, mlflow_server: str) -> Studied:
    folder = tmp_path_factory.mktemp("whole")
    file = write(folder, "studied-whole", SMALL)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", mlflow_server)
        pod = folder / "pod"
        assert pods.run("study", "run", str(file), folder=pod, server=mlflow_server, draws=False) == 0, pods.log_of(pod)
        return studied("studied-whole")


@pytest.fixture(scope="module")
def postgres_address() -> Iterator[str]:
    """A database of PostgreSQL, in a folder that its account may pass through."""
    if reason := postgres.why_not():
        pytest.skip(f"PostgreSQL: {reason}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o711)
        cluster = postgres.PostgresCluster(folder / "postgres", "a-password", "another")
        cluster.start()
        try:
            yield cluster.studies_uri
        finally:
            cluster.stop()


def check_same(found: Studied, whole: Studied) -> None:
    """One run a cell, one of the study, none left open, and the same values."""
    assert len(found.finished) == N_CELLS
    assert (found.n_twice, found.n_open) == (0, 0)
    assert {run.parent_run_id for run in found.finished} == {found.parents[0].run_id}
    assert found.differing(whole) == []


def test_two_workers_killed_in_a_step_and_at_an_end_make_the_table_of_an_undisturbed_one(
    whole: Studied, http_store: str, tmp_path: Path
) -> None:
    file = write(tmp_path, "studied-killed", SMALL)
    workers = Workers(file, http_store, [tmp_path / "machine"] * 2)
    workers.start_all([Fault("step", 5, signal.SIGKILL), Fault("end", 1, signal.SIGKILL)])
    workers.join()
    assert workers.n_killed == 2
    check_same(studied("studied-killed"), whole)
    n_runs = len(search_runs("studied-killed", status=None))
    (tmp_path / "machine" / ".ehrtrack" / "sweeps.db").unlink()
    assert pods.run("study", "run", str(file), folder=tmp_path / "machine", server=http_store, draws=False) == 0, (
        workers.log
    )
    assert len(search_runs("studied-killed", status=None)) == n_runs
    assert "this study is done: run" in workers.log


def test_workers_on_three_machines_share_a_queue_in_postgresql_and_one_goes_on_by_its_key(
    whole: Studied, http_store: str, tmp_path: Path, postgres_address: str
) -> None:
    file = write(tmp_path, "studied-postgres", SMALL)
    folders = [tmp_path / name for name in ("a", "b", "c")]
    workers = Workers(file, http_store, folders, {"EHRTRACK_STORAGE": postgres_address})
    first = workers.start(0, Fault("checkpoint", 2, signal.SIGKILL), key="task 1")
    first.join(pods.START_SECONDS)
    assert first.exitcode == -signal.SIGKILL, workers.log
    workers.processes = [workers.start(1, key="task 1"), workers.start(2)]
    workers.join()
    check_same(studied("studied-postgres"), whole)
    assert not list(tmp_path.glob("*/.ehrtrack/sweeps.db"))


def test_ctrl_c_leaves_the_cell_to_the_next_workers_one_of_which_goes_on_with_its_run(
    whole: Studied, http_store: str, tmp_path: Path
) -> None:
    file, folder = write(tmp_path, "studied-ctrl-c", SMALL), tmp_path / "pod"
    words = ("study", "run", str(file))
    fault = Fault("validation", 3, signal.SIGINT)
    assert pods.run(*words, folder=folder, server=http_store, fault=fault, draws=False) == 130, pods.log_of(folder)
    assert "Traceback" not in pods.log_of(folder)
    assert [run.status for run in search_runs("studied-ctrl-c", kinds=["study"], status=None)] == ["KILLED"]
    more = ("--workers", "2")
    assert pods.run(*words, *more, folder=folder, server=http_store, draws=False) == 0, pods.log_of(folder)
    assert "continues run" in pods.log_of(folder)
    assert (folder / ".ehrtrack" / "worker-2.log").is_file()
    assert "exit code" not in pods.log_of(folder)
    check_same(studied("studied-ctrl-c"), whole)
