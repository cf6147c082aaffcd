"""Comparisons of runs on a tracking store: who is left out, who is proposed, and when the champion moves."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest
from finished_runs import champion_run, config, made, predictions
from mlflow import MlflowClient

from ehrtrack.config import RunConfig, override
from ehrtrack.errors import DataError
from ehrtrack.recipes.compare import Comparison, compare, describe_champion
from ehrtrack.recipes.sensitivity import _points
from ehrtrack.tracking.client.queries import download, get_run, list_artifacts
from ehrtrack.tracking.run import tracked_run

pytestmark = [
    pytest.mark.usefixtures("undrawn_figures"),
    pytest.mark.filterwarnings("ignore:.*[Tt]ype hint:UserWarning"),  # of mlflow's own classes
]


def compared(told: RunConfig, capsys: pytest.CaptureFixture[str]) -> tuple[Comparison, str]:
    """What it came to, and what it said of the champion."""
    capsys.readouterr()
    comparison = compare(told)
    out = capsys.readouterr().out
    return comparison, out[out.index("champion of simulated was") :]


def test_the_first_champion_is_set_and_a_better_run_of_its_cohort_follows_it(
    local_store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = config(local_store)
    first = made(told, 0.6)
    comparison, said = compared(told, capsys)
    assert champion_run() == first
    assert said.startswith(
        f"champion of simulated was none\nproposed models:/simulated/1 (cox, validation C-index 0.6000, run {first[:8]}"
    )
    assert "cohort cohort-365, horizon 365 days" in said
    second = made(told, 0.7)
    comparison, said = compared(told, capsys)
    assert champion_run() == second
    assert said.startswith(f"champion of simulated was models:/simulated/1 (run {first[:8]}, cohort cohort-365")
    assert "champion is models:/simulated@champion, version 2" in said
    tags = get_run(comparison.run.run_id).tags
    assert [tags[f"ehrtrack.{name}"] for name in ("champion_before", "proposed", "champion")] == [
        f"models:/simulated/{number}" for number in (1, 2, 2)
    ]
    _, said = compared(told, capsys)
    assert "champion is that version already" in said
    shown = describe_champion("simulated")
    assert "horizon (days)          365" in shown
    assert "cohort                  cohort-365" in shown


def test_a_later_run_with_another_horizon_does_not_take_the_champion(
    local_store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told, short = config(local_store, 1095), config(local_store, 180)
    first = made(told, 0.6)
    compare(told)
    other = made(short, 0.9)
    comparison, said = compared(told, capsys)
    assert champion_run() == first
    assert "cohort-1095" in comparison.markdown or "0.600" in comparison.markdown
    assert "champion is that version already" in said
    comparison, said = compared(short, capsys)  # told to compare the other cohort: proposed, and not set
    assert champion_run() == first
    assert comparison.proposed is not None
    assert comparison.proposed.run_id == other
    assert "champion stays: it is of another cohort" in said
    assert "(horizon 180 days)" in get_run(comparison.run.run_id).tags["mlflow.note.content"]


def test_a_configuration_of_no_runs_cohort_proposes_nobody(
    local_store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made(config(local_store, 180), 0.6)
    comparison, said = compared(config(local_store, 1095), capsys)
    assert (comparison.champion, comparison.proposed, champion_run()) == (None, None, None)
    assert "no run that can be compared has the cohort that this configuration describes" in said
    _, said = compared(config(local_store, cohort=None), capsys)  # without a cohort it is the last one's
    assert "champion is models:/simulated@champion, version 1" in said


def test_labels_may_lie_elsewhere_and_another_name_is_another_cohort(
    local_store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def labelled(path: str) -> RunConfig:
        return config(local_store, cohort={"labels": path, "horizon_days": 365})

    made(labelled("/pod/a.parquet"), 0.6)
    assert compared(labelled("/home/b.parquet"), capsys)[0].proposed is None
    assert compared(labelled("/home/a.parquet"), capsys)[0].proposed is not None


def test_an_alias_that_was_set_by_hand_stays(local_store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = config(local_store)
    first, _ = made(told, 0.6), compare(told)
    second, _ = made(told, 0.7), compare(told)
    assert champion_run() == second
    MlflowClient().set_registered_model_alias("simulated", "champion", "1")
    for _ in range(2):
        _, said = compared(told, capsys)
        assert champion_run() == first
        assert "champion stays: its alias was set by hand" in said
        assert f"`ehrtrack promote {second} --name simulated --force` makes it champion all the same" in said
    MlflowClient().delete_registered_model_alias("simulated", "champion")
    compare(told)
    assert champion_run() == second


def test_an_alias_that_was_set_by_hand_to_the_best_is_not_taken_over(local_store: Path) -> None:
    told = config(local_store)
    made(told, 0.6)
    compare(told)
    best, _ = made(told, 0.7), compare(told)
    worse = made(told, 0.5)
    MlflowClient().create_model_version("simulated", source=f"runs:/{worse}/model", run_id=worse)
    MlflowClient().set_registered_model_alias("simulated", "champion", "3")
    compare(told)
    assert champion_run() == worse
    MlflowClient().set_registered_model_alias("simulated", "champion", "1")
    compare(told)
    assert champion_run() != best


@pytest.mark.parametrize("of_version", [False, True])
def test_a_pinned_champion_stays(of_version: bool, local_store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = config(local_store)
    first, _ = made(told, 0.6), compare(told)
    if of_version:
        MlflowClient().set_model_version_tag("simulated", "1", "ehrtrack.pinned", "true")
    else:
        MlflowClient().set_registered_model_tag("simulated", "ehrtrack.pinned", "true")
    made(told, 0.7)
    comparison, said = compared(told, capsys)
    assert champion_run() == first
    assert comparison.proposed is not None
    assert comparison.proposed.version == "2"
    assert "champion stays: it is pinned by the tag ehrtrack.pinned" in said


def test_a_run_that_could_not_be_judged_is_in_the_table_and_never_champion(
    local_store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = config(local_store)
    lucky = made(told, 0.9, is_judged=False)
    comparison, said = compared(told, capsys)
    assert champion_run() is None
    assert "none of 1 runs could be judged: too few test events" in said
    assert lucky[:8] in comparison.markdown
    judged = made(told, 0.6)
    compare(told)
    assert champion_run() == judged


def test_with_too_few_events_for_a_difference_there_is_a_table_without_it(
    local_store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = config(local_store)
    runs = [made(told, score, table=predictions(score, n_events=2)) for score in (0.6, 0.7)]
    comparison = compare(told)
    assert f"too few events for an interval of the difference: {runs[0]}" in capsys.readouterr().out
    assert all(run[:8] in comparison.markdown for run in runs)
    assert comparison.left_out == {}


BAD = {
    "no predictions": ({"files": ("model", "config")}, "has no artifact 'predictions/test.parquet'.*ehrtrack sync"),
    "another key": ({"key": "2222"}, "2 different keys.*Set the same EHRTRACK_SUBJECT_SECRET"),
    "fewer subjects": ({"table": predictions(0.3).head(100)}, "predict for 100 and 120 subjects"),
    "other outcomes": (
        {"table": predictions(0.3).with_columns(is_event=~pl.col("is_event"))},
        "disagree on the outcome",
    ),
    "no risks": ({"table": predictions(0.3).drop("risk")}, "predictions/test.parquet lacks risk.*ehrtrack sync"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_run_that_cannot_be_compared_is_left_out_aloud(
    case: str, local_store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = config(local_store)
    good = [made(told, 0.6), made(told, 0.62)]
    changes, reason = BAD[case]
    bad = made(told, 0.9, **changes)
    comparison = compare(told)
    assert list(comparison.left_out) == [bad]
    assert pl.Series([comparison.left_out[bad]]).str.contains(f"(?s){reason}").all()
    assert f"- run {bad}: " in capsys.readouterr().out
    assert all(run[:8] in comparison.markdown for run in good)
    assert bad[:8] not in comparison.markdown
    assert champion_run() == good[1]
    record = get_run(comparison.run.run_id)
    assert record.status == "FINISHED"
    assert bad in record.tags["mlflow.note.content"]
    table = pl.read_csv(download(record.run_id, "benchmark/left_out.csv", local_store / "left_out"))
    assert table["run_id"].to_list() == [bad]


def test_damaged_predictions_and_missing_facts_are_left_out(local_store: Path) -> None:
    told = config(local_store)
    good = made(told, 0.6)
    damaged = made(told, 0.9)
    (file,) = (local_store / "mlruns").rglob(f"{damaged}/artifacts/predictions/test.parquet")
    file.write_bytes(file.read_bytes()[:200])
    with tracked_run(experiment="simulated", name="cox", kind="baseline") as unknown:
        pass
    left_out = compare(told).left_out
    assert left_out.keys() == {damaged, unknown.server_run_id}
    assert "is damaged" in left_out[damaged]
    assert "it has no param cfg.baseline.name and no tag fingerprint.cohort" in left_out[unknown.server_run_id]
    assert champion_run() == good


def test_a_run_of_a_task_that_this_version_does_not_know_is_left_out(local_store: Path) -> None:
    told = config(local_store)
    known, unknown = made(told, 0.6), made(told, 0.9, **{"ehrtrack.task": "regression"})
    comparison = compare(told)
    assert "tag ehrtrack.task is 'regression', and this version knows survival" in comparison.left_out[unknown]
    assert champion_run() == known


def test_the_key_that_most_runs_have_is_compared(local_store: Path) -> None:
    """One Cox run of another pod does not leave all others out, though it is the best by validation."""
    told = config(local_store)
    stranger = made(told, 0.9, key="2222")
    for score in (0.6, 0.62, 0.64):
        made(told, score)
    assert list(compare(told).left_out) == [stranger]


def test_a_reference_that_is_a_stranger_itself_is_left_out(local_store: Path) -> None:
    told = config(local_store, baseline={"name": "lasso"})
    others = [made(told, score) for score in (0.6, 0.62, 0.64)]
    stranger = made(config(local_store, baseline={"name": "cox"}), 0.9, table=predictions(0.3).head(100))
    comparison = compare(told)
    assert list(comparison.left_out) == [stranger]
    assert all(run[:8] in comparison.markdown for run in others)


def test_a_best_run_without_its_model_gives_way_to_the_next(
    local_store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = config(local_store)
    good, bare = made(told, 0.6), made(told, 0.9, files=("predictions", "config"))
    compare(told)
    assert champion_run() == good
    assert f"run {bare} cannot be champion: run {bare} has no artifact 'model'" in capsys.readouterr().out


def test_only_bad_runs_make_no_comparison(local_store: Path) -> None:
    told = config(local_store)
    bad = made(told, 0.6, files=("model",))
    with pytest.raises(
        DataError, match=rf"none of 1 runs of study 'simulated' can be compared. Left out:\n- run {bad}"
    ):
        compare(told)


def test_a_value_of_a_sensitivity_analysis_without_predictions_has_a_line_and_no_difference(
    local_store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = config(local_store)
    runs = [made(told, 0.6), made(told, 0.7, files=()), made(told, 0.8), made(told, 0.8, key="2222")]
    first, bare, other, stranger = _points(dict(enumerate(get_run(run_id) for run_id in runs)), told.runtime.cache)
    assert (first.difference, bare.difference, stranger.difference) == (None, None, None)
    assert other.difference is not None
    out = capsys.readouterr().out
    assert f"run {runs[1]} is left out of the differences: run {runs[1]} has no artifact" in out
    assert f"run {runs[3]} is left out of the differences" in out
    assert "predictions/test.parquet" in list_artifacts(runs[0])


def test_a_configuration_that_names_no_split_is_of_the_runs_that_took_the_datasets(
    local_store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = override(config(local_store), {"data.split.rule": "dataset"})
    run_id = made(told, 0.6)
    compared(config(local_store), capsys)
    assert champion_run() == run_id
    other = override(config(local_store), {"data.split.rule": "hash"})
    assert "no run that can be compared has the cohort" in compared(other, capsys)[1]
