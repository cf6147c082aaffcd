"""Comparisons of runs over seeds and splits: one row a configuration, and the median run as champion."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from mlflow import MlflowClient
from simulated import study

from ehrtrack.config import RunConfig, override
from ehrtrack.recipes.compare import compare
from ehrtrack.tracking.client.queries import download, get_run, list_artifacts
from ehrtrack.tracking.run import tracked_run

pytestmark = [
    pytest.mark.usefixtures("undrawn_figures"),
    pytest.mark.filterwarnings("ignore:.*[Tt]ype hint:UserWarning"),  # of mlflow's own classes
]

N_SUBJECTS = 120


def config(folder: Path, **values: Any) -> RunConfig:
    cohort = {
        "horizon_days": 365,
        "index": {"rule": "first_code", "codes": ["INDEX$"]},
        "outcome": {"codes": ["OUTCOME$"]},
    }
    told = study(folder / "no data are read", folder / "cache", cohort=cohort)
    return override(told, {name.replace("__", "."): value for name, value in values.items()})


def predictions(split: int, noise: float) -> pl.DataFrame:
    rng = np.random.default_rng(split)
    truth = rng.normal(size=N_SUBJECTS)
    return pl.DataFrame(
        {
            "subject_id": [f"{1000 * split + number:032x}" for number in range(N_SUBJECTS)],
            "follow_up_days": rng.exponential(np.exp(-truth)),
            "is_event": rng.random(N_SUBJECTS) < 0.7,
            "risk": truth + np.random.default_rng(99).normal(scale=noise, size=N_SUBJECTS),
        }
    )


def made(
    told: RunConfig, kept: float, *, test: float = 0.6, noise: float = 1.0, is_baseline: bool | None = None
) -> str:
    """A finished run as a recipe logs it: a baseline, or a fine-tuning where a base is told."""
    split = told.data.split.seed if told.data.split.rule == "hash" else 0
    is_baseline = told.init.run == "" if is_baseline is None else is_baseline
    kind, section = ("baseline", "baseline") if is_baseline else ("finetune", "strategy")
    sections = ("study", "data", "cohort", section, "model", "init", "runtime")
    with tracked_run(experiment="simulated", name=kind, kind=kind, params=told.to_params(sections)) as run:
        run.set_tags({"fingerprint.cohort": f"cohort-{split}", "ehrtrack.subject_key": "1111"})
        run.set_tags({"fingerprint.data": "data", "ehrtrack.horizon_days": "365"})
        bounds = {"test/c_index_lower": 0.5, "test/c_index_upper": 0.7}
        run.log_metrics({"kept/c_index": kept, "test/c_index": test, "test/ibs": 0.1} | bounds, step=0)
        run.log_metrics({"cohort/n_train": 480, "cohort/n_test": N_SUBJECTS}, step=0)
        run.log_table(predictions(split, noise), "predictions/test.parquet")
        run.log_text("{}", "model/baseline.json")
        run.log_json(told.to_json(), "run_config.json")
    return str(run.server_run_id)


def pretrained(told: RunConfig) -> str:
    with tracked_run(
        experiment="simulated",
        name="pretrain",
        kind="pretrain",
        params=told.to_params(("study", "data", "model", "runtime")),
    ) as run:
        pass
    return str(run.server_run_id)


def champion_run() -> str:
    return str(MlflowClient().get_model_version_by_alias("simulated", "champion").run_id)


def table_of(run_id: str, folder: Path, end: str = "") -> pl.DataFrame:
    (name,) = (
        name
        for name in list_artifacts(run_id)
        if name.startswith("benchmark/repeats_")
        and name.endswith(".csv")
        and name.endswith("_differences.csv") == bool(end)
    )
    return pl.read_csv(download(run_id, name, folder / "fetched"))


def test_three_seeds_are_one_row_and_the_median_run_is_champion(
    local_store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    steady = [made(config(local_store, runtime__seed=seed), 0.69) for seed in (0, 1)]
    scores = {0: 0.60, 1: 0.80, 2: 0.74}
    lucky = {
        seed: made(config(local_store, runtime__seed=seed, baseline__name="gru"), kept) for seed, kept in scores.items()
    }
    capsys.readouterr()
    comparison = compare(config(local_store))
    table = table_of(comparison.run.run_id, local_store)
    assert table["configuration"].to_list() == ["gru", "cox"]  # by means of .713 and .69
    assert table["n_repeats"].to_list() == [3, 2]
    assert champion_run() == lucky[2]  # of .60, .74 and .80
    assert "| configuration |   n |" in comparison.markdown
    assert "Best by validation is gru" in comparison.markdown
    assert comparison.markdown in capsys.readouterr().out
    assert steady[0] in table["run_ids"][1]


def test_the_luckiest_seed_does_not_make_its_configuration_the_best(local_store: Path) -> None:
    steady = [made(config(local_store, runtime__seed=seed), 0.70 + seed / 1000) for seed in (0, 1, 2)]
    for seed, kept in enumerate((0.60, 0.80, 0.62)):
        made(config(local_store, runtime__seed=seed, baseline__name="gru"), kept)
    compare(config(local_store))
    assert champion_run() == steady[1]


def test_splits_are_repeats_and_differences_are_over_them(local_store: Path) -> None:
    for split, gain in enumerate((0.05, 0.06, 0.055, 0.05, 0.06)):
        told = config(local_store, data__split__seed=split)
        made(told, 0.7, test=0.70)
        base = pretrained(told)  # each split has a pretraining of its own
        made(
            config(local_store, data__split__seed=split, strategy__name="lora", init__run=base), 0.75, test=0.70 + gain
        )
    comparison = compare(config(local_store))
    table = table_of(comparison.run.run_id, local_store)
    assert table.select("configuration", "n_splits", "finding").rows() == [("lora", 5, "better"), ("cox", 5, None)]
    (c_index,) = (
        table_of(comparison.run.run_id, local_store, "differences").filter(metric="c_index").iter_rows(named=True)
    )
    assert c_index["method"] == "Nadeau and Bengio over splits"
    assert c_index["difference"] == pytest.approx(0.055)
    assert get_run(champion_run()).tags["fingerprint.cohort"] == "cohort-0"  # of the split that it was told


def test_another_pretraining_is_another_configuration(local_store: Path) -> None:
    bases = {size: pretrained(config(local_store, model__dropout=size)) for size in (0.1, 0.2)}
    for seed in (0, 1):
        for base in bases.values():
            made(config(local_store, runtime__seed=seed, strategy__name="full", init__run=base), 0.7)
    table = table_of(compare(config(local_store)).run.run_id, local_store)
    assert sorted(table["configuration"].to_list()) == ["full · dropout 0.1", "full · dropout 0.2"]
    assert table["n_repeats"].to_list() == [2, 2]


def test_a_baseline_is_one_configuration_whatever_base_its_file_names_for_networks(local_store: Path) -> None:
    base = pretrained(config(local_store))
    for seed, named in enumerate(("", "latest", base)):
        made(config(local_store, runtime__seed=seed, init__run=named), 0.7, is_baseline=True)
        made(config(local_store, runtime__seed=seed, strategy__name="full", init__run=base), 0.6)
    table = table_of(compare(config(local_store)).run.run_id, local_store)
    assert table.select("configuration", "n_repeats").rows() == [("cox", 3), ("full", 3)]


def test_a_run_that_was_made_again_counts_once(local_store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = made(config(local_store), 0.6)
    again = made(config(local_store), 0.7)
    comparison = compare(config(local_store))
    assert "configuration" not in comparison.markdown  # one seed: runs are rows, as they were
    assert champion_run() == again
    made(config(local_store, runtime__seed=1), 0.65)
    comparison = compare(config(local_store))
    assert table_of(comparison.run.run_id, local_store)["n_repeats"].to_list() == [2]
    assert f"Made again with the same seed on the same split, and left out: {first}." in comparison.markdown


def test_the_reference_is_a_setting(local_store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made(config(local_store), 0.6, noise=2.0)
    made(config(local_store, baseline__name="gru"), 0.7, noise=0.1)
    comparison = compare(config(local_store, compare__reference="gru"))
    assert "difference to gru (95 % interval)" in comparison.markdown
    capsys.readouterr()
    compare(config(local_store, compare__reference="lasso"))
    assert "is of compare.reference = 'lasso'; there are no differences" in capsys.readouterr().out
