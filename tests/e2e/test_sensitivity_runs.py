"""A sensitivity analysis on the tracking store: one child run a value, one table, and going on where it stopped."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest
from whole_study import Study

from ehrtrack.recipes.sensitivity import FORMER_KEY_TAG, KEY_TAG
from ehrtrack.tracking import names
from ehrtrack.tracking.client.connection import client
from ehrtrack.tracking.client.queries import RunRecord, download, list_artifacts, search_runs

pytestmark = pytest.mark.usefixtures("undrawn_figures")

VALUES = ("--config", "finetune.toml", "--train.epochs", "1", "--sensitivity.values")


@pytest.fixture(scope="module")
def analysis(study: Study) -> RunRecord:
    assert study.run("sensitivity", *VALUES, "[0.0, 0.5]") == 0
    return study.runs(["sensitivity"])[0]


def children(study: Study, run: RunRecord) -> list[RunRecord]:
    with study.at_work():
        return search_runs("simulated", kinds=["finetune"], parent_run_id=run.run_id)


def table_of(study: Study, run: RunRecord, folder: Path) -> pl.DataFrame:
    with study.at_work():
        return pl.read_csv(download(run.run_id, "sensitivity.csv", folder))


def test_each_value_is_a_run_of_its_own_and_a_line_of_the_table(
    study: Study, analysis: RunRecord, tmp_path: Path
) -> None:
    runs = {float(run.params["objective.lambda_rank"]): run for run in children(study, analysis)}
    assert sorted(runs) == [0.0, 0.5]
    table = table_of(study, analysis, tmp_path)
    assert table["value"].to_list() == [0.0, 0.5]
    assert table["run_id"].to_list() == [runs[0.0].run_id, runs[0.5].run_id]
    assert table["c_index"].to_list() == [runs[value].metrics["test/c_index"] for value in (0.0, 0.5)]
    assert table["difference"][0] is None
    expected = runs[0.5].metrics["test/c_index"] - runs[0.0].metrics["test/c_index"]
    assert table["difference"][1] == pytest.approx(expected, abs=1e-9)
    assert analysis.params["runtime.threads"] == "1"  # the number it took, for all of its values
    with study.at_work():
        assert {"sensitivity.md", "plots/sensitivity.png"} <= set(list_artifacts(analysis.run_id))


def test_started_again_it_fits_only_what_is_new(study: Study, analysis: RunRecord, tmp_path: Path) -> None:
    assert study.run("sensitivity", *VALUES, "[0.0, 0.5, 1.0]") == 0
    again = study.runs(["sensitivity"])[-1]
    assert [float(run.params["objective.lambda_rank"]) for run in children(study, again)] == [1.0]
    table = table_of(study, again, tmp_path / "again")
    assert table["run_id"][:2].to_list() == table_of(study, analysis, tmp_path / "first")["run_id"].to_list()


def test_values_of_runs_by_their_former_name_are_not_fitted_again(study: Study, analysis: RunRecord) -> None:
    with study.at_work():
        for run in study.runs(["sensitivity"]):
            client().set_tag(run.run_id, names.KIND, "frontier")
            client().set_tag(run.run_id, FORMER_KEY_TAG, run.tags[KEY_TAG])
            client().delete_tag(run.run_id, KEY_TAG)
    assert study.run("sensitivity", *VALUES, "[0.0, 0.5]") == 0
    assert children(study, study.runs(["sensitivity"])[-1]) == []


def test_over_another_seed_no_value_is_taken_from_before(study: Study, analysis: RunRecord) -> None:
    assert study.run("sensitivity", *VALUES, "[0.0, 0.5]", "--runtime.seed", "1") == 0
    other = study.runs(["sensitivity"])[-1]
    assert len(children(study, other)) == 2
    base = study.runs(["pretrain"])[-1].run_id
    assert {run.params["init.run"] for run in [other, *children(study, other)]} == {base}


def test_a_setting_that_is_not_there_ends_it_before_any_run(study: Study) -> None:
    n_before = len(study.runs(["sensitivity"]))
    assert study.run("sensitivity", *VALUES, "[0, 1]", "--sensitivity.parameter", "objective.lamda") == 2
    assert len(study.runs(["sensitivity"])) == n_before
