"""Which code ran, and the project file that starts it."""

from __future__ import annotations

import getpass
from pathlib import Path

import pytest
import yaml

from ehrtrack.tracking import provenance

ROOT = Path(__file__).parents[2]


def test_without_git_the_commit_is_unknown_or_the_image_s(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(provenance, "_git", provenance._git.__wrapped__)  # what was asked before is remembered
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("EHRTRACK_GIT_COMMIT", raising=False)
    assert provenance.git_state() == provenance.GitState("unknown", "unknown")
    monkeypatch.setenv("EHRTRACK_GIT_COMMIT", "abc")
    assert provenance.git_state() == provenance.GitState("abc", "unknown")


@pytest.mark.parametrize(("changes", "dirty"), [("", "false"), (" M ehrtrack/cli.py", "true"), (None, "unknown")])
def test_changed_code_is_dirty(changes: str | None, dirty: str, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = {"rev-parse": "c0ffee", "ls-files": "ehrtrack/__init__.py", "status": changes}
    monkeypatch.setattr(provenance, "_git", lambda folder, command, *_: answers[command])
    assert provenance.git_state() == provenance.GitState("c0ffee", dirty)


def test_somebody_else_s_repository_is_not_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = {"rev-parse": "c0ffee", "ls-files": ""}
    monkeypatch.setattr(provenance, "_git", lambda folder, command, *_: answers[command])
    monkeypatch.delenv("EHRTRACK_GIT_COMMIT", raising=False)
    assert provenance.git_state().commit == "unknown"


def test_a_user_id_without_a_name_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    def nameless() -> str:
        raise KeyError("getpwuid(): uid not found: 1234")

    monkeypatch.delenv("MLFLOW_TRACKING_USERNAME", raising=False)
    monkeypatch.setattr(getpass, "getuser", nameless)
    assert provenance.user_name() == "unknown"


def test_entry_points_declare_a_file_alone() -> None:
    """A declared dotted name would fail, and a declared one would be logged twice."""
    points = yaml.safe_load((ROOT / "MLproject").read_text())["entry_points"]
    assert {name: list(point.get("parameters", {})) for name, point in points.items()} == {
        "main": [],
        "pretrain": ["config"],
        "finetune": ["config"],
        "baseline": ["config"],
        "sweep": ["config"],
        "sensitivity": ["config"],
        "negative-controls": ["config"],
        "frontier": ["config"],
        "canary": ["config"],
        "compare": ["config"],
        "study": ["file"],
        "work": ["file"],
    }
