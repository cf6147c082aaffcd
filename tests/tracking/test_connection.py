"""Addresses that can be used, servers that cannot, and the links to the UI."""

from __future__ import annotations

import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ehrtrack.errors import TrackingError
from ehrtrack.tracking.client import connection

DEAD = "http://127.0.0.1:1"


@contextmanager
def answering(reply: Callable[[str], tuple[int, str]]) -> Iterator[str]:
    """A web server that gives a status and a text to each path."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, text = reply(self.path)
            self.send_response(status)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as web:
        thread = threading.Thread(target=web.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{web.server_port}"
        finally:
            web.shutdown()
            thread.join()


def test_a_real_server_and_a_real_database_are_reachable(
    http_store: str, local_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    connection.check_reachable()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", http_store)
    connection.check_reachable()


def test_a_server_that_is_down_is_named_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", DEAD)
    with pytest.raises(TrackingError) as raised:
        connection.check_reachable()
    message = str(raised.value)
    assert "http://127.0.0.1:1 cannot be reached: [Errno 111] Connection refused" in message
    assert "unset MLFLOW_TRACKING_URI to keep runs in a local file" in message


def test_a_host_that_does_not_exist_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://no-such-host.invalid:5000")
    with pytest.raises(TrackingError, match=r"no-such-host\.invalid:5000 cannot be reached"):
        connection.check_reachable()


def test_a_call_to_a_server_that_died_gives_up_before_four_minutes() -> None:
    """Counted in tries, not seconds: mlflow waits 2, 4, 8 … s between them, and its own default is seven."""
    count = "import ehrtrack.tracking, mlflow.environment_variables as e; print("
    count += "e.MLFLOW_HTTP_REQUEST_MAX_RETRIES.get(), e.MLFLOW_HTTP_REQUEST_TIMEOUT.get())"
    clean = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    child = subprocess.run([sys.executable, "-c", count], env=clean, capture_output=True, text=True, check=True)
    assert child.stdout.split() == ["3", "20"]


def test_what_the_user_sets_is_kept() -> None:
    show = "import ehrtrack.tracking, os; print(os.environ['MLFLOW_HTTP_REQUEST_MAX_RETRIES'])"
    child = subprocess.run(
        [sys.executable, "-c", show],
        env=os.environ | {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "9"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert child.stdout.split() == ["9"]


def test_the_check_needs_no_mlflow_import() -> None:
    code = (
        "import os, sys; os.environ['MLFLOW_TRACKING_URI'] = 'http://127.0.0.1:1'\n"
        "from ehrtrack.tracking.client import connection\n"
        "try: connection.check_reachable()\n"
        "except Exception as error: print(type(error).__name__, 'mlflow' in sys.modules)\n"
    )
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert child.stdout.split() == ["ServerUnavailable", "False"]


@pytest.mark.parametrize(
    ("status", "text", "message"),
    [
        (401, "", "wants a login .401.; set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"),
        (403, "Invalid Host header - possible DNS rebinding", "start it with --allowed-hosts 127.0.0.1:"),
        (403, "Permission denied", "refuses this user .403."),
        (404, "", "answered 404 to a list of experiments, not as an MLflow server does"),
    ],
)
def test_a_server_that_refuses_says_what_it_wants(
    status: int, text: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with answering(lambda path: (200, "OK") if path == "/health" else (status, text)) as address:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        with pytest.raises(TrackingError, match=message):
            connection.check_reachable()


def test_another_web_server_is_not_taken_for_mlflow(monkeypatch: pytest.MonkeyPatch) -> None:
    with answering(lambda path: (200, "<html>Welcome</html>")) as address:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        with pytest.raises(TrackingError, match="answered 200 to GET /health, not as an MLflow server does"):
            connection.check_reachable()


def test_a_silent_server_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()

    def wait(path: str) -> tuple[int, str]:
        release.wait(30)
        return 200, "OK"

    monkeypatch.setattr(connection, "CHECK_TIMEOUT_SECONDS", 0.2)
    with answering(wait) as address:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        with pytest.raises(TrackingError, match=r"did not answer within 0\.2 s"):
            connection.check_reachable()
        release.set()


def test_a_login_is_sent_and_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://anna:hunter2@127.0.0.1:1")
    with pytest.raises(TrackingError) as raised:
        connection.check_reachable()
    assert "hunter2" not in str(raised.value)
    assert "http://127.0.0.1:1 cannot be reached" in str(raised.value)
    assert "hunter2" not in str(connection.ui_command("1"))


@pytest.mark.parametrize("uri", ["file:///data/mlruns", "./mlruns", "databricks", "ftp://host/x"])
def test_stores_that_mlflow_no_longer_writes_are_refused(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(TrackingError, match=r"needed is an http\(s\):// server or a sqlite:///FILE\.db store"):
        connection.tracking_uri()


def test_no_address_means_a_database_in_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    assert connection.tracking_uri() == f"sqlite:///{tmp_path}/mlflow.db"
    ui = connection.ui_command("3")
    assert ui.command == "mlflow ui --backend-store-uri sqlite:///mlflow.db --port 5000"
    assert (
        ui.url == "http://127.0.0.1:5000/#/experiments/3/runs?workflowType=machine_learning&viewStateShareKey=ehrtrack"
    )


def test_a_database_elsewhere_is_named_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:////data/team runs/mlflow.db")
    monkeypatch.chdir(tmp_path)
    ui = connection.ui_command("3", run_id="abc")
    assert ui.command == "mlflow ui --backend-store-uri 'sqlite:////data/team runs/mlflow.db' --port 5000"
    assert ui.url.endswith("/#/experiments/3/runs/abc?workflowType=machine_learning")


def test_a_server_has_its_ui_already(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://mlflow.example.org/")
    ui = connection.ui_command(model="gi bleed")
    assert ui == connection.UiAddress(
        "https://mlflow.example.org/#/models/gi%20bleed?workflowType=machine_learning", None
    )
    assert str(ui) == f"open {ui.url}"


def test_a_database_in_no_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/missing/mlflow.db")
    with pytest.raises(TrackingError, match="missing is not a writable folder"):
        connection.check_reachable()


def test_a_file_that_is_no_database_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mlflow.db").write_text(json.dumps({"not": "a database"}) * 100)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    with pytest.raises(TrackingError, match="could not open the tracking store"):
        connection.check_reachable()


OPEN_AT_A_WORD = """
import sys
import mlflow.store.tracking.sqlalchemy_store
from ehrtrack.tracking.client import connection
print("ready", flush=True)
sys.stdin.readline()
connection.client().search_experiments(max_results=1)
"""


def test_runs_that_begin_at_once_on_a_new_database_all_open_it(tmp_path: Path) -> None:
    environment = os.environ | {"MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db"}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    command = [sys.executable, "-c", OPEN_AT_A_WORD]
    runs = [subprocess.Popen(command, env=environment, text=True, **pipes) for _ in range(2)]  # type: ignore[call-overload]
    for run in runs:
        assert run.stdout.readline() == "ready\n"
    for run in runs:
        run.stdin.write("\n")
        run.stdin.flush()
    errors = [run.communicate()[1] for run in runs]
    assert [run.returncode for run in runs] == [0, 0], errors


def test_importing_the_package_does_not_import_mlflow() -> None:
    code = "import sys, ehrtrack.tracking, ehrtrack.tracking.client.connection; print('mlflow' in sys.modules)"
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert child.stdout.strip() == "False"
