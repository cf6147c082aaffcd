"""Logins on a real server: who is let in, whose runs they can change, and what many wrong passwords do."""

from __future__ import annotations

import base64
import json
import socket
import sqlite3
import stat
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import psutil
import pytest
import requests
from running_servers import RunningServer, needs_login
from werkzeug.security import check_password_hash, generate_password_hash

from ehrtrack.server.logins import load_secrets, make_hashes_quick, write_private

API = "/api/2.0/mlflow"
N_WRONG_LOGINS = 20


def call(server: RunningServer, user: str, method: str, path: str, **content: object) -> requests.Response:
    return requests.request(
        method,
        server.address + path,
        auth=(user, server.password(user)),
        timeout=60,
        **content,  # type: ignore[arg-type]
    )


def adas_run(server: RunningServer, name: str) -> tuple[str, str]:
    experiment = call(server, "ada", "POST", f"{API}/experiments/create", json={"name": name}).json()["experiment_id"]
    made = call(server, "ada", "POST", f"{API}/runs/create", json={"experiment_id": experiment, "start_time": 1})
    return experiment, made.json()["run"]["info"]["run_id"]


@needs_login
def test_a_wrong_password_and_no_password_are_refused(login_server: RunningServer) -> None:
    url = f"{login_server.address}{API}/experiments/search?max_results=1"
    assert requests.get(url, auth=("ada", "not-adas-password"), timeout=60).status_code == 401
    assert requests.get(url, timeout=60).status_code == 401
    assert requests.get(url, auth=("ada", login_server.password("ada")), timeout=60).status_code == 200


@needs_login
def test_another_users_run_can_be_read_but_not_written_or_deleted(login_server: RunningServer) -> None:
    experiment, run = adas_run(login_server, "adas-study")
    row = {"key": "loss", "value": 1.0, "timestamp": 1, "step": 0}
    file = f"/api/2.0/mlflow-artifacts/artifacts/{experiment}/{run}/artifacts/model.bin"
    assert call(login_server, "ada", "PUT", file, data=b"weights").status_code == 200
    writes = [
        ("POST", f"{API}/runs/log-batch", {"json": {"run_id": run, "metrics": [row]}}),
        ("POST", f"{API}/runs/log-metric", {"json": {"run_id": run, **row}}),
        ("POST", f"{API}/runs/log-parameter", {"json": {"run_id": run, "key": "a", "value": "b"}}),
        ("POST", f"{API}/runs/set-tag", {"json": {"run_id": run, "key": "a", "value": "b"}}),
        ("POST", f"{API}/runs/update", {"json": {"run_id": run, "status": "FAILED"}}),
        ("POST", f"{API}/runs/delete", {"json": {"run_id": run}}),
        ("POST", f"{API}/runs/create", {"json": {"experiment_id": experiment, "start_time": 1}}),
        ("POST", f"{API}/experiments/update", {"json": {"experiment_id": experiment, "new_name": "eves"}}),
        ("POST", f"{API}/experiments/delete", {"json": {"experiment_id": experiment}}),
        ("PUT", file, {"data": b"other weights"}),
        ("DELETE", file, {}),
    ]
    let_through = [
        f"{method} {path}: {answer.status_code}"
        for method, path, content in writes
        if (answer := call(login_server, "eve", method, path, **content)).status_code != 403
    ]
    assert let_through == []
    kept = call(login_server, "eve", "GET", f"{API}/runs/get?run_id={run}").json()["run"]
    assert (kept["info"]["status"], kept["info"]["lifecycle_stage"]) == ("RUNNING", "active")
    assert "metrics" not in kept["data"]
    assert call(login_server, "eve", "GET", file).content == b"weights"


@needs_login
@pytest.mark.parametrize("key", ["artifact_location", "artifactLocation"])
@pytest.mark.parametrize("place", ["file://{folder}/artifacts/1", "s3://bucket/of-the-server", "{folder}/artifacts"])
def test_nobody_says_where_an_experiment_keeps_its_files(login_server: RunningServer, key: str, place: str) -> None:
    """At another user's run it could be written to, by a bucket's name with the server's keys."""
    location = place.format(folder=login_server.folder)
    for user in ("eve", "admin"):
        for api in (API, "/ajax-api/2.0/mlflow"):
            body = {"name": f"eves-{place[:5]}-{key}", key: location}
            answer = call(login_server, user, "POST", f"{api}/experiments/create", json=body)
            assert (answer.status_code, answer.json()["error_code"]) == (400, "INVALID_PARAMETER_VALUE")
            assert "this server alone says where files lie" in answer.json()["message"]
    names = call(login_server, "eve", "GET", f"{API}/experiments/search?max_results=100").json()["experiments"]
    assert [row["name"] for row in names if row["name"].startswith("eves-")] == []


@needs_login
def test_a_model_version_is_made_from_what_the_server_keeps_alone(login_server: RunningServer) -> None:
    experiment, run = adas_run(login_server, "adas-model")
    call(login_server, "ada", "POST", f"{API}/registered-models/create", json={"name": "adas-model"})
    sources = {
        f"runs:/{run}/model": 200,
        f"mlflow-artifacts:/{experiment}/{run}/artifacts/model": 200,
        "s3://bucket/of-the-server": 400,
        "gs://bucket": 400,
        f"file://{login_server.folder}/artifacts": 400,
    }
    made = {
        source: call(
            *(login_server, "ada", "POST", f"{API}/model-versions/create"),
            json={"name": "adas-model", "source": source, "run_id": run},
        ).status_code
        for source in sources
    }
    assert made == sources


def answer_to_headers(server: RunningServer, path: str, *lines: str) -> int:
    """The status that the server answers before it gets one byte of the body."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as connection:
        connection.sendall("\r\n".join([f"{path} HTTP/1.1", "Host: localhost", *lines, "", ""]).encode())
        return int(connection.recv(12).split()[1])


@needs_login
def test_a_body_without_a_login_is_refused_at_its_headers(login_server: RunningServer) -> None:
    file = "PUT /api/2.0/mlflow-artifacts/artifacts/1/model.bin"
    wrong = f"Authorization: Basic {base64.b64encode(b'ada:not-adas-password').decode()}"
    for path in (f"POST {API}/runs/log-batch", "POST /graphql", "POST /health", "POST /v1/traces", file):
        for length in ("Content-Length: 1500000000", "Transfer-Encoding: chunked"):
            assert answer_to_headers(login_server, path, length) == 401
            assert answer_to_headers(login_server, path, length, wrong) == 401
    password = login_server.password("ada")
    with_login = f"Authorization: Basic {base64.b64encode(f'ada:{password}'.encode()).decode()}"
    call_path = f"POST {API}/runs/log-batch"
    assert answer_to_headers(login_server, call_path, "Content-Length: 1500000000", with_login) == 413
    assert answer_to_headers(login_server, call_path, "Transfer-Encoding: chunked", with_login) == 411


@needs_login
def test_memory_stays_flat_when_a_body_comes_without_a_login(login_server: RunningServer) -> None:
    (server,) = psutil.Process(login_server.process.pid).children()
    before = server.memory_info().rss
    answer = requests.post(f"{login_server.address}{API}/runs/log-batch", data=bytes(200 * 2**20), timeout=60)
    assert answer.status_code == 401
    assert server.memory_info().rss - before < 50 * 2**20


@needs_login
def test_many_wrong_logins_leave_the_server_standing(login_server: RunningServer) -> None:
    url = f"{login_server.address}{API}/experiments/search?max_results=1"

    def wrong(i: int) -> int:
        return requests.get(url, auth=("ada", f"wrong-password-{i}"), timeout=120).status_code

    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(wrong, range(N_WRONG_LOGINS)))
    assert answers == [401] * N_WRONG_LOGINS
    assert requests.get(url, auth=("ada", login_server.password("ada")), timeout=60).status_code == 200


@needs_login
def test_no_password_is_printed_logged_or_readable_by_others(login_server: RunningServer) -> None:
    passwords = [login_server.password(user) for user in ("ada", "eve", "admin")]
    told = "\n".join(login_server.said) + (login_server.folder / "server.log").read_text()
    assert [password for password in passwords if password in told] == []
    for name in ("secrets.json", "ada.env", "basic_auth.ini", "mlflow.db", "auth.db"):
        assert stat.S_IMODE((login_server.folder / name).stat().st_mode) == 0o600
    assert (login_server.folder / "ada.env").read_text().splitlines() == [
        f"MLFLOW_TRACKING_URI={login_server.address}",
        "MLFLOW_TRACKING_USERNAME=ada",
        f"MLFLOW_TRACKING_PASSWORD={passwords[0]}",
    ]


@needs_login
def test_six_runs_at_the_same_time_lose_no_call(login_server: RunningServer) -> None:
    n_runs, n_batches, n_metrics = 6, 5, 100

    def write(i: int) -> list[int]:
        _, run = adas_run(login_server, f"load-{i}")
        codes = []
        for step in range(n_batches):
            rows = [{"key": f"m{k}", "value": 0.5, "timestamp": 1, "step": step} for k in range(n_metrics)]
            batch = {"run_id": run, "metrics": rows}
            codes.append(call(login_server, "ada", "POST", f"{API}/runs/log-batch", json=batch).status_code)
        history = call(login_server, "ada", "GET", f"{API}/metrics/get-history?run_id={run}&metric_key=m7").json()
        assert [row["step"] for row in history["metrics"]] == list(range(n_batches))
        return codes

    with ThreadPoolExecutor(n_runs) as pool:
        assert list(pool.map(write, range(n_runs))) == [[200] * n_batches] * n_runs


@needs_login
def test_a_wrong_login_costs_the_server_no_slow_hash(login_server: RunningServer) -> None:
    """Six runs log in anew when the cache forgets them: by scrypt that is a second, and 32 MB each."""
    with closing(sqlite3.connect(login_server.folder / "auth.db")) as database:
        kept = dict(database.execute("SELECT username, password_hash FROM users"))
    assert set(kept) == {"admin", "ada", "eve"}
    assert [user for user, found in kept.items() if not found.startswith("pbkdf2:sha256:1000$")] == []


def test_a_password_that_somebody_changed_keeps_its_own_hash(tmp_path: Path) -> None:
    changed, kept = generate_password_hash("a person's"), generate_password_hash("made-here")
    with closing(sqlite3.connect(tmp_path / "auth.db")) as database:
        database.execute("CREATE TABLE users (username TEXT, password_hash TEXT)")
        rows = [("ada", kept), ("eve", changed), ("other", changed)]
        database.executemany("INSERT INTO users VALUES (?, ?)", rows)
        database.commit()
        make_hashes_quick(f"sqlite:///{tmp_path / 'auth.db'}", {"ada": "made-here", "eve": "eves-first"})
        after = dict(database.execute("SELECT username, password_hash FROM users"))
    assert (after["eve"], after["other"]) == (changed, changed)
    assert after["ada"].startswith("pbkdf2:sha256:1000$")
    assert check_password_hash(after["ada"], "made-here")
    assert not check_password_hash(after["ada"], "made-there")


def test_secrets_are_made_once_and_users_are_added(tmp_path: Path) -> None:
    first = load_secrets(tmp_path, ("ada",))
    second = load_secrets(tmp_path, ("ada", "eve"))
    assert second.admin_password == first.admin_password
    assert second.users["ada"] == first.users["ada"]
    assert set(second.users) == {"ada", "eve"}
    # mlflow wants 12 characters
    assert min(len(password) for password in (first.admin_password, *second.users.values())) >= 12
    assert stat.S_IMODE((tmp_path / "secrets.json").stat().st_mode) == 0o600


def test_a_file_left_half_written_is_replaced(tmp_path: Path) -> None:
    (tmp_path / ".secrets.json.left.json").write_text("{")
    write_private(tmp_path / "secrets.json", json.dumps({}))
    assert [file.name for file in tmp_path.iterdir()] == ["secrets.json"]
