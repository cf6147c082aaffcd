"""One folder with sqlite, whose server is started twice: a start takes seconds, so the tests share them."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import psutil
import pytest
import requests
from running_servers import HAS_LOGIN, FirstLife, RunningServer, passable_folder, running


@pytest.fixture(scope="session")
def first_life() -> Iterator[FirstLife]:
    """A server without logins that got an experiment named "kept", and SIGTERM."""
    with passable_folder() as folder:
        with running(folder / "data", "--store", "sqlite", "--no-auth") as server:
            processes = psutil.Process(server.process.pid).children(recursive=True)
            url = f"{server.address}/api/2.0/mlflow/experiments/create"
            assert requests.post(url, json={"name": "kept"}, timeout=60).status_code == 200
            exit_code = server.end(signal.SIGTERM)
            left = [process for process in processes if process.is_running()]
        yield FirstLife(folder / "data", exit_code, len(processes), left)


@pytest.fixture(scope="session")
def second_life(first_life: FirstLife) -> Iterator[RunningServer]:
    """The same folder again, with logins for two users where mlflow's login is installed."""
    options = ("--user", "ada", "--user", "eve") if HAS_LOGIN else ("--no-auth",)
    with running(first_life.folder, *options) as server:
        yield server


@pytest.fixture
def login_server(second_life: RunningServer) -> RunningServer:
    """A server with logins for ada and eve."""
    return second_life
