"""`ehrtrack doctor`: each line is right on a server that works, and says what to change on one that does not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import mlflow
import pytest
import torch
from click.testing import CliRunner
from test_connection import answering

from ehrtrack.cli import cli
from ehrtrack.privacy import Privacy, read_key
from ehrtrack.tracking import doctor
from ehrtrack.tracking.client import diagnosis
from ehrtrack.tracking.client.diagnosis import Finding, check_server
from ehrtrack.tracking.doctor import check_gpu, check_journals, check_subject_key
from ehrtrack.tracking.outbox.journal import LOG


def by_subject(findings: list[Finding]) -> dict[str, str]:
    return {finding.subject: finding.state for finding in findings}


def test_every_line_is_ok_on_a_server_that_works_and_nothing_is_left_there(http_store: str) -> None:
    findings = list(check_server(n_megabytes=2))
    subjects = ("address", "server", "host name", "login", "version", "clock", "round trip", "writing", "files")
    assert [finding.subject for finding in findings] == list(subjects)
    # a busy machine may be slow, which is no more than a warning
    assert {finding.state for finding in findings if finding.subject not in ("round trip", "files")} == {"ok"}
    assert findings[-1].text.startswith("2 MB went up at ")
    client = mlflow.MlflowClient(http_store)
    assert [e.name for e in client.search_experiments() if e.name.startswith("ehrtrack-doctor")] == []
    deleted = client.search_experiments(view_type=mlflow.entities.ViewType.DELETED_ONLY)
    (scratch,) = [e for e in deleted if e.name.startswith("ehrtrack-doctor")]
    (run,) = client.search_runs([scratch.experiment_id], run_view_type=mlflow.entities.ViewType.ALL)
    assert run.info.lifecycle_stage == "deleted"
    assert client.list_artifacts(run.info.run_id) == []


@pytest.mark.parametrize(
    ("status", "text", "subject", "advice"),
    [
        (403, "Invalid Host header - possible DNS rebinding attack detected", "host name", "--allowed-hosts 127.0.0.1"),
        (401, "You are not authenticated", "login", "MLFLOW_TRACKING_PASSWORD"),
        (403, "Permission denied", "login", "permission"),
    ],
)
def test_a_refusal_is_told_where_it_happens_and_ends_the_checks_of_the_server(
    status: int, text: str, subject: str, advice: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with answering(lambda path: (200, "OK") if path == "/health" else (status, text)) as address:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        findings = list(check_server(n_megabytes=1))
    assert findings[-1].state == "fail"
    assert findings[-1].subject == subject
    assert advice in findings[-1].text


@pytest.mark.parametrize(("version", "state"), [(mlflow.__version__, "ok"), ("3.17.99", "warn"), ("2.9.1", "fail")])
def test_versions_that_differ_are_told(version: str, state: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def reply(path: str) -> tuple[int, str]:
        known = {"/health": "OK", "/version": version}
        return (200, known[path]) if path in known else (200, json.dumps({"experiments": []}))

    with answering(reply) as address:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        monkeypatch.setattr(diagnosis, "_check_files", lambda _: iter(()))
        assert by_subject(list(check_server(n_megabytes=1)))["version"] == state


def test_a_name_that_does_not_resolve_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://server.invalid:5000")
    (finding,) = check_server(n_megabytes=1)
    assert (finding.state, finding.subject) == ("fail", "address")
    assert "'server.invalid'" in finding.text


def test_a_password_over_plain_http_is_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "pod")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "secret-of-pod")
    (finding,) = diagnosis._check_certificate("http://203.0.113.9:5000")
    assert finding.state == "warn"
    assert "in the clear" in finding.text
    assert list(diagnosis._check_certificate("http://127.0.0.1:5000")) == []


@pytest.mark.parametrize(
    ("cuda_built_for", "seen", "state", "advice"),
    [
        (None, "", "warn", "trains on the CPU"),
        (None, "NVIDIA H100", "fail", "built without CUDA"),
        ("13.0", "NVIDIA H100", "fail", "newer NVIDIA driver"),
    ],
)
def test_a_gpu_that_torch_cannot_use_fails(
    cuda_built_for: str | None, seen: str, state: str, advice: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "_nvidia_gpus", lambda: seen)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", cuda_built_for)
    finding = check_gpu()
    assert finding.state == state
    assert advice in finding.text


def test_the_key_of_subjects_is_told_by_its_fingerprint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EHRTRACK_SUBJECT_SECRET", raising=False)
    assert check_subject_key(tmp_path).state == "warn"
    assert not list(tmp_path.iterdir())
    key = read_key(tmp_path)
    finding = check_subject_key(tmp_path)
    assert (finding.state, finding.text) == ("ok", f"are logged under hashes, key {Privacy(key).fingerprint}")
    assert key.decode() not in finding.text
    (tmp_path / "subject.key").chmod(0o644)
    assert check_subject_key(tmp_path).state == "fail"


def test_journals_left_behind_are_counted(tmp_path: Path) -> None:
    assert check_journals(tmp_path / "none").state == "ok"
    journal = tmp_path / "journal" / "run1"
    journal.mkdir(parents=True)
    (journal / LOG).touch()
    finding = check_journals(tmp_path)
    assert finding.state == "warn"
    assert finding.text.startswith("1 in ")


@pytest.mark.parametrize(("state", "exit_code"), [("ok", 0), ("warn", 0), ("fail", 1)])
def test_the_exit_code_tells_scripts(state: str, exit_code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    check: Callable[..., list[Finding]] = lambda **_: [Finding(state, "disk", "")]  # type: ignore[arg-type]  # noqa: E731
    monkeypatch.setattr(doctor, "check_all", check)
    assert CliRunner().invoke(cli, ["doctor"]).exit_code == exit_code
