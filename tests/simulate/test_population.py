"""What `ehrtrack simulate` writes: reproducible, independent of its size, readable by the rest, and true."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from lifelines.utils import concordance_index
from sklearn.ensemble import HistGradientBoostingClassifier

from ehrtrack.cli import main
from ehrtrack.data.events import BIRTH, DEATH, open_dataset
from ehrtrack.data.labels import read_labels
from ehrtrack.errors import ConfigError, DataError
from ehrtrack.simulate.check import check_truth, coding_distance, concept_counts, log_hazard_from_records
from ehrtrack.simulate.dictionary import OUTCOME
from ehrtrack.simulate.population import simulate
from ehrtrack.simulate.world import load_world


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written("target_site", 2500, tmp_path_factory.mktemp("target"))


@pytest.fixture(scope="module")
def pretraining(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written("pretraining_site", 1000, tmp_path_factory.mktemp("pretraining"))


def written(world: str, n_subjects: int, folder: Path, *dials: str, seed: int = 0) -> Path:
    out = folder / "population"
    simulate(load_world(world, dials), out, n_subjects=n_subjects, seed=seed)
    return out


def digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def events(folder: Path) -> pl.DataFrame:
    return open_dataset(folder).scan().collect()


def c_index(folder: Path, column: str) -> float:
    labels, truth = pl.read_parquet(folder / "labels.parquet"), pl.read_parquet(folder / "truth.parquet")
    return float(concordance_index(labels["follow_up_days"], -truth[column].to_numpy(), labels["is_event"]))


def test_same_seed_same_bytes_and_another_seed_other_bytes(tmp_path: Path) -> None:
    first, again, other = (
        written("target_site", 300, tmp_path / name, seed=seed) for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    assert digests(first) == digests(again)
    assert digests(first)["data/00000.parquet"] != digests(other)["data/00000.parquet"]


def test_a_subject_is_the_same_however_many_there_are(target: Path, tmp_path: Path) -> None:
    small = written("target_site", 1100, tmp_path)
    ids = pl.read_parquet(small / "labels.parquet")["subject_id"]
    assert ids.to_list() == list(range(1, 1101))
    assert events(small).equals(events(target).filter(pl.col("subject_id") <= 1100))
    for name in ("labels", "truth"):
        whole = pl.read_parquet(target / f"{name}.parquet")
        assert pl.read_parquet(small / f"{name}.parquet").equals(whole.filter(pl.col("subject_id") <= 1100))


def test_records_are_sorted_and_lie_between_birth_and_death(target: Path) -> None:
    table = events(target)
    assert table.equals(table.sort("subject_id", "time", nulls_last=False, maintain_order=True))
    spans = table.group_by("subject_id").agg(
        n_birth=(pl.col("code") == BIRTH).sum(),
        n_sex=pl.col("code").str.starts_with("GENDER//").sum(),
        first=pl.col("time").min() == pl.col("time").filter(pl.col("code") == BIRTH).min(),
        last=pl.col("time").max() == pl.col("time").filter(pl.col("code") == DEATH).max(),
    )
    assert spans["n_birth"].to_list() == spans["n_sex"].to_list() == [1] * 2500
    assert spans["first"].all()
    assert spans["last"].drop_nulls().all()
    assert 0.03 < spans["last"].count() / 2500 < 0.3
    assert not table.select("subject_id", "time", "code").is_duplicated().any()


def test_labels_are_read_as_external_labels(target: Path) -> None:
    labels = read_labels(target / "labels.parquet", open_dataset(target))
    assert labels.height == 2500
    assert labels["follow_up_days"].min() > 0
    assert labels["follow_up_days"].max() <= 1095
    assert 0.2 < labels["is_event"].mean() < 0.35


def test_the_outcome_is_recorded_when_it_happens_and_never_before(target: Path) -> None:
    codes = pl.read_parquet(target / "metadata" / "codes.parquet")
    outcome_codes = codes.filter(pl.col("parent_codes").list.contains("CONCEPT//outcome"))["code"].to_list()
    recorded = events(target).filter(pl.col("code").is_in(outcome_codes))
    labels = pl.read_parquet(target / "labels.parquet").filter("is_event")
    joined = labels.join(recorded, on="subject_id", how="full", coalesce=True)
    assert joined.height == labels.height
    days = (joined["time"] - joined["prediction_time"]).dt.total_seconds() / 86_400
    np.testing.assert_allclose(days, joined["follow_up_days"], rtol=0, atol=1e-9)


def test_the_truth_is_a_function_of_the_history_alone(target: Path, tmp_path: Path) -> None:
    truth = pl.read_parquet(target / "truth.parquet")["log_hazard"].to_numpy()
    np.testing.assert_array_equal(log_hazard_from_records(target), truth)

    (tmp_path / "data").mkdir()
    for name in ("metadata", "labels.parquet", "world.json"):
        (tmp_path / name).symlink_to(target / name)
    times = pl.read_parquet(target / "labels.parquet").select("subject_id", "prediction_time")
    known = events(target).join(times, on="subject_id", maintain_order="left")
    is_after = pl.col("time") > pl.col("prediction_time")
    assert known.filter(is_after).height > 50_000
    later_changed = known.with_columns(code=pl.when(is_after).then(pl.lit("DX//10000")).otherwise("code"))
    later_changed.drop("prediction_time").write_parquet(tmp_path / "data" / "0.parquet")
    np.testing.assert_array_equal(log_hazard_from_records(tmp_path), truth)

    history_changed = known.with_columns(code=pl.when(~is_after).then(pl.lit("DX//10000")).otherwise("code"))
    kept_facts = pl.col("code").is_in([BIRTH, "GENDER//F", "GENDER//M"])
    pl.concat([known.filter(kept_facts), history_changed.filter(pl.col("code") == "DX//10000")]).sort(
        "subject_id", "time", nulls_last=False, maintain_order=True
    ).drop("prediction_time").write_parquet(tmp_path / "data" / "0.parquet")
    assert (log_hazard_from_records(tmp_path) != truth).mean() > 0.9


def test_the_oracle_is_calibrated_and_ranks_as_stated(target: Path) -> None:
    report = check_truth(target)
    assert 0.77 < report.oracle_c_index < 0.83
    assert report.upper_bound_c_index > report.oracle_c_index
    assert abs(report.calibration["predicted"] - report.calibration["observed"]).mean() < 0.03
    assert report.calibration["predicted"][9] > 0.8
    assert report.calibration["predicted"][0] < 0.06
    assert "oracle C-index" in report.to_text()


def test_the_check_finds_a_truth_that_is_not_true(target: Path, tmp_path: Path) -> None:
    for name in ("metadata", "data", "labels.parquet", "world.json"):
        (tmp_path / name).symlink_to(target / name)
    truth = pl.read_parquet(target / "truth.parquet")
    truth.with_columns(risk=pl.col("risk") ** 1.5).write_parquet(tmp_path / "truth.parquet")
    with pytest.raises(DataError, match="true risk is not calibrated"):
        check_truth(tmp_path)
    truth.with_columns(log_hazard=pl.col("log_hazard").reverse()).write_parquet(tmp_path / "truth.parquet")
    with pytest.raises(DataError, match="log hazard differs"):
        check_truth(tmp_path)


def test_no_signal_no_ranking(tmp_path: Path) -> None:
    silent = written("target_site", 1000, tmp_path, "signal=0")
    assert c_index(silent, "risk") == 0.5
    assert check_truth(silent).event_rate == pytest.approx(0.13, abs=0.04)


def test_the_oracle_beats_boosting_on_code_counts(target: Path) -> None:
    labels = pl.read_parquet(target / "labels.parquet")
    history = events(target).join(labels, on="subject_id").filter(pl.col("time") <= pl.col("prediction_time"))
    wide = history.filter(pl.col("code") != BIRTH).pivot(
        "code", index="subject_id", values="time", aggregate_function="len"
    )
    counts = (
        labels.select("subject_id").join(wide, on="subject_id", how="left").fill_null(0).drop("subject_id").to_numpy()
    )
    event, days = labels["is_event"].to_numpy(), labels["follow_up_days"].to_numpy()
    train, test = slice(0, 1500), slice(1500, 2500)
    boosting = HistGradientBoostingClassifier(max_iter=60, max_leaf_nodes=4, random_state=0, early_stopping=False)
    scores = boosting.fit(counts[train], event[train]).decision_function(counts[test])
    risk = pl.read_parquet(target / "truth.parquet")["risk"].to_numpy()[test]
    boosted = concordance_index(days[test], -scores, event[test])
    oracle = concordance_index(days[test], -risk, event[test])
    assert 0.55 < boosted < 0.73
    assert oracle > boosted + 0.05


def test_the_sites_share_concepts_and_codes_but_not_the_habits(target: Path, pretraining: Path) -> None:
    here, there = concept_counts(target), concept_counts(pretraining)
    assert set(here["concept"]) == set(there["concept"]) == set(range(OUTCOME + 1))
    assert len(set(here["code"]) & set(there["code"])) > 0.98 * here["code"].n_unique()
    assert coding_distance(target, pretraining) > 0.15
    assert coding_distance(target, target) == 0


def test_death_ends_the_follow_up(target: Path) -> None:
    labels = pl.read_parquet(target / "labels.parquet")
    death = events(target).filter(pl.col("code") == DEATH).select("subject_id", death="time")
    dead = labels.join(death, on="subject_id").with_columns(
        days=(pl.col("death") - pl.col("prediction_time")).dt.total_seconds() / 86_400
    )
    assert (dead["days"] >= dead["follow_up_days"] - 1e-9).all()
    assert dead.filter("is_event").height > 20
    not_of_it = dead.filter(~pl.col("is_event"))
    np.testing.assert_allclose(not_of_it["days"], not_of_it["follow_up_days"], rtol=0, atol=1e-9)


def test_a_taken_folder_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "kept.txt").write_text("mine")
    with pytest.raises(DataError, match="not an empty folder"):
        simulate(load_world("noise"), tmp_path, n_subjects=10, seed=0)
    assert [path.name for path in tmp_path.iterdir()] == ["kept.txt"]


def test_no_subjects_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="at least 1 subject"):
        simulate(load_world("noise"), tmp_path / "out", n_subjects=0, seed=0)


def test_the_command_writes_and_checks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "noise"
    with pytest.raises(SystemExit) as ended:
        main(["simulate", "--subjects", "600", "--seed", "5", "--world", "noise", "--check", str(out)])
    assert ended.value.code == 0
    assert "oracle C-index" in capsys.readouterr().out
    assert pl.read_parquet(out / "labels.parquet").height == 600
    with pytest.raises(SystemExit) as failed:
        main(["simulate", "--subjects", "5", "--world", "targetsite", str(tmp_path / "x")])
    assert failed.value.code == 2
    assert "did you mean 'target-site'" in capsys.readouterr().err
