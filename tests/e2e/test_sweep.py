"""A sweep on the tracking store: its trials, its best configuration, and going on where it stopped."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest
from whole_study import Study

from ehrtrack.config import load_config
from ehrtrack.tracking.queries import RunRecord, download, list_artifacts, search_runs

TRIALS = ("--config", "sweep.toml", "--search.n_trials", "3")


@pytest.fixture(scope="module")
def swept(study: Study) -> RunRecord:
    assert study.run("sweep", *TRIALS) == 0
    return study.runs(["sweep"])[0]


def children(study: Study, run: RunRecord, kind: str) -> list[RunRecord]:
    with study.at_work():
        return search_runs("simulated", kinds=[kind], status=None, parent_run_id=run.run_id)


def table_of(study: Study, run: RunRecord, folder: Path) -> pl.DataFrame:
    with study.at_work():
        return pl.read_csv(download(run.run_id, "trials.csv", folder))


def test_each_trial_is_a_finished_child_run_with_its_settings(study: Study, swept: RunRecord, tmp_path: Path) -> None:
    trials = children(study, swept, "trial")
    assert len(trials) == 3
    assert {trial.status for trial in trials} == {"FINISHED"}
    table = table_of(study, swept, tmp_path)
    assert table.height == 3
    ranks = sorted(int(trial.params["strategy.rank"]) for trial in trials)
    assert sorted(table["strategy.rank"]) == ranks
    weights = sorted(float(trial.params["objective.lambda_rank"]) for trial in trials)
    assert weights == pytest.approx(sorted(table["objective.lambda_rank"]))
    assert len(set(weights)) == 3


def test_no_trial_looks_at_the_test_subjects(study: Study, swept: RunRecord) -> None:
    for trial in children(study, swept, "trial"):
        assert not [name for name in trial.metrics if name.startswith("test/")]
        with study.at_work():
            assert not [name for name in list_artifacts(trial.run_id) if "test" in name]


def test_the_best_configuration_is_a_file_that_loads_and_was_fitted_for_the_record(
    study: Study, swept: RunRecord, tmp_path: Path
) -> None:
    with study.at_work():
        best = load_config(download(swept.run_id, "best.toml", tmp_path))
    table = table_of(study, swept, tmp_path / "table").drop_nulls("value").sort("value")
    assert best.to_json()["strategy"]["rank"] == table["strategy.rank"][-1]
    assert best.to_json()["objective"]["lambda_rank"] == pytest.approx(table["objective.lambda_rank"][-1])
    (final,) = children(study, swept, "finetune")
    assert final.status == "FINISHED"
    assert int(final.params["strategy.rank"]) == table["strategy.rank"][-1]
    assert final.metrics["kept/c_index"] == pytest.approx(table["value"][-1], abs=1e-9)
    assert "test/c_index" in final.metrics


def test_started_again_it_goes_on_with_the_same_study(study: Study, swept: RunRecord, tmp_path: Path) -> None:
    assert study.run("sweep", "--config", "sweep.toml", "--search.n_trials", "4") == 0
    again = study.runs(["sweep"])[-1]
    assert again.run_id != swept.run_id
    assert len(children(study, again, "trial")) == 1
    first, second = table_of(study, swept, tmp_path / "1"), table_of(study, again, tmp_path / "2")
    assert second.height == 4
    shared = ["number", "strategy.rank", "strategy.dropout", "objective.lambda_rank"]
    assert second.head(3).select(shared).equals(first.select(shared))


def test_started_again_when_all_trials_are_done_it_tries_none(study: Study, swept: RunRecord) -> None:
    assert study.run("sweep", "--config", "sweep.toml", "--search.n_trials", "3") == 0
    assert children(study, study.runs(["sweep"])[-1], "trial") == []
