"""A sweep on the tracking store: its trials, its best configuration, and going on where it stopped."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import polars as pl
import pytest
from planted import FIRST_SUBJECT
from simulated import Population, write_dataset
from whole_study import Study

from ehrtrack.config import load_config
from ehrtrack.tracking.client.connection import client
from ehrtrack.tracking.client.queries import RunRecord, download, list_artifacts, search_runs

pytestmark = pytest.mark.usefixtures("undrawn_figures")

TRIALS = ("--config", "sweep.toml", "--search.n_trials", "3")
"""The first has the defaults, and two are drawn."""


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
    table = table_of(study, swept, tmp_path / "table").drop_nulls("c_index")
    table = table.sort("c_index", -pl.col("number"))  # of equals the first trial is the best
    assert best.to_json()["strategy"]["rank"] == table["strategy.rank"][-1]
    assert best.to_json()["objective"]["lambda_rank"] == pytest.approx(table["objective.lambda_rank"][-1])
    fits = children(study, swept, "finetune")
    of_best = [run for run in fits if run.name.startswith("best")] or fits
    assert {run.status for run in fits} == {"FINISHED"}
    assert [int(run.params["runtime.seed"]) for run in of_best] == [0, 1]
    assert {int(run.params["strategy.rank"]) for run in of_best} == {table["strategy.rank"][-1]}
    assert of_best[0].metrics["kept/c_index"] == pytest.approx(table["c_index"][-1], abs=1e-9)
    assert all("test/c_index" in run.metrics for run in fits)


def test_started_again_it_goes_on_with_the_same_study(study: Study, swept: RunRecord, tmp_path: Path) -> None:
    assert study.run("sweep", "--config", "sweep.toml", "--search.n_trials", "4") == 0
    again = study.runs(["sweep"])[-1]
    assert again.run_id != swept.run_id
    assert len(children(study, again, "trial")) == 1
    first, second = table_of(study, swept, tmp_path / "1"), table_of(study, again, tmp_path / "2")
    assert second.height == 4
    shared = ["number", "strategy.rank", "strategy.dropout", "objective.lambda_rank"]
    assert second.head(3).select(shared).equals(first.select(shared))


def test_started_again_when_it_is_done_it_tells_the_result_and_does_nothing(
    study: Study, swept: RunRecord, capsys: pytest.CaptureFixture[str]
) -> None:
    known = {run.run_id for run in study.runs(status=None)}
    assert study.run("sweep", *TRIALS) == 0
    assert {run.run_id for run in study.runs(status=None)} == known
    assert f"this sweep of 3 trials is done: run {swept.run_id}, best validation" in capsys.readouterr().out


def test_the_best_configuration_names_the_base_itself(study: Study, swept: RunRecord, tmp_path: Path) -> None:
    with study.at_work():
        best = load_config(download(swept.run_id, "best.toml", tmp_path))
    base = study.runs(["pretrain"])[0].run_id
    assert best.init.run == swept.params["init.run"] == swept.tags["fingerprint.base"] == base


def test_over_another_seed_or_other_data_a_new_study_begins_aloud(
    study: Study, swept: RunRecord, capsys: pytest.CaptureFixture[str], simulated_data: Path, tmp_path: Path
) -> None:
    one_trial = ("--config", "sweep.toml", "--search.n_trials", "1", "--train.epochs", "1")
    data = tmp_path / "meds"
    shutil.copytree(simulated_data, data)
    assert study.run("sweep", *one_trial, "--data.path", str(data)) == 0
    assert "inputs changed" not in capsys.readouterr().out
    first = study.runs(["sweep"])[-1]
    assert study.run("sweep", *one_trial, "--data.path", str(data), "--runtime.seed", "1") == 0
    assert "inputs changed since the last sweep with these settings: seed (then 0, now 1)" in capsys.readouterr().out
    shutil.rmtree(data)
    write_dataset(data, Population(n_subjects=380, first_subject=FIRST_SUBJECT))
    assert study.run("sweep", *one_trial, "--data.path", str(data), "--runtime.seed", "1") == 0
    told = capsys.readouterr().out
    assert "a new study begins" in told
    assert re.search(r"cohort \(then \w+, now \w+\), data \(then \w+, now \w+\); a new study", told)
    runs = study.runs(["sweep"])
    last = runs[runs.index(next(run for run in runs if run.run_id == first.run_id)) :]
    assert [len(children(study, run, "trial")) for run in last] == [1, 1, 1]


def test_after_a_new_pretraining_a_new_study_begins_aloud(
    study: Study, swept: RunRecord, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert study.run("pretrain", "--config", "pretrain.toml", "--train.epochs", "1") == 0
    new = study.runs(["pretrain"])[-1].run_id
    assert study.run("sweep", *TRIALS) == 0
    told = capsys.readouterr().out
    assert re.search(rf"base \(then \w+, now {new}\), base_weights \(.*\); a new study begins", told)
    again = study.runs(["sweep"])[-1]
    assert len(children(study, again, "trial")) == 3
    assert again.params["init.run"] == new != swept.params["init.run"]
    with study.at_work():
        assert load_config(download(again.run_id, "best.toml", tmp_path)).init.run == new
        client().delete_run(new)  # other tests take the latest
