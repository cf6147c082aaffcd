"""Sweeps by folds and by two metrics, of networks and of baselines; what they leave on the tracking server."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from simulated import Population, study, write_dataset

from ehrtrack.config import RunConfig, load_config
from ehrtrack.errors import ConfigError
from ehrtrack.recipes.report import report
from ehrtrack.recipes.sweep import sweep
from ehrtrack.study_file import to_toml
from ehrtrack.tracking.client.queries import RunRecord, download, get_run, list_artifacts, search_runs
from ehrtrack.tracking.names import TRIAL, TRIAL_STATE


def configuration(folder: Path, search: dict[str, Any], **sections: Any) -> RunConfig:
    if not (folder / "meds").exists():
        write_dataset(folder / "meds", Population(n_subjects=160))
    train = {"epochs": 1, "batch_tokens": 1024}
    runtime = {"cache": str(folder / "cache"), "device": "cpu", "threads": 1}
    values = {"strategy": {"name": "scratch"}, "train": train, "runtime": runtime} | sections
    return study(folder / "meds", folder / "cache", search={"refits": 1, "n_startup_trials": 1} | search, **values)


def runs(kind: str) -> list[RunRecord]:
    return search_runs("simulated", kinds=[kind], status=None)


def table_of(run_id: str, name: str, folder: Path) -> pl.DataFrame:
    return pl.read_csv(download(run_id, name, folder))


def test_a_trial_by_folds_is_fitted_on_all_but_each_and_has_the_mean(local_store: Path) -> None:
    parameters = {"train.lr": {"low": 1e-4, "high": 1e-2, "log": True}}
    result = sweep(configuration(local_store, {"n_trials": 2, "folds": 2, "pruner": "none", "parameters": parameters}))
    trials = runs("trial")
    assert [(run.tags[TRIAL], run.params["data.fold"]) for run in trials] == [
        (number, fold) for number in ("1", "2") for fold in ("1/2", "2/2")
    ]
    n_held = [run.metrics["cohort/n_validation"] for run in trials]
    assert n_held[0] + n_held[1] == trials[0].metrics["cohort/n_train"] + n_held[0]  # the other fold trains
    assert {run.tags[TRIAL_STATE] for run in trials} == {"complete"}
    assert trials[0].name.startswith("trial 1 · fold 1/2 · lr 0.00")
    assert not [name for run in trials for name in run.metrics if name.startswith("test/")]
    table = table_of(result.run_id, "trials.csv", local_store / "table")
    means = [sum(run.metrics["kept/c_index"] for run in trials[n : n + 2]) / 2 for n in (0, 2)]
    assert table["c_index"].to_list() == pytest.approx(means)
    assert table["is_default"].to_list() == [True, False]
    best = load_config(download(result.run_id, "best.toml", local_store / "best"))
    assert best.data.fold == ""
    parent = get_run(result.run_id)
    assert {"report/index.html", "report/figures/history.png"} <= set(list_artifacts(result.run_id))
    assert "2-fold cross-fitted C-index" in parent.tags["mlflow.note.content"]
    fits = {run.name.split(" ")[0]: run for run in runs("finetune")}
    tested = fits.get("best", fits["defaults"]).metrics["test/c_index"]
    assert parent.metrics["sweep/optimism"] == pytest.approx(max(means) - tested)


def test_two_metrics_give_a_front_and_a_setting_is_drawn_where_its_condition_is_met(local_store: Path) -> None:
    parameters = {
        "train.epochs": {"choices": [2, 1]},
        "train.lr": {"low": 1e-3, "high": 1e-2, "when": {"train.epochs": 2}},
    }
    search = {"n_trials": 3, "metrics": ["c_index", "ibs"], "parameters": parameters, "sampler": "random"}
    result = sweep(configuration(local_store, search))
    table = table_of(result.run_id, "trials.csv", local_store / "table")
    front = table_of(result.run_id, "front.csv", local_store / "front")
    rows = table.to_dicts()

    def is_beaten(row: dict[str, Any]) -> bool:
        gains = [(other["c_index"] - row["c_index"], row["ibs"] - other["ibs"]) for other in rows]
        return any(min(gain) >= 0 and max(gain) > 0 for gain in gains)

    assert front["trial"].to_list() == [row["trial"] for row in rows if not is_beaten(row)]
    assert table["train.lr"].is_null().to_list() == [n_epochs == 1 for n_epochs in table["train.epochs"]]
    assert table["train.epochs"].to_list()[0] == 1  # the configuration's own
    assert "report/figures/front.png" in list_artifacts(result.run_id)


def test_baselines_are_searched_by_the_same_rule_and_the_report_is_made_again_from_the_server(
    local_store: Path,
) -> None:
    search = {
        "recipe": "baseline",
        "folds": 2,
        "n_trials": 2,
        "pruner": "none",
        "parameters": {"baseline.l1_ratio": {"low": 0.2, "high": 1.0}},
    }
    config = configuration(local_store, search, baseline={"name": "cox", "penalties": [0.1]})
    result = sweep(config)
    assert [run.params["data.fold"] for run in runs("trial")] == ["1/2", "2/2"] * 2
    fits = runs("baseline")
    assert {run.status for run in fits} == {"FINISHED"}
    assert len(fits) <= 2  # one of each: it knows no chance
    searched = json.loads(download(result.run_id, "sweep/search.json", local_store / "search").read_text())
    assert [trial["user_attrs"]["slot"] for trial in searched["trials"]] == [0, 1]
    file = local_store / "sweep.toml"
    file.write_text(to_toml({"study": "simulated", "data.path": str(config.data.path)}))
    page = report(file, local_store / "again")
    assert page.read_text() == download(result.run_id, "report/index.html", local_store / "kept").read_text()


def test_what_a_sweep_cannot_do_is_told_at_once(local_store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"search\.metrics names auroc; of these labels there are: c_index, ibs"):
        sweep(
            configuration(
                local_store, {"metrics": ["c_index", "auroc"], "parameters": {"train.lr": {"choices": [0.1]}}}
            )
        )
    monkeypatch.setenv("EHRTRACK_OFFLINE", "1")
    with pytest.raises(ConfigError, match="the workers of a sweep find on the tracking server"):
        sweep(configuration(local_store, {}, strategy={"name": "lora"}))
    assert search_runs("simulated", status=None) == []
