"""What the page of an experiment is given: whoever made the experiment, once, and never over what a user changed."""

from __future__ import annotations

import json

import pytest
import requests
from weather import proxy

from ehrtrack.tracking import names
from ehrtrack.tracking.client import connection, experiments
from ehrtrack.tracking.client.connection import client
from ehrtrack.tracking.client.experiments import describe_experiment, set_up
from ehrtrack.tracking.run import tracked_run

VIEW = "mlflow.sharedViewState.ehrtrack"
NOTE = "mlflow.note.content"
PRIMARY = "mlflow.experiment.primaryMetric.name"


@pytest.fixture(params=["local_store", "http_store"])
def store(request: pytest.FixtureRequest) -> object:
    return request.getfixturevalue(request.param)


def bare(name: str) -> str:
    """An experiment as `mlflow run --experiment-name` makes it: without a tag."""
    return str(client().create_experiment(name))


def tags(experiment_id: str) -> dict[str, str]:
    return dict(client().get_experiment(experiment_id).tags)


def view(experiment_id: str) -> dict[str, object]:
    state: dict[str, object] = json.loads(tags(experiment_id)[VIEW])
    return state


def test_an_experiment_that_mlflow_run_made_is_set_up_by_the_run_that_joins(
    store: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment_id = bare(f"joined {type(store).__name__}")
    monkeypatch.setenv("MLFLOW_RUN_ID", client().create_run(experiment_id).info.run_id)
    with tracked_run(experiment="gi_bleed", name="a", kind="finetune"):
        pass
    found = tags(experiment_id)
    assert found["ehrtrack.study"] == "gi_bleed"
    assert found["mlflow.experimentKind"] == "custom_model_development"
    assert found[PRIMARY] == "kept/c_index"
    assert found["mlflow.experiment.primaryMetric.greaterIsBetter"] == "True"
    assert found[NOTE].startswith("Runs of EHRTrack; their tag `ehrtrack.study` tells whose.")
    state = view(experiment_id)
    assert state["searchFilter"] == "metrics.`test/c_index` > 0"
    assert state["orderByKey"] == "metrics.`kept/c_index`"
    assert state["orderByAsc"] is False
    assert state["selectedColumns"] == [
        "params.`model`",
        "params.`cfg.model.size`",
        "metrics.`parameters/trainable`",
        "metrics.`kept/c_index`",
        "metrics.`test/c_index`",
        "tags.`ehrtrack.test_c_index`",
        "metrics.`test/ibs`",
        "metrics.`cost/train_seconds`",
        "tags.`sanity.verdict`",
    ]
    charts = [(chart["type"], chart.get("metricKey")) for chart in state["compareRunCharts"]]  # type: ignore[attr-defined]
    assert charts == [
        ("BAR", "kept/c_index"),
        ("BAR", "test/c_index"),
        ("SCATTER", None),
        ("LINE", "val/c_index"),
        ("LINE", "val/loss"),
    ]
    sections = {section["uuid"] for section in state["compareRunSections"]}  # type: ignore[attr-defined]
    assert {chart["metricSectionId"] for chart in state["compareRunCharts"]} == sections  # type: ignore[attr-defined]


def test_a_set_up_experiment_costs_one_call(http_store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with proxy(http_store) as weather:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", weather.address)
        made, found = experiments.experiment_named("one call"), bare("several calls")
        weather.seen.clear()
        set_up(made, study="one call")
        assert weather.seen == ["GET /api/2.0/mlflow/experiments/get"]
        set_up(found, study="one call")
        weather.seen.clear()
        set_up(found, study="one call")
        assert weather.seen == ["GET /api/2.0/mlflow/experiments/get"]
        connection._client.cache_clear()


@pytest.mark.parametrize("key", [VIEW, NOTE, PRIMARY, "mlflow.experimentKind", "ehrtrack.study"])
def test_what_a_user_changed_stays(key: str, local_store: object) -> None:
    experiment_id = bare("mine")
    set_up(experiment_id, study="s")
    client().set_experiment_tag(experiment_id, key, "mine")
    set_up(experiment_id, study="s", task="classes")
    assert tags(experiment_id)[key] == "mine"


def test_what_was_removed_is_written_again(local_store: object) -> None:
    experiment_id = bare("removed")
    set_up(experiment_id, study="s")
    for key in (VIEW, NOTE, PRIMARY):
        client().delete_experiment_tag(experiment_id, key)
    set_up(experiment_id, study="s")
    assert view(experiment_id)["searchFilter"] == "metrics.`test/c_index` > 0"
    assert {NOTE, PRIMARY} <= tags(experiment_id).keys()


def test_the_view_follows_the_task_of_the_runs(local_store: object) -> None:
    experiment_id = experiments.experiment_named("labels")
    set_up(experiment_id, study="labels", task="classes")
    assert view(experiment_id)["searchFilter"] == "metrics.`test/auroc` > 0"
    assert "tags.`ehrtrack.test_auroc`" in view(experiment_id)["selectedColumns"]  # type: ignore[operator]
    assert tags(experiment_id)[PRIMARY] == "kept/auroc"
    set_up(experiment_id, study="labels")  # a pretraining has no task that is judged
    assert tags(experiment_id)[PRIMARY] == "kept/auroc"
    set_up(experiment_id, study="labels", task="survival")
    assert view(experiment_id)["searchFilter"] == "metrics.`test/c_index` > 0"


def test_the_task_comes_with_the_run(local_store: object) -> None:
    with tracked_run(experiment="s", name="a", kind="finetune", tags={names.TASK: "classes"}) as run:
        pass
    assert run.experiment_id is not None
    assert tags(run.experiment_id)[PRIMARY] == "kept/auroc"


def test_views_of_before_there_was_a_note_are_renewed(local_store: object) -> None:
    experiment_id = bare("before")
    old = {
        VIEW: json.dumps({"selectedColumns": []}),
        PRIMARY: "best/c_index",
        NOTE: "Runs of the EHRTrack study **s**.",
    }
    for key, value in old.items():
        client().set_experiment_tag(experiment_id, key, value)
    set_up(experiment_id, study="s")
    assert "searchFilter" in view(experiment_id)
    assert tags(experiment_id)[PRIMARY] == "kept/c_index"
    assert tags(experiment_id)[NOTE] == old[NOTE]


def test_a_kind_that_the_ui_inferred_is_nobodys_choice(local_store: object) -> None:
    experiment_id = bare("inferred")
    client().set_experiment_tag(experiment_id, "mlflow.experimentKind", "no_inferred_type")
    set_up(experiment_id, study="s")
    assert tags(experiment_id)["mlflow.experimentKind"] == "custom_model_development"


def test_an_answer_becomes_the_description_and_stays_it(store: object) -> None:
    experiment_id = experiments.experiment_named(f"answered {type(store).__name__}")
    assert describe_experiment(experiment_id, "LoRA is better.")
    assert describe_experiment(experiment_id, "LoRA is no better.")
    set_up(experiment_id, study="answered")
    assert tags(experiment_id)[NOTE] == "LoRA is no better."
    client().set_experiment_tag(experiment_id, NOTE, "by hand")
    assert not describe_experiment(experiment_id, "LoRA is better.")
    assert tags(experiment_id)[NOTE] == "by hand"


def test_the_pages_that_links_name_are_served(http_store: str) -> None:
    url = connection.ui_command("1").url.partition("#")[0]
    assert "<title>MLflow</title>" in requests.get(url, timeout=30).text
