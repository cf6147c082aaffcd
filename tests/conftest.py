"""Tracking stores for tests: a real server over HTTP, and a database of one's own."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from undrawn import undrawn
from xdist.remote import Producer
from xdist.scheduler import LoadFileScheduling

SERVER_START_SECONDS = 300
LONGEST_FIRST = (
    *("tests/faults/", "tests/e2e/", "tests/docs/", "tests/server/", "tests/study/", "tests/recipes/"),
    *("tests/test_extending", "tests/data/test_mutated_imports", "tests/training/", "tests/tracking/"),
)
"""Files that take long go to the workers first, so that none of these begins when the other worker is done."""
IN_ONE_WORKER = ("tests/faults/", "tests/e2e/", "tests/server/")
"""Folders whose files share what is long in the making: studies, the process that pods are forked from, servers."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """As in `LONGEST_FIRST`, and otherwise in the order of the files."""

    def place(item: pytest.Item) -> int:
        return next((n for n, start in enumerate(LONGEST_FIRST) if item.nodeid.startswith(start)), len(LONGEST_FIRST))

    items.sort(key=place)


class ByFile(LoadFileScheduling):
    """All tests of a file in one worker, and all of some folders."""

    def _split_scope(self, nodeid: str) -> str:
        return next((folder for folder in IN_ONE_WORKER if nodeid.startswith(folder)), super()._split_scope(nodeid))


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> ByFile:
    """Also without ``--dist loadfile``; ``--no-loadscope-reorder`` keeps the order of above."""
    return ByFile(config, log)


@pytest.fixture(scope="session", autouse=True)
def _no_folder_of_the_users(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What a user's working folders share is of the tests alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_DATA_HOME", str(tmp_path_factory.mktemp("data-home")))
        patch.delenv("EHRTRACK_HOME", raising=False)
        yield


@pytest.fixture(autouse=True)
def _no_folder_of_other_tests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor do tests share a key of subjects, or journals."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data-home"))


@pytest.fixture(scope="module")
def undrawn_figures() -> Iterator[None]:
    """Figures are kept as files without being drawn, for modules that look at none; see `undrawn`."""
    with undrawn():
        yield


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tracking database with its tables, made once: making it takes 3 s, copying it none."""
    file = tmp_path_factory.mktemp("store") / "mlflow.db"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(file.parent)
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{file}")
        from ehrtrack.tracking.client import connection

        connection.check_reachable()
    return file


@pytest.fixture
def local_store(tmp_path: Path, empty_database: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a tracking database, both new; returns the folder."""
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    monkeypatch.delenv("MLFLOW_RUN_ID", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def mlflow_server_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where `mlflow_server` keeps what was sent to it: ``mlflow.db`` and ``artifacts``."""
    return tmp_path_factory.mktemp("server")


@pytest.fixture(scope="session")
def mlflow_server(mlflow_server_folder: Path) -> Iterator[str]:
    """The address of a real ``mlflow server`` on this machine, over HTTP, with proxied artifacts."""
    with running_server(mlflow_server_folder) as address:
        yield address


@contextmanager
def running_server(folder: Path) -> Iterator[str]:
    """The address of an mlflow server that keeps everything in a folder, until the block ends."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    with (folder / "server.log").open("w") as log:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)),
                *("--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}", "--workers", "1"),
                *("--artifacts-destination", str(folder / "artifacts")),
            ],
            cwd=folder,
            env=environment | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"},
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        _wait_until_healthy(address, process, folder / "server.log")
        yield address
    finally:
        _end_group(process)


@pytest.fixture
def http_store(mlflow_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The server as the tracking store, with a new working folder; returns its address."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_server)
    monkeypatch.delenv("MLFLOW_RUN_ID", raising=False)
    monkeypatch.chdir(tmp_path)
    return mlflow_server


def _wait_until_healthy(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + SERVER_START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(f"{address}/health", timeout=2) as answer:
                if answer.status == 200:
                    return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    pytest.fail(f"mlflow server did not start:\n{log.read_text()[-3000:]}")


def _end_group(process: subprocess.Popen[bytes]) -> None:
    os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(timeout=10)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
