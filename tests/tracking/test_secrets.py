"""Passwords and tokens that are in the environment, in addresses or in what `mlflow run` tags reach no server."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ehrtrack.tracking.outbox.journal import encoded
from ehrtrack.tracking.outbox.masking import without_secrets
from ehrtrack.tracking.run import tracked_run


@pytest.mark.parametrize(
    ("text", "logged"),
    [
        ("proxy http://joe:pw-18e4@proxy:3128/x failed", "proxy http://***@proxy:3128/x failed"),
        ("clone https://ghp_0a1b2c@github.com/o/r.git", "clone https://***@github.com/o/r.git"),
        ("postgresql+psycopg2://mlflow:p%40ss@db/mlflow", "postgresql+psycopg2://***@db/mlflow"),
        ("s3:/key:secret@bucket/data", "s3:/***@bucket/data"),  # as a Path writes it
        ('{"path": "https://a:b@c"}', '{"path": "https://***@c"}'),
        ("models:/gi_bleed@champion and mail to a@b.org", "models:/gi_bleed@champion and mail to a@b.org"),
        ("http://host:5000/#/runs?user=a@b", "http://host:5000/#/runs?user=a@b"),
    ],
)
def test_logins_in_addresses_are_masked(text: str, logged: str) -> None:
    assert without_secrets(text) == logged


def test_secret_variables_are_masked_also_where_the_address_quotes_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://anna:hunter%402@runs.example.org")
    monkeypatch.setenv("HF_TOKEN", "hf_planted")
    monkeypatch.setenv("EHRTRACK_SUBJECT_SECRET", "0123456789abcdef")
    line = encoded({"do": "tags", "values": {"a": "hunter@2", "b": "hunter%402 hf_planted", "c": "0123456789abcdef"}})
    assert b'{"a": "***", "b": "*** ***", "c": "***"}' in line


@pytest.mark.parametrize(
    "name",
    [
        "DB_PASSWD", "MYSQL_PWD", "GITHUB_PAT", "AZURE_STORAGE_CONNECTION_STRING", "NPM_CONFIG__AUTH", "REGISTRY_AUTH",
        "SSH_PRIVATE_KEY", "AZURE_STORAGE_KEY", "GPG_PASSPHRASE", "SENTRY_DSN", "DB_PASS", "FLASK_SECRET_KEY",
    ],
)  # fmt: skip
def test_a_variable_is_secret_by_its_name(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "planted-Zq81")
    assert without_secrets("failed with planted-Zq81 at the end") == "failed with *** at the end"


@pytest.mark.parametrize("name", ["PWD", "OLDPWD", "SSH_AUTH_SOCK", "MLFLOW_AUTH_CONFIG_PATH", "KEYBOARD", "PATH"])
def test_a_folder_of_work_is_no_secret(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "/home/anna/study")
    assert without_secrets("/home/anna/study/data") == "/home/anna/study/data"


def test_a_secret_is_masked_however_it_was_written(monkeypatch: pytest.MonkeyPatch) -> None:
    key = '-----BEGIN KEY-----\nb3BlbnNzaC1rZXktdjEAAAAA\n"quoted"\\and-é\n-----END KEY-----\n'
    monkeypatch.setenv("SSH_PRIVATE_KEY", key)
    monkeypatch.setenv("DB_PASSWORD", "a b/c&d+é")
    for text in (key, json.dumps({"k": key}), json.dumps(json.dumps([key])), repr(key), json.dumps(key, indent=1)):
        masked = without_secrets(text)
        assert "b3Blb" not in masked
        assert "quoted" not in masked
    assert without_secrets("line 2: b3BlbnNzaC1rZXktdjEAAAAA") == "line 2: ***"
    for written in ("a b/c&d+é", "a%20b%2Fc%26d%2B%C3%A9", "a+b%2Fc%26d%2B%C3%A9", "a b/c&d+\\u00e9"):
        assert without_secrets(f"<{written}>") == "<***>"


def test_a_part_of_a_secret_and_a_longer_one_leave_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_TOKEN", "planted")
    monkeypatch.setenv("B_TOKEN", "planted-and-longer")
    monkeypatch.setenv("STORE_CONNECTION_STRING", "AccountName=ehr;AccountKey=k3yk3yk3y==;Suffix=x")
    monkeypatch.setenv("DATABASE_URL", "mysql://joe:pw-18e4@db/x")
    assert without_secrets("planted-and-longer, planted") == "***, ***"
    assert without_secrets("signed with k3yk3yk3y== by ehr; pw-18e4") == "signed with *** by ehr; ***"


def test_a_token_in_the_git_remote_that_mlflow_run_tagged_is_taken_away(
    local_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ehrtrack.tracking.client.connection import client

    address = "https://x-access-token:ghp_planted41@github.com/o/r.git"
    tags = {"mlflow.source.git.repoURL": address, "mlflow.source.name": "file:///home/anna/ehrtrack"}
    made = client().create_run("0", tags=tags).info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", made)
    with tracked_run(experiment="study", name="run", kind="pretrain") as run:
        pass
    assert run.server_run_id == made
    kept = client().get_run(made).data.tags
    assert kept["mlflow.source.git.repoURL"] == "https://***@github.com/o/r.git"
    assert kept["mlflow.source.name"] == "file:///home/anna/ehrtrack"
