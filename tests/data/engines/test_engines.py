"""Engines: results in order, errors as they are, nothing left running. Every engine is tested on real processes."""

from __future__ import annotations

import math
import os
import signal
import sys
import time
from functools import partial
from pathlib import Path

import psutil
import pytest

from ehrtrack import plugins
from ehrtrack.data.engines import open_engine
from ehrtrack.errors import ConfigError, DataError, EhrtrackError

ENGINES = plugins.names("data.engines")


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    """No cluster of the surroundings is used, and a Ray worker finds the functions of this file."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]))


def process_of(_item: int) -> int:
    return os.getpid()


def wait_for_the_later(item: int, folder: Path) -> int:
    """Item 0 ends only after item 1 has: the order of the results is not that of their ends."""
    if item == 0:
        while not (folder / "1").exists():
            time.sleep(0.01)
    (folder / str(item)).touch()
    return item * 10


def refuse(item: int) -> int:
    raise DataError(f"shard {item} is damaged")


def end_itself(_item: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_an_engine_is_found_by_its_module() -> None:
    assert ENGINES == ["local", "ray"]
    with pytest.raises(ConfigError, match=r"unknown engine 'rya' .did you mean 'ray'"):
        open_engine("rya")
    with pytest.raises(ConfigError, match="workers is 0"):
        open_engine("local", 0)


def test_one_local_worker_is_this_process() -> None:
    with open_engine("local", 1) as engine:
        assert engine.map(process_of, [1, 2]) == [os.getpid()] * 2


@pytest.mark.parametrize("name", ENGINES)
def test_two_workers_give_results_in_order_errors_as_they_are_and_end(name: str, tmp_path: Path) -> None:
    before = {process.pid for process in psutil.Process().children(recursive=True)}
    with open_engine(name, 2) as engine:
        assert engine.map(partial(wait_for_the_later, folder=tmp_path), [0, 1, 2]) == [0, 10, 20]
        assert os.getpid() not in engine.map(process_of, [1, 2])
        assert engine.map(math.sqrt, []) == []
        with pytest.raises(DataError, match=r"^shard 7 is damaged$") as raised:
            engine.map(refuse, [7])
        assert type(raised.value) is DataError
        assert engine.map(math.sqrt, [4.0]) == [2.0]
    left = [process for process in psutil.Process().children(recursive=True) if process.pid not in before]
    gone, alive = psutil.wait_procs([p for p in left if "resource_tracker" not in " ".join(p.cmdline())], timeout=20)
    assert not alive, gone


@pytest.mark.parametrize("name", ENGINES)
def test_an_engine_leaves_the_handling_of_sigterm_as_it_was(name: str) -> None:
    """Ray puts in a handler of its own; a run that is being tracked has to hear of the signal."""
    before = signal.getsignal(signal.SIGTERM)
    with open_engine(name, 2):
        assert signal.getsignal(signal.SIGTERM) is before
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_killed_local_worker_is_told_with_what_to_do() -> None:
    with (
        open_engine("local", 2) as engine,
        pytest.raises(EhrtrackError, match=r"use fewer workers .* [Ss]tart .*again"),
    ):
        engine.map(end_itself, [1, 2])


def test_without_ray_the_error_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"pip install 'ehrtrack\[ray\]'"):
        open_engine("ray", 2)
