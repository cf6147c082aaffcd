"""Runs whose process is gone: found by their heartbeat, claimed by one process alone, or closed."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from click.testing import CliRunner

from ehrtrack.cli import cli
from ehrtrack.tracking import names
from ehrtrack.tracking.client import queries
from ehrtrack.tracking.client.connection import client
from ehrtrack.tracking.client.queries import attempt_of
from ehrtrack.tracking.recovery import orphans
from ehrtrack.tracking.recovery.lease import (
    Heartbeat,
    RunClaimLost,
    RunClaimRefused,
    mlflow_run_has_heartbeat,
)
from ehrtrack.tracking.recovery.orphans import (
    LOST_BEATS,
    StillAlive,
    check_silent,
    claim_run,
    close_orphans,
    orphaned_runs,
    release_run,
)
from ehrtrack.tracking.run import tracked_run

ROUNDS = 4
WAIT_SECONDS = 60
EVERY_KIND = (
    "pretrain",
    "finetune",
    "sweep",
    "trial",
    "baseline",
    "compare",
    "sensitivity",
    "negative-controls",
    "demo",
    "landmarks",
)


def run_with(status: str, *, silent_minutes: float, is_resumable: bool = False, kind: str = "finetune") -> str:
    with tracked_run(experiment="s", name="x", kind=kind) as run:
        pass
    moment = datetime.now(UTC) - timedelta(minutes=silent_minutes)
    client().set_tag(run.server_run_id, names.HEARTBEAT, moment.isoformat())
    client().set_tag(run.server_run_id, names.RESUMABLE, str(is_resumable).lower())
    client().update_run(run.server_run_id, status=status)
    return run.server_run_id


def made_by_mlflow_run(experiment_id: str, *, hours_ago: float, **tags: str) -> str:
    """A run as `mlflow run` leaves it when its command never began."""
    start = int((time.time() - 3600 * hours_ago) * 1000)
    tags = {"mlflow.project.entryPoint": "finetune"} | tags
    return str(client().create_run(experiment_id, start_time=start, tags=tags).info.run_id)


def wait_until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while not is_so():
        assert time.monotonic() < deadline, "it never became so"
        time.sleep(0.05)


def race(server: str, run_id: str, number: int, start: Any, won: Any) -> None:
    """Claim a run as soon as everybody is there."""
    os.environ["MLFLOW_TRACKING_URI"] = server
    record = queries.get_run(run_id)
    start.wait(120)
    try:
        won.put(claim_run(record))
    except RunClaimRefused:
        won.put(0)


def test_silent_runs_and_those_told_to_stop_are_stale(local_store: object) -> None:
    silent = run_with("RUNNING", silent_minutes=11)
    run_with("RUNNING", silent_minutes=9)
    stopped = run_with("KILLED", silent_minutes=1, is_resumable=True)
    run_with("KILLED", silent_minutes=99)
    run_with("FINISHED", silent_minutes=99)
    found = orphaned_runs(["finetune"], minutes=10)
    assert {run.record.run_id for run in found} == {silent, stopped}
    assert f"RUNNING, silent 11 minutes ago: ehrtrack resume {silent}" in found[0].to_text()


def test_runs_of_every_kind_are_listed_with_what_to_do_and_those_that_cannot_go_on_are_closed(
    local_store: object,
) -> None:
    runs = {kind: run_with("RUNNING", silent_minutes=60, kind=kind) for kind in EVERY_KIND}
    living = run_with("RUNNING", silent_minutes=1, kind="sweep")
    listed = CliRunner().invoke(cli, ["runs", "--stale"])
    lines = {line.split()[0]: line for line in listed.stdout.splitlines()}
    assert set(lines) == set(runs.values())
    for kind in ("pretrain", "finetune"):
        assert lines[runs[kind]].endswith(f": ehrtrack resume {runs[kind]}")
    assert lines[runs["sweep"]].endswith(": start the sweep again: it keeps the trials that are done")
    assert lines[runs["compare"]].endswith("silent 60 minutes ago: start it again")
    closed = CliRunner().invoke(cli, ["runs", "--stale", "--close"])
    assert f"{len(runs) - 2} closed" in closed.stdout
    for kind, run_id in runs.items():
        record = queries.get_run(run_id)
        is_closed = kind not in names.RESUMABLE_KINDS
        assert record.status == ("KILLED" if is_closed else "RUNNING")
        assert ("no sign of life for 60 minutes" in record.tags.get(names.CLOSED, "")) == is_closed
    assert queries.get_run(living).status == "RUNNING"
    assert {run.record.kind for run in orphaned_runs()} == set(names.RESUMABLE_KINDS)


def test_runs_that_mlflow_run_left_before_they_began_are_listed_and_closed_after_a_day(local_store: object) -> None:
    study = queries.get_run(run_with("FINISHED", silent_minutes=1)).experiment_id
    young, old = (made_by_mlflow_run(study, hours_ago=hours) for hours in (1, 25))
    made_by_mlflow_run(client().create_experiment("of somebody else"), hours_ago=25)
    client().create_run(study, start_time=0)  # of another program
    found = orphaned_runs()
    assert {run.record.run_id for run in found} == {young, old}
    assert "not begun" in found[0].to_text()
    assert [run.record.run_id for run in close_orphans(found)] == [old]
    assert [run.record.run_id for run in orphaned_runs()] == [young]


def test_a_run_of_mlflow_run_has_a_heartbeat_while_its_data_are_prepared(
    local_store: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EHRTRACK_HEARTBEAT_SECONDS", "0.05")
    run_id = made_by_mlflow_run("0", hours_ago=1)
    others = made_by_mlflow_run("0", hours_ago=1, **{names.KIND: "finetune"})
    for joined in (others, run_id):
        monkeypatch.setenv("MLFLOW_RUN_ID", joined)
        with mlflow_run_has_heartbeat():
            if joined == run_id:
                wait_until(lambda: names.HEARTBEAT in queries.get_run(run_id).tags)
    assert names.HEARTBEAT not in queries.get_run(others).tags
    assert orphaned_runs(minutes=1) == [] or all(run.record.run_id != run_id for run in orphaned_runs(minutes=1))


def test_a_run_that_was_closed_and_lives_shows_itself_as_running_again(
    local_store: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = run_with("RUNNING", silent_minutes=60, kind="sweep")
    assert len(close_orphans(orphaned_runs())) == 1
    monkeypatch.setenv("EHRTRACK_HEARTBEAT_SECONDS", "0.05")
    heartbeat = Heartbeat(lambda: run_id)  # its network is back
    wait_until(lambda: names.CLOSED not in queries.get_run(run_id).tags)
    heartbeat.stop()
    assert queries.get_run(run_id).status == "RUNNING"
    assert orphaned_runs() == []


def test_a_run_that_gives_a_sign_of_life_while_it_is_closed_stays(local_store: object) -> None:
    run_id = run_with("RUNNING", silent_minutes=60, kind="sweep")
    found = orphaned_runs()
    client().set_tag(run_id, names.HEARTBEAT, datetime.now(UTC).isoformat())
    assert close_orphans(found) == []
    assert queries.get_run(run_id).status == "RUNNING"


def test_a_heartbeat_is_by_the_servers_clock_and_so_is_its_age(
    http_store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine whose clock is 20 minutes behind begins a run, and one whose clock is right looks at it."""

    class Behind(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return datetime.now(tz) - timedelta(minutes=20)

    run_id = ""
    with monkeypatch.context() as patch:
        patch.setattr("ehrtrack.tracking.recovery.lease.datetime", Behind)
        patch.setattr("ehrtrack.tracking.recovery.orphans.datetime", Behind)
        with tracked_run(experiment="clocks", name="x", kind="finetune") as run:
            run_id = run.server_run_id
            seen_from_there = [found.record.run_id for found in orphaned_runs(minutes=1)]
    client().update_run(run_id, status="RUNNING")
    assert run_id not in seen_from_there
    assert run_id not in [found.record.run_id for found in orphaned_runs(minutes=10)]
    with pytest.raises(StillAlive, match=r"gave a sign of life \d+ s ago\. If its machine is gone, try again in"):
        check_silent(queries.get_run(run_id))


@pytest.mark.parametrize("has_server_time", [True, False])
def test_without_a_common_clock_a_run_is_watched(
    has_server_time: bool, local_store: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Heartbeats of earlier versions are of their machine's clock; and a server may tell no time."""
    run_id = run_with("RUNNING", silent_minutes=60)
    if has_server_time:
        client().delete_tag(run_id, names.HEARTBEAT_SECONDS)
        monkeypatch.setattr(orphans, "DEFAULT_HEARTBEAT_SECONDS", 0.05)
    else:
        client().set_tag(run_id, names.HEARTBEAT_SECONDS, "0.05")
        monkeypatch.setattr(orphans, "server_time", lambda: None)
    check_silent(queries.get_run(run_id))  # nothing changes: it is gone
    monkeypatch.setattr(orphans, "DEFAULT_HEARTBEAT_SECONDS", float(WAIT_SECONDS))
    if not has_server_time:
        client().set_tag(run_id, names.HEARTBEAT_SECONDS, str(WAIT_SECONDS))
    record = queries.get_run(run_id)
    client().set_tag(run_id, names.HEARTBEAT, "2020-01-01T00:00:00+00:00")  # its clock is years behind, and it beats
    with pytest.raises(StillAlive, match="is alive: it gave a sign of life while it was watched"):
        check_silent(record)


def test_how_long_a_run_may_be_silent_is_by_its_own_heartbeats(local_store: object) -> None:
    run_id = run_with("RUNNING", silent_minutes=15)
    client().set_tag(run_id, names.HEARTBEAT_SECONDS, "600")
    assert orphaned_runs(minutes=10) == []
    with pytest.raises(StillAlive):
        check_silent(queries.get_run(run_id))
    client().set_tag(run_id, names.HEARTBEAT_SECONDS, str(15 * 60 / LOST_BEATS - 1))
    check_silent(queries.get_run(run_id))
    assert len(orphaned_runs(minutes=10)) == 1


def test_of_two_processes_exactly_one_takes_a_run_up(http_store: str) -> None:
    run_id = run_with("RUNNING", silent_minutes=60)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["ehrtrack.tracking.recovery.orphans"])
    for number in range(1, ROUNDS + 1):
        start, won = context.Barrier(2), context.Queue()
        processes = [context.Process(target=race, args=(http_store, run_id, number, start, won)) for _ in range(2)]
        for process in processes:
            process.start()
        results = sorted(won.get(timeout=120) for _ in processes)
        for process in processes:
            process.join()
        assert results == [0, number]
    assert queries.get_run(run_id).tags[names.ATTEMPT] == str(ROUNDS)
    assert queries.get_run(run_id).attempt == ROUNDS
    assert not [model for model in client().search_registered_models() if run_id in model.name]


def test_one_who_read_the_run_before_it_was_claimed_does_not_get_it(local_store: object) -> None:
    record = queries.get_run(run_with("RUNNING", silent_minutes=60))
    assert claim_run(record) == 1
    with pytest.raises(RunClaimRefused, match="just now"):
        claim_run(record)
    assert claim_run(queries.get_run(record.run_id)) == 2


def test_a_run_that_ended_well_while_it_was_looked_at_is_not_claimed(local_store: object) -> None:
    record = queries.get_run(run_with("RUNNING", silent_minutes=60))
    client().set_terminated(record.run_id, "FINISHED")
    with pytest.raises(RunClaimRefused, match="has ended well just now"):
        claim_run(record)
    assert queries.get_run(record.run_id).status == "FINISHED"


def test_models_that_somebody_registers_are_no_hindrance(local_store: object) -> None:
    """A claim was a registered model once: anybody could make it first, with the owner refused by the server."""
    record = queries.get_run(run_with("RUNNING", silent_minutes=60))
    for attempt in (0, 1):
        client().create_registered_model(f"ehrtrack-claim-{record.run_id}-1-{attempt}")
    assert claim_run(record) == 1


def test_the_attempt_of_a_run_of_earlier_versions_is_in_its_tag() -> None:
    assert attempt_of({}, {"cfg.train.lr": "1"}) == 0
    assert attempt_of({names.ATTEMPT: "3"}, {}) == 3
    assert attempt_of({names.ATTEMPT: "3"}, {f"{names.ATTEMPT}.{n}": "x" for n in (9, 10)}) == 10


def test_a_run_that_is_given_back_is_stale_again(local_store: object) -> None:
    record = queries.get_run(run_with("RUNNING", silent_minutes=60))
    attempt = claim_run(record)
    assert orphaned_runs(["finetune"], minutes=10) == []
    release_run(record, attempt)
    assert [run.record.status for run in orphaned_runs(["finetune"], minutes=10)] == ["KILLED"]


def test_a_run_that_another_process_has_by_now_is_not_given_back(local_store: object) -> None:
    record = queries.get_run(run_with("RUNNING", silent_minutes=60))
    attempt = claim_run(record)
    claim_run(queries.get_run(record.run_id))
    release_run(record, attempt)
    assert queries.get_run(record.run_id).status == "RUNNING"


def test_the_heartbeat_of_a_process_that_was_overtaken_ends_and_says_so(
    local_store: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = run_with("RUNNING", silent_minutes=60)
    claim_run(queries.get_run(run_id))
    last = queries.get_run(run_id).tags[names.HEARTBEAT]
    monkeypatch.setenv("EHRTRACK_HEARTBEAT_SECONDS", "0.05")
    told = threading.Event()
    Heartbeat(lambda: run_id, attempt=0, on_claim_lost=lambda overtaken: told.set())
    assert told.wait(WAIT_SECONDS)
    assert queries.get_run(run_id).tags[names.HEARTBEAT] == last


def test_whatever_an_overtaken_run_has_to_log_is_refused_and_none_of_it_arrives(
    local_store: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EHRTRACK_HEARTBEAT_SECONDS", "0.05")

    def overtaken_run() -> None:
        with tracked_run(experiment="s", name="x", kind="finetune") as run:
            run.log_metrics({"a": 1.0}, step=1)
            wait_until(lambda: "a" in queries.get_run(run.server_run_id).metrics)
            run_ids.append(run.server_run_id)
            claim_run(queries.get_run(run.server_run_id))
            with pytest.raises(RunClaimLost):
                wait_until(lambda: run.check_is_ours() is not None)
            run.log_metrics({"b": 1.0}, step=1)

    run_ids: list[str] = []
    with pytest.raises(RunClaimLost, match="was claimed by another process"):
        overtaken_run()
    record = queries.get_run(run_ids[0])
    assert (record.metrics, record.status) == ({"a": 1.0}, "RUNNING")
    assert names.ERROR not in record.tags


def test_a_run_that_is_overtaken_at_its_very_end_does_not_end_well(local_store: object) -> None:
    def overtaken_run() -> None:
        with tracked_run(experiment="s", name="x", kind="finetune") as run:
            run_ids.append(run.server_run_id)
            claim_run(queries.get_run(run.server_run_id))

    run_ids: list[str] = []
    with pytest.raises(RunClaimLost):
        overtaken_run()
    assert queries.get_run(run_ids[0]).status == "RUNNING"
