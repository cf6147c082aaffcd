"""From a dataset to token stores: what is fitted on whom, and what does not go together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from simulated import Population, study, study_values, write_dataset

from ehrtrack.config import RuntimeConfig, override, parse_config
from ehrtrack.data.cohort import build_cohort
from ehrtrack.data.splits import assign_splits
from ehrtrack.data.vocabulary import CLS, MASK, PAD
from ehrtrack.errors import ConfigError, DataError
from ehrtrack.pipeline.prepare import check_same_reading, prepare_cohort, prepare_records, seed_everything


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prepare")
    write_dataset(folder / "meds", Population(n_subjects=200))
    return folder


def make(folder: Path, **sections: Any) -> Any:
    return study(folder / "meds", folder / "cache", **sections)


def test_splits_are_by_subject_and_the_same_in_pretraining_and_fine_tuning(folder: Path) -> None:
    records, cohort = prepare_records(make(folder)), prepare_cohort(make(folder))
    for prepared in (records, cohort):
        split = assign_splits(pl.Series(prepared.store.subject_ids), make(folder).data.split).to_numpy()
        for name, rows in prepared.rows.items():
            assert (split[rows] == name).all()
        everybody = np.sort(np.concatenate(list(prepared.rows.values())))
        assert (everybody == np.arange(len(prepared.store))).all()


def test_the_vocabulary_is_fitted_on_what_training_subjects_had_before_the_index(folder: Path) -> None:
    whole, cohort = prepare_records(make(folder, cohort=None)), prepare_cohort(make(folder))
    assert {"OUTCOME", "CONTACT"} <= set(whole.vocabulary.tokens)
    assert not {"OUTCOME", "CONTACT"} & set(cohort.vocabulary.tokens)


def test_pretraining_reads_the_subjects_of_a_cohort_up_to_their_index_dates(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Those of undrawn labels too; and it is in the fingerprints, by which runs and caches are known."""
    whole, cohort = prepare_records(make(folder, cohort=None)), prepare_cohort(make(folder))
    capsys.readouterr()
    cut = prepare_records(make(folder))
    n = len(cohort.store)
    assert f"pretraining reads the records of {n} of {len(whole.store)} subjects, who are in" in capsys.readouterr().out
    assert not {"OUTCOME", "CONTACT"} & set(cut.vocabulary.tokens)
    tokens = dict(zip(cut.store.subject_ids.tolist(), cut.store.n_tokens.tolist(), strict=True))
    assert [tokens[subject] for subject in cohort.store.subject_ids.tolist()] == cohort.store.n_tokens.tolist()
    few = prepare_records(override(make(folder), {"cohort.n_labels": 20}))
    assert few.fingerprints() == cut.fingerprints()
    asked = prepare_records(override(make(folder), {"data.pretraining_records": "whole"}))
    assert asked.fingerprints() == whole.fingerprints()
    assert cut.fingerprints().keys() - whole.fingerprints().keys() == {"index_dates"}
    assert cut.store.fingerprint != whole.store.fingerprint


def test_a_cohort_of_everybody_cannot_be_left_out_of_pretraining(folder: Path) -> None:
    with pytest.raises(DataError, match="nearly everybody is in the cohort"):
        prepare_records(override(make(folder), {"data.pretraining_records": "leave_out"}))


def test_what_training_subjects_had_before_the_index_is_kept_in_shares(folder: Path) -> None:
    seen = prepare_cohort(make(folder)).seen
    assert (seen.share_unknown, seen.bin_shares, seen.silent_years) == (0, {}, 0)  # no values; the index is an event
    rare = prepare_cohort(override(make(folder), {"data.vocabulary.min_subjects": 35}))
    of_training = rare.coverage.filter(pl.col("split") == "train")
    assert rare.seen.share_unknown == pytest.approx(of_training["share_unk"].item(), abs=1e-4)
    assert rare.seen.share_unknown > 0.05


def test_ages_over_120_years_in_pretraining_are_told(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "meds" / "data").mkdir(parents=True)
    events = pl.read_parquet(folder / "meds" / "data" / "0.parquet")
    too_early = (pl.col("subject_id") <= 3) & (pl.col("code") == "MEDS_BIRTH")
    events.with_columns(
        pl.when(too_early).then(pl.col("time").dt.offset_by("-120y")).otherwise("time").alias("time")
    ).sort("subject_id", "time", nulls_last=False, maintain_order=True).write_parquet(
        tmp_path / "meds" / "data" / "0.parquet"
    )
    prepare_records(make(tmp_path))
    assert "left out: 3 of " in (said := capsys.readouterr().out)
    assert "subjects, who are older than 120 years where their records end" in said


def test_token_counts_are_those_of_training_subjects(folder: Path) -> None:
    records = prepare_records(make(folder))
    counts = records.token_counts()
    expected = sum(int(records.store.n_tokens[row]) for row in records.rows["train"])
    assert counts.sum() == expected
    assert counts[[PAD, CLS, MASK]].tolist() == [0, 0, 0]
    n_subjects = len(records.rows["train"])
    assert counts[records.vocabulary.index["INDEX"]] == n_subjects


def test_labels_follow_the_store_row_for_row(folder: Path) -> None:
    cohort = prepare_cohort(make(folder))
    assert cohort.cohort.subjects["subject_id"].to_list() == cohort.store.subject_ids.tolist()
    assert cohort.outcomes.follow_up_days.tolist() == cohort.cohort.subjects["follow_up_days"].to_list()


def test_a_recipe_with_an_outcome_needs_a_cohort(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"\[cohort\]"):
        prepare_cohort(make(folder, cohort=None))


def test_a_vocabulary_of_other_codes_is_refused(folder: Path, tmp_path: Path) -> None:
    write_dataset(tmp_path / "meds", Population(n_subjects=100, prefix="OTHER//"))
    other = prepare_records(study(tmp_path / "meds", tmp_path / "cache", cohort=None))
    with pytest.raises(DataError, match=r"knows 0% of the training events, at least 50% are needed"):
        prepare_cohort(make(folder), other.vocabulary)


def data_config(folder: Path, **changes: Any) -> Any:
    values = study_values(folder / "meds", folder / "cache")
    return parse_config(values | {"data": values["data"] | changes}).data


def test_a_base_that_read_visits_otherwise_is_refused(folder: Path) -> None:
    base, run = data_config(folder, visits={"unit": "hour"}), data_config(folder)
    with pytest.raises(ConfigError, match=r"pretrained with data\.visits\.unit=hour, this run says day"):
        check_same_reading(run, base, is_same_data=False)


def test_another_split_of_the_same_data_is_refused_since_test_subjects_were_pretrained_on(folder: Path) -> None:
    base, run = data_config(folder), data_config(folder, split={"seed": 1})
    with pytest.raises(ConfigError, match="test subjects would have been seen in pretraining"):
        check_same_reading(run, base, is_same_data=True)
    check_same_reading(run, base, is_same_data=False)


def test_one_seed_sets_every_generator() -> None:
    import random

    def draw(seed: int) -> list[float]:
        generator = seed_everything(RuntimeConfig(seed=seed))
        return [
            random.random(),
            float(np.random.rand()),
            torch.rand(()).item(),
            torch.rand((), generator=generator).item(),
        ]

    assert draw(5) == draw(5)
    assert not set(draw(5)) & set(draw(6))


def test_subjects_who_are_left_out_of_the_cohort_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dataset = write_dataset(tmp_path / "meds", Population(n_subjects=240))
    config = study(dataset.path, tmp_path / "cache")
    assert config.cohort is not None
    subjects = build_cohort(dataset, config.cohort, config.data.split).subjects
    labels = subjects.select("subject_id", "follow_up_days", "is_event", prediction_time="index_date")
    days = pl.when(pl.int_range(pl.len()) < 3).then(0.0).otherwise("follow_up_days")
    labels.with_columns(follow_up_days=days).write_parquet(tmp_path / "labels.parquet")
    prepare_cohort(study(dataset.path, tmp_path / "cache", cohort={"labels": str(tmp_path / "labels.parquet")}))
    told = f"of {labels.height} subjects in the labels are left out 3 not: follow-up after the prediction time"
    assert told in capsys.readouterr().out
