"""Several workers of a study on one machine: what each is told, and that none is left."""

from __future__ import annotations

import os
import sys
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest

from ehrtrack.recipes import _workers
from ehrtrack.recipes._workers import helped, sharing_cores

WAITS = "import os, signal, sys; open(os.environ['TOLD'], 'w').write(' '.join(sys.argv[1:])); signal.pause()"
FAILS = "import sys; sys.exit('no such database')"


def instead(monkeypatch: pytest.MonkeyPatch, program: str) -> None:
    """Have workers run another program than `ehrtrack work`."""
    monkeypatch.setattr(_workers, "COMMAND", (sys.executable, "-c", program))


def test_each_has_its_share_of_the_cores_unless_a_number_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_workers, "n_cores", lambda: 5)
    assert sharing_cores(2, [("runtime.device", "cpu")]) == [("runtime.threads", "2"), ("runtime.device", "cpu")]
    assert sharing_cores(9, []) == [("runtime.threads", "1")]
    assert sharing_cores(2, [("runtime.threads", "4")]) == [("runtime.threads", "4")]
    assert sharing_cores(1, []) == []


def test_a_worker_gets_study_and_settings_and_is_ended_with_the_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    instead(monkeypatch, WAITS)
    os.mkfifo(tmp_path / "told")
    monkeypatch.setenv("TOLD", str(tmp_path / "told"))
    before = set(psutil.Process().children())
    with ExitStack() as inside:
        inside.enter_context(helped(1, Path("s.toml"), [("runtime.threads", "1")], tmp_path))
        assert (tmp_path / "told").read_text() == "s.toml --runtime.threads 1"
        (worker,) = set(psutil.Process().children()) - before
        assert worker.is_running()
    assert not worker.is_running()
    assert "exit code" not in capsys.readouterr().out


def test_a_worker_that_failed_is_told_with_where_it_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    instead(monkeypatch, FAILS)
    before = set(psutil.Process().children())
    with helped(1, Path("s.toml"), [], tmp_path):
        (worker,) = set(psutil.Process().children()) - before
        os.waitid(os.P_PID, worker.pid, os.WEXITED | os.WNOWAIT)
    log = tmp_path / "worker-2.log"
    assert f"a worker had ended with exit code 1: the end of {log} says why" in capsys.readouterr().out
    assert log.read_text() == "no such database\n"
