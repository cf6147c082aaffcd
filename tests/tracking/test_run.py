"""What a tracked run leaves on the server, in a database and over HTTP alike, and how it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import matplotlib.figure
import polars as pl
import pytest
from mlflow import MlflowClient

from ehrtrack.errors import DataError, TrackingError
from ehrtrack.tracking.client import queries
from ehrtrack.tracking.client.connection import client, ui_command
from ehrtrack.tracking.client.experiments import experiment_named
from ehrtrack.tracking.logger import MAX_PARAM_CHARACTERS, MAX_TAG_CHARACTERS, TrackedRun
from ehrtrack.tracking.outbox.sync import sync
from ehrtrack.tracking.recovery.lease import RunClaimLost
from ehrtrack.tracking.recovery.orphans import claim_run
from ehrtrack.tracking.run import TerminatedBySignal, tracked_run

CHILD = """
import sys, time
from ehrtrack.tracking.run import tracked_run
with tracked_run(experiment="study", name="child", kind="finetune") as run:
    print(run.server_run_id, flush=True)
    while True:  # a signal that comes right before one long sleep would be seen after it
        time.sleep(0.05)
"""


@pytest.fixture(params=["local_store", "http_store"])
def store(request: pytest.FixtureRequest) -> object:
    return request.getfixturevalue(request.param)


def write_everything(folder: Path) -> str:
    (folder / "weights" / "deep").mkdir(parents=True)
    (folder / "weights" / "a.bin").write_bytes(b"a")
    (folder / "weights" / "deep" / "b.bin").write_bytes(b"b")
    figure = matplotlib.figure.Figure()
    figure.subplots().plot([0, 1])
    params = {"model.size": "small", "strategy.rank": 8, "model.dropout": 0.1, "cohort.exclude": True}
    with tracked_run(experiment="study", name="lora r8", kind="finetune", params=params, tags={"cohort": "c1"}) as run:
        run.log_metrics({"train/loss": 2.0, "val/c_index": 0.6}, step=0)
        run.log_metrics({"train/loss": 1.0, "val/c_index": 0.7}, step=1)
        run.set_description("# Summary\nGood.")
        run.log_dataset("eunomia", fingerprint="0123456789abcdef", source="data/eunomia", context="training")
        run.log_text("hello", "notes/hello.txt")
        run.log_json({"a": [1, 2]}, "run_config.json")
        run.log_table(pl.DataFrame({"risk": [0.5], "curve": [[1.0, 0.5]]}), "predictions/test.parquet")
        run.log_table(pl.DataFrame({"risk": [0.5]}), "table.csv")
        run.log_figure(figure, "plots/loss.png")
        run.log_folder(folder / "weights", "model")
    return run.server_run_id


def test_a_run_is_the_same_in_a_database_and_over_http(store: object, tmp_path: Path) -> None:
    run_id = write_everything(tmp_path)
    record = queries.get_run(run_id)
    assert (record.name, record.kind, record.study, record.status) == (
        "lora r8",
        "finetune",
        "study",
        "FINISHED",
    )
    assert record.params == {
        "model.size": "small",
        "strategy.rank": "8",
        "model.dropout": "0.1",
        "cohort.exclude": "True",
    }
    assert record.metrics == {"train/loss": 1.0, "val/c_index": 0.7}
    assert queries.metric_history(run_id, "val/c_index") == {0: 0.6, 1: 0.7}
    assert record.tags["mlflow.note.content"] == "# Summary\nGood."
    assert record.tags["cohort"] == "c1"
    (dataset,) = client().get_run(run_id).inputs.dataset_inputs
    assert (dataset.dataset.name, dataset.dataset.digest) == ("eunomia", "0123456789abcdef")
    assert record.duration_seconds is not None
    assert record.duration_seconds >= 0
    assert queries.list_artifacts(run_id) == [
        "environment.json",
        "model/a.bin",
        "model/deep/b.bin",
        "notes/hello.txt",
        "plots/loss.png",
        "predictions/test.parquet",
        "run_config.json",
        "sha256sums.txt",
        "table.csv",
    ]
    assert queries.download(run_id, "model", tmp_path / "got") == tmp_path / "got" / "model"
    assert (tmp_path / "got" / "model" / "deep" / "b.bin").read_bytes() == b"b"
    table = pl.read_parquet(queries.download(run_id, "predictions/test.parquet", tmp_path / "got"))
    assert table.to_dicts() == [{"risk": 0.5, "curve": [1.0, 0.5]}]
    png = queries.download(run_id, "plots/loss.png", tmp_path / "got").read_bytes()
    assert png.startswith(b"\x89PNG")
    environment = json.loads(queries.download(run_id, "environment.json", tmp_path / "got").read_text())
    assert environment["python"] == sys.version.split()[0]
    assert "polars" in environment["packages"]


def test_metrics_of_a_step_are_one_call(local_store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls, send = [], MlflowClient.log_batch
    monkeypatch.setattr(
        MlflowClient, "log_batch", lambda *a, **k: (calls.append(len(k.get("metrics", []))), send(*a, **k))
    )
    with tracked_run(experiment="study", name="x", kind="demo") as run:
        run.log_metrics({f"m/{i}": float(i) for i in range(50)}, step=3)
    assert [n_metrics for n_metrics in calls if n_metrics] == [50]


def test_an_exception_ends_the_run_failed_with_its_message(store: object) -> None:
    with pytest.raises(DataError), tracked_run(experiment="study", name="x", kind="finetune") as run:
        raise DataError("12 of 300 subjects have no index date")
    record = queries.get_run(run.server_run_id)
    assert record.status == run.status == "FAILED"
    assert record.tags["ehrtrack.error"] == "DataError: 12 of 300 subjects have no index date"
    assert record.tags["mlflow.note.content"] == "**Failed**: DataError: 12 of 300 subjects have no index date"
    assert record.ended is not None


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (KeyboardInterrupt(), "KILLED"),
        (TerminatedBySignal(), "KILLED"),
        (SystemExit(2), "FAILED"),
        (SystemExit(0), "FINISHED"),
        (LookupError("pruned"), "FINISHED"),
    ],
)
def test_every_way_out_ends_the_run(local_store: Path, error: BaseException, status: str) -> None:
    with (
        pytest.raises(type(error)),
        tracked_run(experiment="s", name="x", kind="trial", stops=(LookupError,)) as run,
    ):
        raise error
    assert queries.get_run(run.server_run_id).status == status


def test_sigterm_ends_the_run_killed(http_store: str, tmp_path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", CHILD], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    run_id = child.stdout.readline().strip()
    child.send_signal(signal.SIGTERM)
    child.communicate(timeout=60)
    assert child.returncode == 128 + signal.SIGTERM
    record = queries.get_run(run_id)
    assert (record.status, record.tags["ehrtrack.error"]) == ("KILLED", "interrupted by SIGTERM")


def test_a_handler_for_sigterm_that_is_there_is_left_alone(local_store: Path) -> None:
    seen = []
    previous = signal.signal(signal.SIGTERM, lambda *_: seen.append(True))
    try:
        with tracked_run(experiment="s", name="x", kind="demo") as run:
            os.kill(os.getpid(), signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, previous)
    assert seen == [True]
    assert queries.get_run(run.server_run_id).status == "FINISHED"


def test_sigterm_is_as_before_after_the_run(local_store: Path) -> None:
    with tracked_run(experiment="s", name="x", kind="demo"):
        assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_the_run_of_mlflow_run_is_joined_once(store: object, monkeypatch: pytest.MonkeyPatch) -> None:
    made = client().create_run("0", tags={"mlflow.source.type": "PROJECT"}, run_name="upbeat-crow-1")
    client().log_param(made.info.run_id, "strategy.rank", "08")
    monkeypatch.setenv("MLFLOW_RUN_ID", made.info.run_id)
    with tracked_run(experiment="study", name="lora r8", kind="finetune", params={"strategy.rank": 8}) as run:
        assert "MLFLOW_RUN_ID" not in os.environ
        with tracked_run(experiment="study", name="t0", kind="trial", parent_run_id=run.reference) as trial:
            pass
        with tracked_run(experiment="study", name="other", kind="baseline") as other:
            pass
    assert run.server_run_id == made.info.run_id
    assert len({run.server_run_id, trial.server_run_id, other.server_run_id}) == 3
    record = queries.get_run(run.server_run_id)
    assert (record.name, record.kind, record.study) == ("lora r8", "finetune", "study")
    assert (record.experiment_id, record.params) == ("0", {"strategy.rank": "8"})
    assert client().get_run(run.server_run_id).data.params["strategy.rank"] == "08"
    child = queries.get_run(trial.server_run_id)
    assert (child.parent_run_id, child.experiment_id) == (run.server_run_id, "0")
    assert client().get_experiment(queries.get_run(other.server_run_id).experiment_id).name == "study"


def test_joining_a_run_that_is_not_there_says_so(local_store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_RUN_ID", "0" * 32)
    with pytest.raises(TrackingError, match=r"could not join run 0{32} of MLFLOW_RUN_ID"):
        tracked_run(experiment="s", name="x", kind="demo").__enter__()


def test_a_param_may_be_logged_again_but_not_changed(local_store: Path) -> None:
    with tracked_run(experiment="s", name="x", kind="demo", params={"a.b": 1}) as run:
        run.log_params({"a.b": 1, "c": ""})
        with pytest.raises(TrackingError, match=r"Changing param values is not allowed.*cfg\.a\.b"):
            run.log_params({"a.b": 2})


def test_long_values_are_cut_aloud_and_kept_whole(
    local_store: Path, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    codes, summary = "x" * (MAX_PARAM_CHARACTERS + 1), "y" * (MAX_TAG_CHARACTERS + 1)
    with tracked_run(experiment="s", name="x", kind="demo", params={"cohort.codes": codes}) as run:
        run.set_description(summary)
    record = queries.get_run(run.server_run_id)
    assert len(record.params["cohort.codes"]) == MAX_PARAM_CHARACTERS
    assert record.params["cohort.codes"].endswith("(6001 characters; whole in long_params/cohort.codes.txt)")
    assert queries.download(run.server_run_id, "long_params/cohort.codes.txt", tmp_path / "got").read_text() == codes
    assert queries.download(run.server_run_id, "description.md", tmp_path / "got").read_text() == summary
    assert "param cohort.codes has 6001 characters, 6000 are kept" in caplog.text


def test_more_than_a_hundred_params_are_all_there(local_store: Path) -> None:
    params = {f"p.{i}": i for i in range(250)}
    with tracked_run(experiment="s", name="x", kind="demo", params=params) as run:
        pass
    assert queries.get_run(run.server_run_id).params == {key: str(value) for key, value in params.items()}


def test_json_has_no_nan(local_store: Path) -> None:
    with (
        pytest.raises(ValueError, match="not JSON compliant"),
        tracked_run(experiment="s", name="x", kind="demo") as run,
    ):
        run.log_json({"loss": float("nan")}, "a.json")
    assert queries.list_artifacts(run.server_run_id) == ["environment.json", "sha256sums.txt"]


def test_a_deleted_experiment_says_how_to_restore_it(local_store: Path) -> None:
    with tracked_run(experiment="study", name="x", kind="demo") as run:
        pass
    client().delete_experiment(run.experiment_id)
    with pytest.raises(TrackingError, match=f"restore --experiment-id {run.experiment_id}"):
        tracked_run(experiment="study", name="x", kind="demo").__enter__()


def test_a_server_that_fails_at_the_end_does_not_hide_the_error(
    local_store: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise TrackingError("gone")

    monkeypatch.setattr(TrackedRun, "end", refuse)
    with (
        pytest.raises(DataError, match="the real reason"),
        tracked_run(experiment="s", name="x", kind="demo"),
    ):
        raise DataError("the real reason")
    assert "is left RUNNING on the server: gone" in caplog.text


@pytest.mark.parametrize("is_joined", [False, True])
def test_the_experiment_has_the_view_that_links_open(
    is_joined: bool, local_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if is_joined:
        monkeypatch.setenv("MLFLOW_RUN_ID", client().create_run("0").info.run_id)
    with tracked_run(experiment="study", name="x", kind="demo") as run:
        pass
    _, _, key = ui_command(run.experiment_id).url.partition("viewStateShareKey=")
    experiment = client().get_experiment(run.experiment_id)
    assert "metrics.`kept/c_index`" in json.loads(experiment.tags[f"mlflow.sharedViewState.{key}"])["selectedColumns"]


def test_a_study_from_before_is_shown_by_the_metrics_that_there_are_now(local_store: Path) -> None:
    primary = "mlflow.experiment.primaryMetric.name"
    for study, metric in (("old", "best/c_index"), ("own", "test/ibs")):
        tags = {primary: metric, "mlflow.sharedViewState.ehrtrack": '{"selectedColumns": ["metrics.`best/c_index`"]}'}
        client().create_experiment(study, tags=tags)
        with tracked_run(experiment=study, name="x", kind="demo") as run:
            pass
        shown = client().get_experiment(run.experiment_id).tags
        assert shown[primary] == ("kept/c_index" if study == "old" else "test/ibs")  # the user's own stays
        assert "kept/c_index" in shown["mlflow.sharedViewState.ehrtrack"]


def test_two_workers_that_make_one_experiment_get_the_same(local_store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other worker makes it between this one's look and its own attempt."""
    made = client().create_experiment("study")
    look = MlflowClient.get_experiment_by_name
    answers = iter([None])
    monkeypatch.setattr(MlflowClient, "get_experiment_by_name", lambda self, name: next(answers, look(self, name)))
    assert experiment_named("study") == made


def test_the_key_of_a_run_is_permanent_and_its_id_is_the_servers_alone(
    local_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setenv("EHRTRACK_OFFLINE", "1")
        with tracked_run(experiment="study", name="away", kind="finetune") as away:
            assert (away.server_run_id, away.experiment_id) == (None, None)
            assert (away.reference, away.label) == (away.run_key, f"with key {away.run_key}")
    with tracked_run(experiment="study", name="here", kind="finetune") as here:
        assert here.server_run_id is not None
        assert here.reference == here.label == here.server_run_id
        assert queries.get_run(here.server_run_id).tags["ehrtrack.run_key"] == here.run_key
        assert here.url.endswith(f"/runs/{here.server_run_id}?workflowType=machine_learning")


def lose_a_sweep(found: list[queries.RunRecord]) -> None:
    with tracked_run(experiment="study", name="sweep", kind="sweep") as begun:
        found.append(queries.get_run(begun.reference))
        claim_run(found[0])


def test_a_run_that_is_resumed_without_a_server_is_the_parent_of_those_within_it(
    local_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their parent was once the key of the journal of then, which no server ever learns."""
    found: list[queries.RunRecord] = []
    with pytest.raises(RunClaimLost):
        lose_a_sweep(found)
    (record,) = found
    attempt = queries.get_run(record.run_id).attempt
    words = {"experiment": "study", "name": "sweep", "kind": "sweep", "run_id": record.run_id, "attempt": attempt}
    with monkeypatch.context() as patch:
        patch.setenv("EHRTRACK_OFFLINE", "1")
        with tracked_run(**words, journal=local_store / "sweeps") as resumed:
            assert resumed.server_run_id == resumed.reference == record.run_id
            parent = resumed.reference
            with tracked_run(
                experiment="study", name="t0", kind="trial", parent_run_id=parent, journal=local_store / "trials"
            ):
                pass
    assert [run.problem for run in sync(local_store / "sweeps") + sync(local_store / "trials")] == ["", ""]
    (trial,) = queries.search_runs("study", kinds=["trial"])
    assert trial.parent_run_id == record.run_id
