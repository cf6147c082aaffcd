"""Runs whose process is gone: found by their heartbeat, and taken up by one process alone."""

from __future__ import annotations

import multiprocessing
import os
import socket
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from ehrtrack.tracking import names, queries
from ehrtrack.tracking.run import tracked_run
from ehrtrack.tracking.server import client
from ehrtrack.tracking.stale import TakenUp, claimed, give_back, stale_runs, take_up

ROUNDS = 4


def run_with(status: str, *, silent_minutes: float, is_resumable: bool = False) -> str:
    with tracked_run(experiment="s", name="x", kind="finetune") as run:
        pass
    moment = datetime.now(UTC) - timedelta(minutes=silent_minutes)
    client().set_tag(run.run_id, names.HEARTBEAT, moment.isoformat())
    client().set_tag(run.run_id, names.RESUMABLE, str(is_resumable).lower())
    client().update_run(run.run_id, status=status)
    return run.run_id


def race(server: str, run_id: str, attempt: int, start: Any, won: Any) -> None:
    """Take a run up as soon as everybody is there."""
    os.environ["MLFLOW_TRACKING_URI"] = server
    record = queries.get_run(run_id)
    start.wait(120)
    try:
        with claimed(record) as number:
            take_up(run_id, number)
            won.put((attempt, number))
    except TakenUp:
        won.put((attempt, 0))


def test_silent_runs_and_those_told_to_stop_are_stale(local_store: object) -> None:
    silent = run_with("RUNNING", silent_minutes=11)
    run_with("RUNNING", silent_minutes=9)
    stopped = run_with("KILLED", silent_minutes=1, is_resumable=True)
    run_with("KILLED", silent_minutes=99)
    run_with("FINISHED", silent_minutes=99)
    found = stale_runs(["finetune"], minutes=10)
    assert {run.record.run_id for run in found} == {silent, stopped}
    assert "RUNNING, silent 11 minutes ago" in found[0].to_text()


def test_of_two_processes_exactly_one_takes_a_run_up(http_store: str) -> None:
    run_id = run_with("RUNNING", silent_minutes=60)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["ehrtrack.tracking.stale"])
    for number in range(1, ROUNDS + 1):
        start, won = context.Barrier(2), context.Queue()
        processes = [context.Process(target=race, args=(http_store, run_id, number, start, won)) for _ in range(2)]
        for process in processes:
            process.start()
        results = sorted(won.get(timeout=120) for _ in processes)
        for process in processes:
            process.join()
        assert results == [(number, 0), (number, number)]
    assert queries.get_run(run_id).tags[names.ATTEMPT] == str(ROUNDS)
    assert not [m.name for m in client().search_registered_models() if "claim" in m.name]


def test_one_who_comes_after_the_claim_is_gone_sees_that_the_run_was_taken_up(local_store: object) -> None:
    record = queries.get_run(run_with("RUNNING", silent_minutes=60))
    with claimed(record) as attempt:
        take_up(record.run_id, attempt)
    with pytest.raises(TakenUp, match="just now"), claimed(record):
        pass


def test_a_claim_whose_process_died_does_not_hold_the_run_for_ever(
    local_store: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = queries.get_run(run_with("RUNNING", silent_minutes=60))
    with monkeypatch.context() as patch:
        patch.setattr("ehrtrack.tracking.stale._delete_claim", lambda name: None)
        dead = f"{socket.gethostname()} {2**22 + 1} 1.0"  # a number that no process has
        patch.setattr("ehrtrack.tracking.stale._this_process", lambda: dead)
        with claimed(record):
            pass
    with claimed(record) as attempt:
        assert attempt == 1
    assert client().search_registered_models() == []


def test_a_run_that_is_given_back_is_stale_again(local_store: object) -> None:
    record = queries.get_run(run_with("RUNNING", silent_minutes=60))
    take_up(record.run_id, 1)
    assert stale_runs(["finetune"], minutes=10) == []
    client().set_tag(record.run_id, names.RESUMABLE, "true")
    give_back(record)
    assert [run.record.status for run in stale_runs(["finetune"], minutes=10)] == ["KILLED"]
