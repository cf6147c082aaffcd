"""Passwords and tokens that are in the environment, in addresses or in what `mlflow run` tags reach no server."""

from __future__ import annotations

from pathlib import Path

import pytest

from ehrtrack.tracking.journal import encoded, without_secrets
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


def test_a_token_in_the_git_remote_that_mlflow_run_tagged_is_taken_away(
    local_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ehrtrack.tracking.server import client

    address = "https://x-access-token:ghp_planted41@github.com/o/r.git"
    tags = {"mlflow.source.git.repoURL": address, "mlflow.source.name": "file:///home/anna/ehrtrack"}
    made = client().create_run("0", tags=tags).info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", made)
    with tracked_run(experiment="study", name="run", kind="pretrain") as run:
        pass
    assert run.run_id == made
    kept = client().get_run(made).data.tags
    assert kept["mlflow.source.git.repoURL"] == "https://***@github.com/o/r.git"
    assert kept["mlflow.source.name"] == "file:///home/anna/ehrtrack"
