"""Splits by rule, gaps, delays and few labels in whole runs: what is fitted, judged, kept, and predicted with."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from simulated import Population, study_values, write_dataset

from ehrtrack.config import RunConfig, parse_config, parse_run_config
from ehrtrack.data.cohort import build_cohort
from ehrtrack.data.events import MedsDataset, open_dataset
from ehrtrack.data.importing import import_dataset
from ehrtrack.data.split_rules import SPLIT_TABLE
from ehrtrack.data.split_settings import ColumnSplit, DatasetSplit, SplitConfig
from ehrtrack.data.twins import unchanged
from ehrtrack.errors import ConfigError
from ehrtrack.pipeline.champion import _settings
from ehrtrack.pipeline.predictor import load_predictor
from ehrtrack.pipeline.prepare import (
    check_base_split,
    prepare_cohort,
    prepare_records,
    settle,
    tokenise_cohort,
    tokenise_records,
)
from ehrtrack.pipeline.run import privacy_of
from ehrtrack.recipes.baseline import baseline
from ehrtrack.recipes.negative_controls import Twins, _inside
from ehrtrack.tracking.client.queries import download
from ehrtrack.training.ranks import join_ranks

pytestmark = pytest.mark.usefixtures("undrawn_figures")

N_SUBJECTS = 240
TIME = {"rule": "time", "train_before": "2016-07-01", "test_from": "2017-01-01", "validation": 0.3}


def write_splits(folder: Path, n_subjects: int = N_SUBJECTS) -> dict[int, str]:
    """The last 60 are held out, the 40 before them tune."""
    splits = {s: "held_out" if s > 180 else "tuning" if s > 140 else "train" for s in range(1, n_subjects + 1)}
    table = pl.DataFrame({"subject_id": list(splits), "split": list(splits.values())})
    table.write_parquet(folder / SPLIT_TABLE, mkdir=True)
    return splits


def with_sites(dataset: MedsDataset) -> MedsDataset:
    """Every subject is in one of six sites."""
    events = dataset.scan().collect()
    subjects = events.select("subject_id").unique().sort("subject_id")
    sites = subjects.with_columns(code=pl.format("SITE//{}", pl.col("subject_id") % 6))
    frame = pl.concat([events, sites.cast({"subject_id": pl.Int64})], how="diagonal")
    frame.sort("subject_id", "time", nulls_last=False).write_parquet(dataset.path / "data" / "0.parquet")
    return open_dataset(dataset.path)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> MedsDataset:
    folder = tmp_path_factory.mktemp("rules") / "meds"
    return with_sites(write_dataset(folder, Population(n_subjects=N_SUBJECTS, hazard_ratio=8.0)))


def config_of(folder: Path, cache: Path, *, cohort: dict[str, Any] | None = None, **data: Any) -> RunConfig:
    values = study_values(folder, cache, baseline={"name": "cox", "n_candidates": 2})
    values["data"] |= data
    values["cohort"] |= cohort or {}
    values["runtime"] |= {"log_raw_subjects": True}
    return parse_config(values)


def predicted(run_id: str, folder: Path, split: str = "test") -> pl.DataFrame:
    return pl.read_parquet(download(run_id, f"predictions/{split}.parquet", folder / run_id))


def logged(run_id: str, folder: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(download(run_id, "run_config.json", folder / run_id).read_text())
    return values


def test_an_imported_split_is_that_of_a_run_which_names_no_rule(local_store: Path, capsys) -> None:
    """The case of a MEDS dataset with subject_splits.parquet: nobody who is held out trains."""
    write_dataset(local_store / "raw", Population(n_subjects=N_SUBJECTS, hazard_ratio=8.0))
    splits = write_splits(local_store / "raw")
    report = import_dataset("meds", local_store / "raw", local_store / "meds", progress=lambda line: None)
    assert "metadata/subject_splits.parquet" in report.to_text()
    config = config_of(local_store / "meds", local_store / "cache")
    run = baseline(config)
    assert "has a split of its own" in capsys.readouterr().out
    of_split = {name: {s for s, held in splits.items() if held == name} for name in ("tuning", "held_out")}
    assert set(predicted(run.run_id, local_store)["subject_id"]) == of_split["held_out"]
    assert set(predicted(run.run_id, local_store, "validation")["subject_id"]) == of_split["tuning"]
    stored = logged(run.run_id, local_store)
    assert stored["data"]["split"] == {"rule": "dataset"}
    assert parse_run_config(stored).data.split == DatasetSplit(rule="dataset")
    values = config.to_json()
    del values["data"]["split"]["rule"]
    with pytest.raises(ConfigError, match="has a split of its own"):  # shares and a seed, and no rule
        baseline(parse_config(values))
    assert settle(parse_run_config(values)).data.split == SplitConfig()  # that of a run of before stands


@pytest.mark.parametrize(
    ("split", "test_subjects"),
    [
        (TIME, pl.col("index_date").dt.year() >= 2017),
        (
            {"rule": "column", "code_prefix": "SITE//", "test": ["1", "4"], "validation": ["0"]},
            (pl.col("subject_id") % 6).is_in([1, 4]),
        ),
    ],
)
def test_a_baseline_by_rule_is_judged_on_the_subjects_of_the_rule(
    split: dict[str, Any], test_subjects: pl.Expr, data: MedsDataset, local_store: Path
) -> None:
    config = config_of(data.path, local_store / "cache", split=split)
    run = baseline(config)
    assert config.cohort is not None
    whole = build_cohort(data, config.cohort, SplitConfig()).subjects
    expected = whole.filter(test_subjects)["subject_id"]
    assert sorted(predicted(run.run_id, local_store)["subject_id"]) == expected.to_list()
    assert run.metrics["test/c_index"] > 0.55
    assert parse_run_config(logged(run.run_id, local_store)).data.split == config.data.split


def test_a_baseline_with_a_gap_a_delay_and_few_labels(data: MedsDataset, local_store: Path) -> None:
    cohort = {"gap_days": 7, "n_labels": 64, "horizon_days": 300}
    run = baseline(config_of(data.path, local_store / "cache", cohort=cohort, delay_hours={"RISK//": 24 * 30}))
    attrition = pl.read_csv(download(run.run_id, "cohort/attrition.csv", local_store / "attrition"))
    assert attrition["step"].to_list()[-3:] == [
        "no outcome within gap_days",
        "follow-up after gap_days",
        "drawn by cohort.n_labels, or for testing",
    ]
    summary = pl.read_csv(download(run.run_id, "cohort/summary.csv", local_store / "summary"))
    assert summary.filter(pl.col("split") == "train")["n_subjects"].item() == 64
    assert predicted(run.run_id, local_store)["follow_up_days"].max() <= 300


def test_a_model_predicts_with_the_delays_that_it_was_trained_with(data: MedsDataset, local_store: Path) -> None:
    """RISK codes raise the risk; those of the last five hours do so only where they are known by then."""
    events = data.scan().collect()
    index = events.filter(pl.col("code") == "INDEX").select("subject_id", prediction_time="time").head(20)
    is_earlier = pl.col("time").is_null() | (pl.col("time") <= pl.col("prediction_time"))
    earlier = events.join(index, on="subject_id").filter(is_earlier)
    risky = index.with_columns(time=pl.col("prediction_time") - timedelta(hours=5), code=pl.lit("RISK//0"))
    without = earlier.filter(pl.col("code") != "RISK//0").drop("prediction_time")
    added = pl.concat([without, risky.drop("prediction_time")], how="diagonal").sort(
        "subject_id", "time", nulls_last=False
    )
    moved = {}
    for hours in (4, 6):
        run = baseline(config_of(data.path, local_store / "cache", delay_hours={"RISK//*": hours}))
        model = load_predictor(download(run.run_id, "model", local_store / f"model-{hours}"))
        assert model.folder.config.data.delay_hours == {"RISK//*": hours}
        tables = [model.predict_events(frame, index, tells_causes=False) for frame in (without, added)]
        change = tables[0]["risk"] - tables[1]["risk"]
        moved[hours] = (change.abs() > 1e-9).sum()  # sums of a record may differ in their last bit
    assert moved == {4: 20, 6: 0}


def test_pretraining_reads_in_retrospect_and_fine_tuning_what_is_known(data: MedsDataset, tmp_path: Path) -> None:
    plain, late = (config_of(data.path, tmp_path, delay_hours=asked) for asked in ({}, {"RISK//": 24 * 1000}))
    assert prepare_records(late).store.fingerprint == prepare_records(plain).store.fingerprint
    assert not [code for code in prepare_cohort(late).vocabulary.tokens if code.startswith("RISK//")]
    assert [code for code in prepare_cohort(plain).vocabulary.tokens if code.startswith("RISK//")]


def test_slices_and_recipes_split_alike(local_store: Path) -> None:
    write_dataset(local_store / "meds", Population(n_subjects=N_SUBJECTS))
    write_splits(local_store / "meds")
    config = config_of(local_store / "meds", local_store / "cache", delay_hours={"RISK//": 24})
    settled = settle(config)
    for tokenise, prepare in ((tokenise_records, prepare_records), (tokenise_cohort, prepare_cohort)):
        made = tokenise(config, (1, 1))
        assert made is not None
        assert made.fingerprint == prepare(settled).store.fingerprint


def test_a_base_whose_groups_were_others_is_refused(data: MedsDataset, tmp_path: Path) -> None:
    sites = pl.DataFrame({"subject_id": range(1, N_SUBJECTS + 1)}).with_columns(site=pl.col("subject_id") % 6)
    sites.write_parquet(tmp_path / "sites.parquet")
    split = {"rule": "column", "column": "site", "path": str(tmp_path / "sites.parquet"), "test": ["1", "4"]}
    config = config_of(data.path, tmp_path, split=split | {"validation": ["0"]})
    base = prepare_records(config).fingerprints()
    cohort = prepare_cohort(config).cohort
    check_base_split(data, cohort, config.data.split, base)
    (sites.with_columns(site=pl.col("subject_id") % 5)).write_parquet(tmp_path / "sites.parquet")
    with pytest.raises(ConfigError, match="whose table has changed since"):
        check_base_split(data, cohort, config.data.split, base)
    check_base_split(data, cohort, config.data.split, base | {"data": "another"})  # of other subjects


def test_by_time_test_subjects_whose_past_was_read_in_pretraining_are_counted(
    data: MedsDataset, tmp_path: Path, capsys
) -> None:
    config = config_of(data.path, tmp_path, split=TIME)
    base, cohort = prepare_records(config), prepare_cohort(config).cohort
    training = set(base.store.subject_ids[base.rows["train"]].tolist())
    test = set(cohort.subjects.filter(pl.col("split") == "test")["subject_id"])
    capsys.readouterr()
    check_base_split(data, cohort, config.data.split, base.fingerprints())
    told = f"of {len(test)} test subjects {len(training & test)} have a record before split.train_before = 2016-07-01"
    assert told in capsys.readouterr().out
    assert 0 < len(training & test) < len(test)


def test_twins_of_a_cohort_keep_its_split(data: MedsDataset, tmp_path: Path) -> None:
    sites = pl.DataFrame({"subject_id": range(1, N_SUBJECTS + 1)}).with_columns(
        site=pl.col("subject_id") % 6, source_id=pl.col("subject_id").cast(pl.String)
    )
    sites.write_parquet(data.path / "metadata" / "subjects.parquet", mkdir=True)  # which twins do not have
    for split in (TIME, {"rule": "column", "column": "site", "test": ["1"], "validation": ["0"]}):
        config = config_of(data.path, tmp_path / split["rule"], split=split, cohort={"n_labels": 60})
        assert config.cohort is not None
        cohort = build_cohort(data, config.cohort, config.data.split)
        folder = tmp_path / split["rule"] / "twins"
        twins = Twins(_inside(config, folder), data, cohort, None, join_ranks("cpu"), folder)
        columns = ["subject_id", "is_event", "split"]
        assert twins.records("plain", unchanged).cohort.subjects.select(columns).equals(cohort.subjects.select(columns))


def test_a_follow_up_that_ends_on_a_date_hides_days(data: MedsDataset, tmp_path: Path) -> None:
    assert privacy_of(config_of(data.path, tmp_path, split=TIME)).hides_days
    assert not privacy_of(config_of(data.path, tmp_path)).hides_days


def test_cohorts_of_runs_are_compared_by_what_their_settings_ask() -> None:
    cohort = {"labels": "here/l.csv", "horizon_days": 90}
    before = _settings(cohort, {"seed": 0, "train": 0.7, "validation": 0.15})
    assert _settings(cohort | {"labels": "there/l.csv", "gap_days": 0}, SplitConfig().model_dump()) == before
    assert _settings(cohort, {"rule": "dataset"}) != before
    sites = [ColumnSplit(rule="column", column="site", path=path).model_dump(mode="json") for path in ("a", "b")]
    assert _settings(cohort, sites[0]) == _settings(cohort, sites[1])
