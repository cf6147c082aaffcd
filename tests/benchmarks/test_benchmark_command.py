"""The command: what it measures, what it keeps, and its exit code. Rows here are made up; processes are real."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.__main__ import main

MEASURED_ONCE = ["fast", "slow", "absent", "elsewhere", "shown"]


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file in which fake rows note that they were measured, and with how many rounds."""
    file = tmp_path / "log"
    file.touch()
    monkeypatch.setenv("FAKE_ROWS_LOG", str(file))
    return file


def run(folder: Path, *words: str) -> int:
    return main([*words, "--out", str(folder / "results")], package="fake_rows")


def kept(folder: Path) -> dict[str, Any]:
    (file,) = (folder / "results").glob("*.json")
    answer: dict[str, Any] = json.loads(file.read_text())
    return answer


def test_check_exits_1_and_names_rows_under_their_floor_absent_or_dead(
    tmp_path: Path, log: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path, "--check") == 1
    lines = capfd.readouterr().out.splitlines()
    assert any(line.endswith("not measured: there is no such device") for line in lines)
    assert lines[lines.index("under their floor:") + 1 :] == [
        "slow: 0.7 s, needed at most 0.5 s",
        "absent: no value (not there yet: the absent part)",
        "dies: no value (its process ended with exit code 7)",
    ]


def test_check_exits_0_when_every_row_asked_for_reaches_its_floor(
    tmp_path: Path, log: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path, "--check", "--only", "fast", "shown") == 0
    assert "every row reaches its floor" in capfd.readouterr().out


def test_without_check_a_row_under_its_floor_is_told_and_the_exit_code_is_0(
    tmp_path: Path, log: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path, "--only", "slow") == 0
    assert "UNDER ITS FLOOR" in capfd.readouterr().out


def test_large_rows_are_measured_when_asked_for(tmp_path: Path, log: Path) -> None:
    run(tmp_path)
    assert [line.split()[0] for line in log.read_text().splitlines()] == MEASURED_ONCE
    run(tmp_path, "--large", "--quick")
    assert log.read_text().splitlines()[-1] == "huge 1"


def test_results_hold_values_details_and_the_machine(tmp_path: Path, log: Path) -> None:
    run(tmp_path, "--only", "fast")
    answer = kept(tmp_path)
    assert answer["rows"]["fast"]["value"] == 3.0
    assert answer["rows"]["fast"]["details"] == {"ours": 1.0, "how": "made up"}
    assert {"cpu", "cores", "isa", "memory_gb", "torch", "torch_build", "commit"} <= set(answer["machine"])
    (table,) = (tmp_path / "results").glob("*.md")
    assert "| fast | more is better | ×3 | ×2 | ×4 | met |" in table.read_text()


def test_resume_measures_only_rows_without_a_value(tmp_path: Path, log: Path) -> None:
    run(tmp_path, "--only", "fast", "absent")
    log.write_text("")
    run(tmp_path, "--resume", "--only", "fast", "absent", "slow")
    assert [line.split()[0] for line in log.read_text().splitlines()] == ["slow", "absent"]
    assert set(kept(tmp_path)["rows"]) == {"fast", "absent", "slow"}


def test_an_unknown_row_is_answered_with_the_nearest(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, "--only", "fasst") == 2
    assert "there is no row 'fasst'; did you mean fast?" in capfd.readouterr().err
