"""`ehrtrack ui`: the right page, on the store in use."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import requests

from ehrtrack.errors import TrackingError
from ehrtrack.server import ui
from ehrtrack.tracking.run import tracked_run


def made(study: str) -> str:
    with tracked_run(experiment=study, name="a", kind="finetune") as run:
        pass
    assert run.experiment_id is not None
    return run.experiment_id


def told(**page: str) -> str:
    lines: list[str] = []
    ui.show_ui(**page, opens=False, tell=lines.append)  # type: ignore[arg-type]
    (line,) = lines
    return line


def test_on_a_server_the_address_of_the_page_is_told(http_store: str) -> None:
    first, last = made("shown first"), made("shown last")
    query = "?workflowType=machine_learning"
    assert told(study="shown first") == f"{http_store}/#/experiments/{first}/runs{query}&viewStateShareKey=ehrtrack"
    assert told() == f"{http_store}/#/experiments/{last}/runs{query}&viewStateShareKey=ehrtrack"
    assert told(model="gi_bleed") == f"{http_store}/#/models/gi_bleed{query}"
    with tracked_run(experiment="shown first", name="b", kind="finetune") as run:
        pass
    assert run.server_run_id is not None
    assert told(run_id=run.server_run_id) == f"{http_store}/#/experiments/{first}/runs/{run.server_run_id}{query}"


def test_a_study_in_another_experiment_is_found(http_store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "my own")
    assert f"/experiments/{made('in my own')}/runs?" in told(study="in my own")


def test_a_study_without_a_run_is_told(local_store: Path) -> None:
    with pytest.raises(TrackingError, match=r"there is no run of study 'nobody' on sqlite:.*mlflow\.db; is MLFLOW_"):
        ui.show_ui(study="nobody", opens=False, tell=print)


def test_a_browser_is_opened_unless_it_is_not_wanted(http_store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made("opened")
    opened: list[str] = []
    monkeypatch.setattr(ui.webbrowser, "open", lambda url: opened.append(url) is not None)
    lines: list[str] = []
    ui.show_ui(study="opened", opens=True, tell=lines.append)
    assert opened == lines[:1]
    assert lines[1:] == ["no browser could be opened here; open the address in yours"]


def test_over_a_database_file_a_server_is_started_and_ended(local_store: Path) -> None:
    experiment_id = made("local")
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "ehrtrack", "ui", "local", "--no-browser"],
        cwd=local_store,
        env=os.environ | {"PYTHONPATH": str(Path(ui.__file__).parents[2])},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        said = [process.stdout.readline(), process.stdout.readline()]
        found = re.fullmatch(r"(http://127\.0\.0\.1:\d+)/#/experiments/(\d+)/runs\?\S+\n", said[1])
        assert found, said
        assert found[2] == experiment_id
        asked = requests.get(f"{found[1]}/api/2.0/mlflow/experiments/get?experiment_id={experiment_id}", timeout=60)
        assert asked.json()["experiment"]["name"] == "local"
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 143
        with pytest.raises(requests.ConnectionError):
            requests.get(found[1], timeout=5)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_a_port_that_is_taken_is_told(local_store: Path) -> None:
    made("local")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(TrackingError, match=rf"port {port} of 127\.0\.0\.1 is taken; name another with --port"):
            ui.show_ui(study="local", port=port, opens=False, tell=lambda line: None)


def test_a_server_that_does_not_start_says_why(local_store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made("local")
    monkeypatch.setattr(ui.sys, "executable", "/bin/false")
    with pytest.raises(TrackingError, match=r"^false ended with exit code 1: the end of .*server\.log:$"):
        ui.show_ui(study="local", opens=False, tell=lambda line: None)
