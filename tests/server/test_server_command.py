"""`ehrtrack server`: it starts, is ready when it says so, ends whole, and continues with the same runs."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import sqlite3
import stat
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import psutil
import pytest
import requests
import sqlalchemy
from running_servers import FirstLife, RunningServer, needs_postgres, passable_folder, running

from ehrtrack.errors import ConfigError, TrackingError
from ehrtrack.server import postgres
from ehrtrack.server.command import ServerSettings, _allowed_hosts, serve
from ehrtrack.server.processes import end_orphans, free_port


def experiments(server: RunningServer) -> set[str]:
    url = f"{server.address}/api/2.0/mlflow/experiments/search?max_results=99"
    login = ("admin", server.password("admin"))
    return {row["name"] for row in requests.get(url, auth=login, timeout=60).json()["experiments"]}


def test_sigterm_ends_the_one_process_below_and_files_are_for_their_owner_alone(first_life: FirstLife) -> None:
    assert first_life.n_processes == 1  # mlflow's first process has become the server
    assert first_life.exit_code == 0
    assert first_life.left_running == []
    readable = [file.name for file in first_life.folder.iterdir() if stat.S_IMODE(file.stat().st_mode) & 0o077]
    assert [name for name in readable if name != "lock"] == []
    with closing(sqlite3.connect(first_life.folder / "mlflow.db")) as database:
        assert database.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_the_next_start_goes_on_with_the_same_runs(second_life: RunningServer) -> None:
    assert {"Default", "kept"} <= experiments(second_life)


def test_a_second_server_on_the_same_folder_is_refused(second_life: RunningServer) -> None:
    message = refusal(ServerSettings(second_life.folder, port=free_port(), has_auth=False), TrackingError)
    assert message.startswith("another server uses ")


def test_a_server_whose_first_process_was_killed_goes_on_with_the_next_start() -> None:
    with passable_folder() as folder:
        options = ("--store", "sqlite", "--no-auth")
        with running(folder / "data", *options) as server:
            url = f"{server.address}/api/2.0/mlflow/experiments/create"
            assert requests.post(url, json={"name": "kept"}, timeout=60).status_code == 200
            below = psutil.Process(server.process.pid).children(recursive=True)
            server.process.kill()
            server.process.wait()
        assert [process for process in below if process.is_running()]
        with running(folder / "data", *options, port=server.port) as again:
            assert experiments(again) == {"Default", "kept"}
            assert [process for process in below if process.is_running()] == []
            assert any("left by a server of this folder that was killed" in line for line in again.said)


@needs_postgres
def test_a_cluster_that_was_left_behind_is_ended_and_starts_again() -> None:
    with passable_folder() as folder:
        cluster = postgres.PostgresCluster(folder / "postgres", "a-password", "another")
        cluster.start()
        assert cluster.process is not None
        said: list[str] = []
        end_orphans(folder, said.append)
        assert (len(said), cluster.process.wait(60)) == (1, 0)  # in good order
        assert not (folder / "postgres" / "postmaster.pid").exists()
        end_orphans(folder, said.append)
        assert len(said) == 1
        cluster.start()
        cluster.stop()


def test_a_process_that_only_has_the_id_of_an_orphan_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "processes.json").write_text(json.dumps({str(os.getpid()): 1.0}))
    with subprocess.Popen(["sleep", "60"]) as bystander:
        end_orphans(tmp_path, pytest.fail)
        assert bystander.poll() is None
        bystander.kill()


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not here")
def test_git_adds_nothing_of_a_servers_folder(first_life: FirstLife) -> None:
    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=first_life.folder, capture_output=True, text=True, check=True).stdout

    git("init", "--quiet")
    assert {"secrets.json", "mlflow.db"} <= {file.name for file in first_life.folder.iterdir()}
    git("add", "-A")
    assert git("ls-files") == ""
    shutil.rmtree(first_life.folder / ".git")


@pytest.fixture(scope="module")
def postgres_server() -> Iterator[RunningServer]:
    with passable_folder() as folder, running(folder / "data", "--store", "postgresql", "--no-auth") as server:
        yield server


@needs_postgres
def test_a_pod_is_told_where_the_database_of_studies_is(postgres_server: RunningServer) -> None:
    line = (postgres_server.folder / "studies.env").read_text()
    port = int((postgres_server.folder / "postgres.port").read_text())
    assert line.startswith("EHRTRACK_STORAGE=postgresql+psycopg2://ehrtrack_studies:")
    assert f"@127.0.0.1:{port}/" in line
    assert any(f"-R {port}:127.0.0.1:{port}" in said for said in postgres_server.said)
    assert stat.S_IMODE((postgres_server.folder / "studies.env").stat().st_mode) == 0o600


@needs_postgres
def test_postgresql_server_keeps_runs_in_its_cluster_and_ends_whole(postgres_server: RunningServer) -> None:
    """The last test of this server."""
    processes = psutil.Process(postgres_server.process.pid).children(recursive=True)
    assert experiments(postgres_server) == {"Default"}
    assert postgres_server.end(signal.SIGINT) == 0
    assert [process for process in processes if process.is_running()] == []
    assert not (postgres_server.folder / "mlflow.db").exists()
    assert not (postgres_server.folder / "postgres" / "postmaster.pid").exists()


def test_a_named_address_is_answered_beside_the_own_one(tmp_path: Path) -> None:
    settings = ServerSettings(tmp_path, port=5001, address="https://runs.example.org/", allowed_hosts=("runs.lan:80",))
    own = ["localhost:5001", "127.0.0.1:5001"]
    assert _allowed_hosts(settings) == ["runs.lan:80", "runs.example.org", *own]
    assert settings.public_address == "https://runs.example.org"
    # mlflow's own default is left as it is
    assert _allowed_hosts(ServerSettings(tmp_path)) == []


def refusal(settings: ServerSettings, kind: type[Exception]) -> str:
    with pytest.raises(kind) as raised:
        serve(settings, print)
    return str(raised.value)


def test_a_server_without_login_is_refused_on_a_network(tmp_path: Path) -> None:
    message = refusal(ServerSettings(tmp_path / "data", host="0.0.0.0", has_auth=False), ConfigError)
    assert message.startswith("--no-auth with --host 0.0.0.0")
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("user", ["../pod", "admin", ""])
def test_a_user_name_that_is_no_file_name_is_refused(user: str, tmp_path: Path) -> None:
    assert f"--user {user!r}" in refusal(ServerSettings(tmp_path / "data", users=(user,)), ConfigError)
    assert not (tmp_path / "data").exists()


def test_a_taken_port_is_named(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        message = refusal(ServerSettings(tmp_path / "data", port=port), TrackingError)
    assert message.startswith(f"port {port} on 127.0.0.1 is taken")


def test_a_folder_with_runs_in_the_other_store_is_not_started_empty(tmp_path: Path) -> None:
    (tmp_path / "postgres").mkdir()
    message = refusal(ServerSettings(tmp_path, port=1, store="sqlite", host="127.0.0.1"), ConfigError)
    assert "has its runs in PostgreSQL" in message


@needs_postgres
def test_the_database_of_studies_is_for_its_user_who_sees_nothing_of_the_runs() -> None:
    with passable_folder() as folder:
        cluster = postgres.PostgresCluster(folder / "postgres", "a-password", "another")
        cluster.start()
        try:
            engine = sqlalchemy.create_engine(cluster.studies_uri)
            with engine.begin() as connection:
                connection.execute(sqlalchemy.text("CREATE TABLE cells (key text)"))
            engine.dispose()
            of_runs = sqlalchemy.create_engine(cluster.studies_uri.removesuffix(postgres.STUDIES) + "mlflow")
            with pytest.raises(sqlalchemy.exc.OperationalError, match="permission denied"):
                of_runs.connect()
        finally:
            cluster.stop()
        again = postgres.PostgresCluster(folder / "postgres", "a-password", "a third")
        assert again.port == cluster.port  # which pods have written down
        again.start()
        try:
            engine = sqlalchemy.create_engine(again.studies_uri)
            assert sqlalchemy.inspect(engine).get_table_names() == ["cells"]
            engine.dispose()
        finally:
            again.stop()
