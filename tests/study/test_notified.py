"""The end or a failure of a study, told by a real HTTP request to a service that listens on this machine."""

from __future__ import annotations

import json
import logging
import re
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from pretended import Recipes

from ehrtrack.cli import main
from ehrtrack.errors import DataError, TrainingError
from ehrtrack.recipes._notified import end_is_told, message_of_failure
from ehrtrack.recipes.study import study
from ehrtrack.recipes.work import work
from ehrtrack.tracking.outbox.masking import without_secrets

pytestmark = [
    pytest.mark.usefixtures("undrawn_figures"),
    pytest.mark.filterwarnings("ignore:'imghdr' is deprecated:DeprecationWarning"),  # apprise imports it
]

WriteStudy = Callable[..., Path]
STUDY = """
question = "Is an elastic net enough?"
baseline = "baseline.toml"
reference = { baseline = "cox" }
[matrix]
baseline = ["cox", "lasso"]
"""
SECRET = "hush-hush-7f3a"


@dataclass
class Service:
    """A service that listens on this machine.

    Attributes
    ----------
    told : what was posted to it, as path and JSON
    status : that it answers with
    """

    address: str = ""
    told: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    status: int = 200

    @property
    def only(self) -> dict[str, Any]:
        """The one message that there was."""
        ((path, message),) = self.told
        assert path == f"/{SECRET}"
        return message


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    """A service that EHRTRACK_NOTIFY names, by an address with a secret."""
    found = Service()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            found.told.append((self.path, json.loads(self.rfile.read(int(self.headers["Content-Length"])))))
            self.send_response(found.status)
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        found.address = f"json://127.0.0.1:{server.server_port}/{SECRET}"
        monkeypatch.setenv("EHRTRACK_NOTIFY", found.address)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield found
        server.shutdown()
        thread.join()


def test_the_end_of_a_study_is_told_once_with_question_answer_counts_and_report(
    local_store: Path, recipes: Recipes, write_study: WriteStudy, service: Service, capfd: pytest.CaptureFixture[str]
) -> None:
    results = study(write_study(STUDY))
    assert results is not None
    message = service.only
    assert (message["title"], message["type"]) == ("sim: the study is done", "success")
    question, best, counts, report = message["message"].split("\n\n")
    assert question == "Is an elastic net enough?"
    assert best.startswith("Best by validation is cox, with a test C-index of .700")
    assert results.findings().answer.startswith(best)
    assert counts == "2 cells are done; 0.0 hours of runs."
    assert report.startswith(f"Report: {local_store / 'reports' / 'sim' / 'index.html'} on ")
    assert not any(SECRET in text for text in capfd.readouterr())
    kept = [file for file in local_store.rglob("*") if file.is_file()]
    assert local_store / "mlflow.db" in kept
    assert [file for file in kept if SECRET.encode() in file.read_bytes()] == []


def test_cells_without_a_result_are_counted_and_what_the_others_came_to_is_told(
    local_store: Path, recipes: Recipes, write_study: WriteStudy, service: Service
) -> None:
    recipes.trouble["lasso"] = [DataError("no events"), DataError("no events")]
    with pytest.raises(TrainingError, match="1 of 2 cells have no result"):
        study(write_study(STUDY))
    message = service.only
    assert (message["title"], message["type"]) == ("sim: not all of the study is done", "failure")
    assert "Best by validation is cox" in message["message"]
    assert "\n\n1 cell is done, 1 has no result; 0.0 hours of runs.\n\n" in message["message"]


@pytest.mark.parametrize("is_there", [True, False])
def test_a_message_that_is_not_taken_is_told_without_the_address_and_changes_nothing(
    local_store: Path,
    recipes: Recipes,
    write_study: WriteStudy,
    service: Service,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    is_there: bool,
) -> None:
    service.status = 503
    if not is_there:
        with socket.socket() as bound:  # to a port at which nobody listens
            bound.bind(("127.0.0.1", 0))
            monkeypatch.setenv("EHRTRACK_NOTIFY", f"json://127.0.0.1:{bound.getsockname()[1]}/{SECRET}")
    with caplog.at_level(logging.DEBUG, "apprise"):
        assert study(write_study(STUDY)) is not None
    told = capsys.readouterr()
    reason = "error=503." if is_there else "sending JSON notification to ***."
    assert re.search(rf"could not be sent by JSON \(EHRTRACK_NOTIFY\): .*{re.escape(reason)}$", told.err, re.MULTILINE)
    assert SECRET not in told.err + told.out + caplog.text


def test_a_worker_that_fails_says_so_and_one_that_is_done_or_told_to_stop_does_not(
    local_store: Path, write_study: WriteStudy, service: Service
) -> None:
    file = write_study(STUDY)
    assert end_is_told(file, lambda: None) is None
    with pytest.raises(KeyboardInterrupt):
        end_is_told(file, interrupted)
    assert service.told == []
    (file.parent / "baseline.toml").unlink()
    with pytest.raises(Exception, match=r"baseline\.toml"):
        work(file, key="")
    message = service.only
    assert (message["title"], message["type"]) == (f"{file}: a worker failed", "failure")
    assert "ConfigError: no config file" in message["message"]


def interrupted() -> None:
    raise KeyboardInterrupt


def test_a_failure_is_told_without_subjects_and_dates() -> None:
    told = message_of_failure(Path("study.toml"), DataError("subject 4711 was born 1950-03-04")).body
    assert "DataError: subject (not logged) was born (date not logged)" in told


@pytest.mark.parametrize(
    ("address", "message"),
    [
        (f"jsn://127.0.0.1/{SECRET}", "holds no address of a service that can be told (it begins with jsn://)"),
        (SECRET, "holds no address of a service that can be told; needed is one address as apprise"),
    ],
)
def test_what_is_no_address_is_refused_before_anything_starts(
    local_store: Path,
    write_study: WriteStudy,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    address: str,
    message: str,
) -> None:
    monkeypatch.setenv("EHRTRACK_NOTIFY", address)
    check_refused(write_study(STUDY), capfd, message)


def test_without_the_package_it_is_refused_before_anything_starts(
    local_store: Path, write_study: WriteStudy, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("EHRTRACK_NOTIFY", f"json://127.0.0.1/{SECRET}")
    monkeypatch.setitem(sys.modules, "apprise", None)
    check_refused(write_study(STUDY), capfd, 'pip install "ehrtrack[notify]"')


def check_refused(file: Path, capfd: pytest.CaptureFixture[str], message: str) -> None:
    for words in (["study", "run", str(file)], ["work", str(file)]):
        with pytest.raises(SystemExit) as end:
            main(words)
        assert end.value.code == 2
        told = capfd.readouterr()
        assert message in told.err
        assert SECRET not in told.err + told.out
        assert not (file.parent / ".ehrtrack").exists()


def test_the_address_is_masked_wherever_it_may_be_logged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EHRTRACK_NOTIFY", f"slack://{SECRET}/b/c")
    assert without_secrets(f"told slack://{SECRET}/b/c of it") == "told *** of it"
