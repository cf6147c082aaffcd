"""The run of MLFLOW_RUN_ID is joined if it is nobody's; the user's name, experiment and tags stay."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from mlflow.utils.name_utils import _generate_random_name

from ehrtrack.cli import main
from ehrtrack.errors import JoinRefused, TrackingError
from ehrtrack.tracking.client import queries
from ehrtrack.tracking.client.connection import client
from ehrtrack.tracking.client.experiments import every_experiment_id
from ehrtrack.tracking.outbox.registration import is_generated
from ehrtrack.tracking.outbox.sync import find_journals, sync
from ehrtrack.tracking.run import tracked_run

JOURNALS = Path(".ehrtrack")

JOINER = """
import sys
from ehrtrack.errors import JoinRefused, TrackingError
from ehrtrack.tracking.run import tracked_run
sys.stdin.readline()
try:
    with tracked_run(experiment="study", name="joiner", kind="baseline", params={"a": sys.argv[1]}) as run:
        print(run.server_run_id)
except TrackingError as error:
    sys.exit(f"refused: {error}")
"""


@pytest.fixture(params=["local_store", "http_store"])
def store(request: pytest.FixtureRequest) -> object:
    return request.getfixturevalue(request.param)


def state(run_id: str) -> dict[str, Any]:
    """All that the server says of a run, and its artifacts."""
    run = client().get_run(run_id)
    return run.to_dictionary() | {"artifacts": queries.list_artifacts(run_id)}


def n_runs() -> int:
    return len(client().search_runs(every_experiment_id()))


def make_run(kind: str, *, is_nested: bool = False) -> str:
    with tracked_run(experiment="study", name="champion", kind=kind, params={"a": 1}) as run:
        run.log_metrics({"best/c_index": 0.7}, step=0)
        run.log_text("weights", "model/model.safetensors")
        if is_nested:
            with tracked_run(experiment="study", name="t0", kind="trial", parent_run_id=run.reference) as trial:
                pass
            return trial.server_run_id
    return run.server_run_id


@pytest.mark.parametrize("is_nested", [False, True])
def test_a_run_that_is_there_is_never_written_over(
    is_nested: bool, store: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = make_run("finetune", is_nested=is_nested)
    before = state(run_id), n_runs()
    monkeypatch.setenv("MLFLOW_RUN_ID", run_id)
    for kind in ("baseline", "finetune"):
        with pytest.raises(JoinRefused, match=rf"run {run_id} .*cannot be joined: it is the (finetune|trial) run"):
            tracked_run(experiment="study", name="other", kind=kind, params={"a": 2}).__enter__()
    assert (state(run_id), n_runs()) == before
    assert os.environ["MLFLOW_RUN_ID"] == run_id  # tried again, it is refused again
    assert not find_journals(JOURNALS)


@pytest.mark.parametrize("end", ["FINISHED", "deleted"])
def test_the_ended_run_of_another_tool_is_not_joined(
    end: str, local_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = client().create_run("0", run_name="gradient boosting").info.run_id
    client().log_metric(run_id, "auc", 0.8)
    client().delete_run(run_id) if end == "deleted" else client().set_terminated(run_id, end)
    before = client().get_run(run_id).to_dictionary()
    monkeypatch.setenv("MLFLOW_RUN_ID", run_id)
    with pytest.raises(
        JoinRefused, match=r"'gradient boosting' is none that was made for this, and (ended|was deleted)"
    ):
        tracked_run(experiment="study", name="x", kind="baseline").__enter__()
    assert client().get_run(run_id).to_dictionary() == before


def test_a_run_id_left_in_the_shell_ends_the_next_command_before_any_work(
    local_store: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The data of the configuration are not there: the refusal comes before they are looked for."""
    run_id = make_run("pretrain")
    before = state(run_id)
    Path("study.toml").write_text('study = "study"\ndata = { path = "nowhere" }\n')
    monkeypatch.setenv("MLFLOW_RUN_ID", run_id)
    with pytest.raises(SystemExit) as end:
        main(["baseline", "--config", "study.toml"])
    assert end.value.code == 2
    assert (
        f"run {run_id} of MLFLOW_RUN_ID (--run-id) cannot be joined: it is the pretrain run" in capsys.readouterr().err
    )
    assert state(run_id) == before


def test_of_two_processes_that_join_one_run_one_succeeds(http_store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(3):
        run_id = client().create_run("0").info.run_id
        monkeypatch.setenv("MLFLOW_RUN_ID", run_id)
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        joiners = [subprocess.Popen([sys.executable, "-c", JOINER, str(n)], **pipes) for n in range(2)]
        for joiner in joiners:
            assert joiner.stdin is not None
            joiner.stdin.write("\n")
            joiner.stdin.flush()
        said = [joiner.communicate(timeout=120) for joiner in joiners]
        codes = [joiner.returncode for joiner in joiners]
        assert sorted(codes) == [0, 1], said
        winner = codes.index(0)
        assert said[winner][0].strip() == run_id
        assert f"refused: run {run_id}" in said[1 - winner][1]
        assert queries.get_run(run_id).params == {"a": str(winner)}


def test_a_journal_that_may_not_join_becomes_a_run_of_its_own(
    local_store: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Begun without a server, it is decided when the journal is sent; hours of training are not thrown away."""
    run_id = make_run("finetune")
    before = state(run_id)
    monkeypatch.setenv("MLFLOW_RUN_ID", run_id)
    with monkeypatch.context() as offline:
        offline.setenv("EHRTRACK_OFFLINE", "1")
        with tracked_run(experiment="study", name="other", kind="baseline", params={"a": 2}) as run:
            run.log_metrics({"best/c_index": 0.6}, step=0)
            with tracked_run(experiment="study", name="t0", kind="trial", parent_run_id=run.reference) as trial:
                pass
    states = []
    for _ in range(2):
        assert [(synced.problem, synced.account.left) for synced in sync(JOURNALS)] in ([("", 0)] * 2, [])
        (own,) = client().search_runs(every_experiment_id(), f"tags.`ehrtrack.run_key` = '{run.run_key}'")
        states.append(state(own.info.run_id))
    assert states[0] == states[1]
    assert state(run_id) == before
    assert "This run is logged as a run of its own" in caplog.text
    record = queries.get_run(own.info.run_id)
    assert (record.kind, record.status, record.params) == ("baseline", "FINISHED", {"a": "2"})
    assert record.tags["ehrtrack.join_refused"].startswith(f"run {run_id} of MLFLOW_RUN_ID (--run-id) cannot be joined")
    assert record.tags["mlflow.source.type"] == "LOCAL"
    (child,) = client().search_runs(every_experiment_id(), f"tags.`ehrtrack.run_key` = '{trial.run_key}'")
    assert child.data.tags["mlflow.parentRunId"] == record.run_id


def test_a_journal_that_may_join_joins_when_it_is_sent(local_store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_id = client().create_run("0").info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", run_id)
    with monkeypatch.context() as offline:
        offline.setenv("EHRTRACK_OFFLINE", "1")
        with tracked_run(experiment="study", name="x", kind="baseline"):
            pass
    sync(JOURNALS)
    record = queries.get_run(run_id)
    assert (record.kind, record.status, record.name) == ("baseline", "FINISHED", "x")


def test_the_name_and_tags_that_a_user_gave_stay(store: object, monkeypatch: pytest.MonkeyPatch) -> None:
    given = {"owner": "anna", "cohort": "mine", "mlflow.note.content": "For the talk in May."}
    run_id = client().create_run("0", run_name="lora for the talk", tags=given).info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", run_id)
    with tracked_run(experiment="study", name="lora r8", kind="finetune", tags={"cohort": "c1", "x": "1"}) as run:
        run.set_description("### Summary")
    record = queries.get_run(run_id)
    assert (record.name, record.kind, record.study) == ("lora for the talk", "finetune", "study")
    assert {key: record.tags[key] for key in ("owner", "cohort", "x")} == {"owner": "anna", "cohort": "mine", "x": "1"}
    assert record.tags["mlflow.note.content"] == "For the talk in May.\n\n### Summary"
    with tracked_run(experiment="study", name="lora r8", kind="finetune", run_id=run_id, attempt=1):
        pass
    assert queries.get_run(run_id).name == "lora for the talk"


def test_a_name_that_mlflow_made_up_is_told_from_a_users() -> None:
    assert all(is_generated(_generate_random_name()) for _ in range(2000))
    users = ("lora-rank-8", "full", "upbeat", "wise-plan-b", "", "crow-upbeat-1", "behrt upbeat-crow-1")
    assert [name for name in users if is_generated(name)] == []


@pytest.mark.parametrize("by", ["name", "id", "name of none yet", "default id"])
def test_runs_go_to_the_experiment_that_the_user_names(
    by: str, local_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = {"default id": "study", "name of none yet": "new"}.get(by, "mine")
    made = client().create_experiment("mine")
    variables = {"id": ("MLFLOW_EXPERIMENT_ID", made), "default id": ("MLFLOW_EXPERIMENT_ID", "0")}
    monkeypatch.setenv(*variables.get(by, ("MLFLOW_EXPERIMENT_NAME", wanted)))
    with (
        tracked_run(experiment="study", name="x", kind="sweep") as run,
        tracked_run(experiment="study", name="t", kind="trial", parent_run_id=run.reference) as trial,
    ):
        pass
    records = [queries.get_run(run.server_run_id), queries.get_run(trial.server_run_id)]
    assert [client().get_experiment(record.experiment_id).name for record in records] == [wanted] * 2
    assert [record.run_id for record in queries.search_runs("study")] == [run.server_run_id, trial.server_run_id]
    experiment = client().get_experiment(records[0].experiment_id)
    assert by != "name of none yet" or experiment.tags["ehrtrack.study"] == "study"


def test_an_experiment_that_is_not_there_or_deleted_is_refused(
    local_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", "4711")
    with pytest.raises(TrackingError, match="MLFLOW_EXPERIMENT_ID is '4711', and there is no such experiment"):
        tracked_run(experiment="study", name="x", kind="demo").__enter__()
    made = client().create_experiment("mine")
    client().delete_experiment(made)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", made)
    with pytest.raises(TrackingError, match=f"restore --experiment-id {made}"):
        tracked_run(experiment="study", name="x", kind="demo").__enter__()
