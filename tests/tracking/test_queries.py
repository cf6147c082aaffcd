"""Finding runs again, and fetching from them no more than was asked."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from ehrtrack.errors import TrackingError
from ehrtrack.tracking.client import experiments, queries
from ehrtrack.tracking.client.connection import client
from ehrtrack.tracking.run import tracked_run


@pytest.fixture(params=["local_store", "http_store"])
def store(request: pytest.FixtureRequest) -> object:
    return request.getfixturevalue(request.param)


def make_run(study: str, name: str, kind: str, **options: object) -> str:
    with tracked_run(experiment=study, name=name, kind=kind, **options) as run:  # type: ignore[arg-type]
        run.log_text("x", "model/config.json")
    return run.server_run_id


def test_a_study_is_found_in_all_experiments(store: object, monkeypatch: pytest.MonkeyPatch) -> None:
    study = f"it's {type(store).__name__}"
    pretrain = make_run(study, "a", "pretrain")
    joined = client().create_run("0").info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", joined)
    make_run(study, "b", "finetune", params={"cohort.fingerprint": "c1"}, tags={"group": "g"})
    baseline = make_run(study, "c", "baseline")
    make_run("another study", "d", "finetune")
    with pytest.raises(ValueError, match="no"), tracked_run(experiment=study, name="e", kind="baseline"):
        raise ValueError("no")

    def found(**conditions: object) -> list[str]:
        return [run.run_id for run in queries.search_runs(study, **conditions)]  # type: ignore[arg-type]

    assert sorted(found()) == sorted([pretrain, joined, baseline])
    assert found(kinds=["finetune"]) == [joined]
    assert sorted(found(kinds=["baseline", "finetune", "finetune"])) == sorted([joined, baseline])
    assert found(tags={"group": "g"}) == found(params={"cohort.fingerprint": "c1"}) == [joined]
    assert [run.name for run in queries.search_runs(study, status="FAILED")] == ["e"]
    assert len(found(status=None)) == 4


def test_trials_are_found_by_their_parent(local_store: Path) -> None:
    with tracked_run(experiment="s", name="sweep", kind="sweep") as sweep:
        trials = [make_run("s", f"trial {n}", "trial", parent_run_id=sweep.reference) for n in range(2)]
    make_run("s", "other", "trial")
    assert [run.run_id for run in queries.search_runs("s", parent_run_id=sweep.reference)] == trials


def test_runs_from_before_the_kept_epoch_had_its_name_are_read_by_the_name_it_has_now(local_store: Path) -> None:
    with tracked_run(experiment="s", name="old", kind="finetune") as old:
        old.log_metrics({"best/c_index": 0.7, "best/epoch": 3.0, "test/c_index": 0.6}, step=0)
    with tracked_run(experiment="s", name="new", kind="finetune") as new:
        new.log_metrics({"best/c_index": 0.1, "kept/c_index": 0.8}, step=0)
    found = {run.run_id: run.metrics for run in queries.search_runs("s")}
    assert found[old.server_run_id] == {"kept/c_index": 0.7, "kept/epoch": 3.0, "test/c_index": 0.6}
    assert found[new.server_run_id] == {"kept/c_index": 0.8}
    assert queries.get_run(old.server_run_id).metrics == found[old.server_run_id]


def test_all_pages_are_read(local_store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = [make_run("s", f"run {n}", "finetune") for n in range(5)]
    monkeypatch.setattr(experiments, "ROWS_PER_PAGE", 2)
    assert [run.run_id for run in queries.search_runs("s")] == runs


def test_a_name_with_both_quotation_marks_cannot_be_searched(local_store: Path) -> None:
    with pytest.raises(TrackingError, match="both kinds of quotation marks"):
        queries.search_runs('it\'s "it"')


def test_a_history_is_by_step(local_store: Path) -> None:
    with tracked_run(experiment="s", name="x", kind="demo") as run:
        for step in (1, 0, 2):
            run.log_metrics({"val/loss": step / 10}, step=step)
    assert list(queries.metric_history(run.server_run_id, "val/loss").items()) == [(0, 0.0), (1, 0.1), (2, 0.2)]
    assert queries.metric_history(run.server_run_id, "val/other") == {}


@pytest.mark.parametrize("run_id", ["0" * 32, "nope", "../x"])
def test_an_unknown_run_is_named_with_the_server(run_id: str, local_store: Path) -> None:
    with pytest.raises(TrackingError) as raised:
        queries.get_run(run_id)
    assert f"there is no run {run_id!r} on sqlite:///{local_store}/mlflow.db" in str(raised.value)


@pytest.mark.parametrize(
    "path", ["../mlflow.db", "model/../../x", "/etc/passwd", "", "..", "model\\x", "file:/x", "%2e%2e/x"]
)
def test_a_path_that_climbs_is_never_fetched(path: str, local_store: Path, tmp_path: Path) -> None:
    run_id = make_run("s", "x", "demo")
    with pytest.raises(TrackingError, match="is not a plain relative path"):
        queries.download(run_id, path, tmp_path / "got")
    assert not (tmp_path / "got").exists()


@pytest.mark.parametrize("listed", ["../../escaped", "model/../../escaped", "/etc/passwd", "other/x"])
def test_a_server_that_lists_a_path_outside_is_refused(
    listed: str, local_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = make_run("s", "x", "demo")

    def list_artifacts(path: str | None = None) -> list[SimpleNamespace]:
        return [SimpleNamespace(path=listed if path else "model", is_dir=not path)]

    fetched: list[object] = []
    hostile = SimpleNamespace(
        list_artifacts=list_artifacts, _download_file=lambda *arguments: fetched.append(arguments)
    )
    monkeypatch.setattr(queries, "artifact_store", lambda run_id: hostile)
    with pytest.raises(TrackingError, match=r"is not a plain relative path|nothing was fetched"):
        queries.download(run_id, "model", tmp_path / "got")
    assert fetched == []


def test_a_missing_artifact_lists_those_there_are(store: object, tmp_path: Path) -> None:
    run_id = make_run("s", "x", "demo")
    with pytest.raises(
        TrackingError, match=r"no artifact 'adapter'; there: environment\.json, model, sha256sums\.txt$"
    ):
        queries.download(run_id, "adapter", tmp_path)
    with pytest.raises(TrackingError, match=r"no artifact 'model/x'; there: model/config\.json$"):
        queries.download(run_id, "model/x", tmp_path)


def test_a_run_is_found_by_id_and_uri(local_store: Path) -> None:
    run_id = make_run("s", "x", "pretrain")
    assert queries.resolve_run(run_id) == queries.ModelReference(run_id, "model")
    assert queries.resolve_run(f"runs:/{run_id}") == queries.ModelReference(run_id, "model")
    assert queries.resolve_run(f"runs:/{run_id}/adapter/x") == queries.ModelReference(run_id, "adapter/x")


@pytest.mark.parametrize("reference", ["latest", "", "runs:/", "runs:/abc", "s3://bucket/model", "model.safetensors"])
def test_what_names_no_run_says_the_forms_there_are(reference: str, local_store: Path) -> None:
    with pytest.raises(TrackingError, match=r"names no run; needed is a run id .* models:/NAME@champion"):
        queries.resolve_run(reference)


def test_a_run_reference_cannot_climb(local_store: Path) -> None:
    run_id = make_run("s", "x", "pretrain")
    with pytest.raises(TrackingError, match="is not a plain relative path"):
        queries.resolve_run(f"runs:/{run_id}/../../x")
