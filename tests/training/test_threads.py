"""Threads: those that other processes leave, and of them one for a batch of cached states and all for one of tokens."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Set
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from simulated import random_store
from threadpoolctl import threadpool_info, threadpool_limits  # type: ignore[import-untyped]

from ehrtrack.data.batch import collate
from ehrtrack.training import threads
from ehrtrack.training.threads import free_threads, threads_for, use_threads

TOKENS = collate(random_store(2, 40, 0), np.arange(2), max_tokens=24)
STATES = replace(TOKENS, hidden=torch.zeros(TOKENS.n_tokens, 4))


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def patch_machine(
    monkeypatch: pytest.MonkeyPatch, *shares: float, usable: Set[int] | None = None, n_threads: int = 2
) -> None:
    """Another machine in place of this one: how busy each logical core is (%), and the threads of torch."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(threads, "_chosen_of", {})
    monkeypatch.setattr(psutil, "cpu_percent", lambda interval, percpu: list(shares))
    usable = set(range(len(shares))) if usable is None else usable
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: usable, raising=False)
    torch.set_num_threads(n_threads)


def patch_nobody_looks(monkeypatch: pytest.MonkeyPatch, *, n_threads: int = 2) -> None:
    """A machine that must not be looked at."""
    patch_machine(monkeypatch, n_threads=n_threads)
    monkeypatch.setattr(psutil, "cpu_percent", lambda **_: pytest.fail("the machine was looked at"))


@pytest.mark.parametrize(("shares", "expected"), [((4.0, 8.0), 2), ((100.0, 2.0), 1), ((55.0, 45.0), 1)])
def test_a_run_takes_the_cores_that_others_leave(
    shares: tuple[float, ...], expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    patch_machine(monkeypatch, *shares)
    assert free_threads() == expected


def test_where_all_cores_are_busy_one_thread_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    patch_machine(monkeypatch, 100.0, 100.0)
    assert free_threads() == 1


def test_a_busy_logical_core_takes_a_physical_one(monkeypatch: pytest.MonkeyPatch) -> None:
    patch_machine(monkeypatch, 100.0, 0.0, 0.0, 0.0)
    assert free_threads() == 1


def test_cores_that_the_process_may_not_use_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    patch_machine(monkeypatch, 100.0, 100.0, 0.0, 0.0, usable={2, 3})
    assert free_threads() == 2


def test_with_omp_num_threads_torchs_own_number_stands_and_nothing_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    patch_nobody_looks(monkeypatch)
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert free_threads() == 2


def test_where_there_is_one_thread_nothing_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    patch_nobody_looks(monkeypatch, n_threads=1)
    assert free_threads() == 1


def test_a_later_run_takes_the_cores_that_have_become_free(monkeypatch: pytest.MonkeyPatch) -> None:
    patch_machine(monkeypatch, 100.0, 0.0)
    torch.set_num_threads(free_threads())
    assert torch.get_num_threads() == 1
    monkeypatch.setattr(psutil, "cpu_percent", lambda interval, percpu: [0.0, 0.0])
    assert free_threads() == 2


@pytest.mark.parametrize(
    ("shares", "n_threads", "told"),
    [
        ((0.0, 2.0), 2, ""),
        ((90.0, 5.0), 2, "1 of 2 threads: other processes use 0.9 cores (runtime.threads=2 takes both)\n"),
        ((90.0, 5.0, 0.0, 0.0), 4, "3 of 4 threads: other processes use 0.9 cores (runtime.threads=4 takes all)\n"),
    ],
)
def test_threads_left_to_others_are_told(
    shares: tuple[float, ...],
    n_threads: int,
    told: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    patch_machine(monkeypatch, *shares, n_threads=n_threads)
    free_threads()
    assert capsys.readouterr().out == told


def blas_threads() -> set[int]:
    """Of the libraries that numpy and scipy multiply matrices with."""
    return {library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"}


@pytest.mark.skipif(not blas_threads(), reason="numpy's BLAS takes no number of threads (Accelerate)")
def test_torch_and_numpys_blas_use_the_same_number_of_threads() -> None:
    with threadpool_limits(2, user_api="blas"):  # puts back what there was
        assert blas_threads() == {2}
        use_threads(1)
        assert (torch.get_num_threads(), blas_threads()) == (1, {1})


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "1000"}),
        ({"OMP_WAIT_POLICY": "PASSIVE"}, {"OMP_WAIT_POLICY": "PASSIVE"}),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, {"OMP_WAIT_POLICY": "ACTIVE"}),
        ({"GOMP_SPINCOUNT": "0"}, {"GOMP_SPINCOUNT": "0"}),
    ],
)
def test_a_command_sets_how_threads_wait_unless_the_user_did(given: dict[str, str], expected: dict[str, str]) -> None:
    program = "from ehrtrack import cli\ncli.cli.add_command(tell)\ncli.main(['tell'])"
    assert policy_told_by(program, given) == expected


def test_importing_the_package_leaves_the_environment_alone() -> None:
    assert policy_told_by("import ehrtrack, ehrtrack.cli\ntell(standalone_mode=False)", {}) == {}


def policy_told_by(program: str, given: dict[str, str]) -> dict[str, str]:
    """How threads wait when a command `tell` runs, in a process of its own."""
    names = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    tell = f"print(json.dumps({{n: os.environ[n] for n in {names} if n in os.environ}}))"
    program = f"import click, json, os\n@click.command()\ndef tell():\n    {tell}\n{program}"
    environment = {name: value for name, value in os.environ.items() if name not in names} | given
    environment["PYTHONPATH"] = str(Path(__file__).parents[2])
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    told: dict[str, str] = json.loads(done.stdout)
    return told


def test_cached_states_are_computed_with_one_thread() -> None:
    with threads_for(STATES):
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 2


def test_tokens_are_computed_with_all_threads() -> None:
    with threads_for(TOKENS):
        assert torch.get_num_threads() == 2


def test_the_threads_come_back_after_an_error() -> None:
    with pytest.raises(RuntimeError, match="out of memory"), threads_for(STATES):
        raise RuntimeError("out of memory")
    assert torch.get_num_threads() == 2
