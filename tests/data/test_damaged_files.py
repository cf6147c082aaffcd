"""Data files from elsewhere: what cannot be read is named with what to do, and what is left out is counted."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from simulated import HORIZON_DAYS, Population, study, study_values, write_dataset

from ehrtrack.config import RunConfig, parse_config
from ehrtrack.data.events import MedsDataset, open_dataset
from ehrtrack.data.importing import import_dataset
from ehrtrack.data.labels import read_labels
from ehrtrack.data.tables import read_table
from ehrtrack.errors import DataError
from ehrtrack.models.code_embeddings import CodeEmbeddings
from ehrtrack.pipeline.prepare import prepare_cohort, prepare_records

BIRTHS = pl.col("code") == "MEDS_BIRTH"
PREPARE = pytest.mark.parametrize("prepare", [prepare_cohort, prepare_records])


@pytest.fixture(scope="module")
def events(tmp_path_factory: pytest.TempPathFactory) -> pl.DataFrame:
    return write_dataset(tmp_path_factory.mktemp("events"), Population(n_subjects=120)).scan().collect()


def config_for(events: pl.DataFrame, folder: Path) -> RunConfig:
    (folder / "meds" / "data").mkdir(parents=True)
    events.write_parquet(folder / "meds" / "data" / "0.parquet")
    return study(folder / "meds", folder / "cache")


@PREPARE
def test_events_without_a_subject_are_counted(
    prepare: Callable[[RunConfig], object], events: pl.DataFrame, tmp_path: Path
) -> None:
    is_third = pl.col("subject_id") == 3
    n_missing = events.filter(is_third).height
    config = config_for(events.with_columns(subject_id=pl.when(~is_third).then("subject_id")), tmp_path)
    with pytest.raises(DataError, match=rf"0\.parquet: {n_missing} of {events.height} events have no subject_id"):
        prepare(config)


def test_import_leaves_events_without_a_subject_out_and_counts_them(events: pl.DataFrame, tmp_path: Path) -> None:
    is_third = pl.col("subject_id") == 3
    config_for(events.with_columns(subject_id=pl.when(~is_third).then("subject_id")), tmp_path)
    report = import_dataset("meds", tmp_path / "meds", tmp_path / "out", progress=lambda _: None)
    assert report.n_subjects == 119
    assert sum(report.tables[0].dropped.values()) == events.filter(is_third).height
    assert open_dataset(tmp_path / "out").scan().collect()["subject_id"].null_count() == 0


def test_a_birth_in_the_year_1_leaves_its_subject_out_and_is_counted(
    events: pl.DataFrame, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    is_wrong = BIRTHS & pl.col("subject_id").is_in([3, 5])
    config = config_for(events.with_columns(time=pl.when(is_wrong).then(datetime(1, 1, 1)).otherwise("time")), tmp_path)
    cohort = prepare_cohort(config)
    assert not {3, 5} & set(cohort.store.subject_ids)
    assert len(cohort.store) == 118
    step = cohort.cohort.attrition.filter(pl.col("step") == "age of at most 120 years at the index date")
    assert step["n_dropped"].to_list() == [2]
    capsys.readouterr()
    records = prepare_records(config)
    assert "left out: 2 of 120 subjects, who are older than 120 years" in capsys.readouterr().out
    assert len(records.store) == 118
    assert float(records.store.end_age_years.max()) < 121
    everybody = events.with_columns(time=pl.when(BIRTHS).then(datetime(1, 1, 1)).otherwise("time"))
    (tmp_path / "all").mkdir()
    with pytest.raises(DataError, match="all 120 subjects are older than 120 years"):
        prepare_records(config_for(everybody, tmp_path / "all"))


@PREPARE
def test_times_that_no_calendar_has_are_counted(
    prepare: Callable[[RunConfig], object], events: pl.DataFrame, tmp_path: Path
) -> None:
    far = pl.when(pl.col("subject_id") == 3).then(pl.lit(2**62)).otherwise(pl.col("time").cast(pl.Int64))
    config = config_for(events.with_columns(time=far.cast(pl.Datetime("us"))), tmp_path)
    n_far = events.filter(pl.col("subject_id") == 3).height
    try:
        prepare(config)
    except DataError as error:
        assert f"{n_far} of {events.height} times are before the year 1 or after 9999" in str(error)  # noqa: PT017
    else:
        pytest.fail("the times were taken")


@PREPARE
@pytest.mark.parametrize("seed", range(8))
def test_damaged_pages_are_an_error_that_names_the_shard(
    prepare: Callable[[RunConfig], object], events: pl.DataFrame, seed: int, tmp_path: Path
) -> None:
    config = config_for(events, tmp_path)
    shard = tmp_path / "meds" / "data" / "0.parquet"
    content, rng = bytearray(shard.read_bytes()), random.Random(seed)
    for _ in range(30):
        content[rng.randrange(4, len(content) - 1500)] = rng.randrange(256)
    shard.write_bytes(content)
    with pytest.raises(DataError, match=r"0\.parquet"):
        prepare(config)


def damaged_table(folder: Path, table: pl.DataFrame) -> Path:
    file = folder / "table.parquet"
    table.write_parquet(file)
    content = bytearray(file.read_bytes())
    content[4 : len(content) // 3] = bytes(len(content) // 3 - 4)
    file.write_bytes(content)
    return file


def test_damaged_tables_beside_the_data_are_named(events: pl.DataFrame, tmp_path: Path) -> None:
    config = config_for(events, tmp_path)
    dataset = open_dataset(config.data.path)
    n = 3000
    labels = pl.DataFrame(
        {
            "subject_id": np.arange(n),
            "prediction_time": [datetime(2016, 1, 1)] * n,
            "follow_up_days": np.random.default_rng(0).random(n),
            "is_event": [True, False, False] * (n // 3),
        }
    )
    with pytest.raises(DataError, match=r"table\.parquet cannot be read"):
        read_labels(damaged_table(tmp_path, labels), dataset)
    with pytest.raises(DataError, match=r"table\.parquet cannot be read"):
        read_table(damaged_table(tmp_path, labels), ("subject_id",), "data.vocabulary.groups")
    metadata = dataset.path / "metadata"
    metadata.mkdir()
    damaged_table(tmp_path, pl.DataFrame({"code": [f"A{k}" for k in range(n)], "description": ["b"] * n})).rename(
        metadata / "codes.parquet"
    )
    with pytest.raises(DataError, match=r"codes\.parquet cannot be read"):
        dataset.code_descriptions()
    damaged_table(tmp_path, pl.DataFrame({"source_id": [f"A{k}" for k in range(n)], "subject_id": range(n)})).rename(
        metadata / "subjects.parquet"
    )
    with pytest.raises(DataError, match=r"subjects\.parquet cannot be read"):
        dataset.source_ids()


def test_labels_at_times_that_no_calendar_has_are_counted(events: pl.DataFrame, tmp_path: Path) -> None:
    dataset = open_dataset(config_for(events, tmp_path).data.path)
    times = pl.Series("prediction_time", [0, 2**62]).cast(pl.Datetime("us"))
    pl.DataFrame({"subject_id": [1, 2], "prediction_time": times}).write_parquet(tmp_path / "labels.parquet")
    with pytest.raises(DataError, match="prediction_time: 1 of 2 times are before the year 1 or after 9999"):
        read_labels(tmp_path / "labels.parquet", dataset, needs_outcome=False)


SPECIAL = pytest.mark.parametrize("kind", ["pipe", "device", "dangling link"])


def make_special(file: Path, kind: str) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    if kind == "pipe":
        os.mkfifo(file)
    else:
        file.symlink_to("/dev/zero" if kind == "device" else "/nowhere")
    return file


@SPECIAL
def test_a_shard_that_is_no_file_is_not_waited_for(kind: str, events: pl.DataFrame, tmp_path: Path) -> None:
    config = config_for(events, tmp_path)
    make_special(tmp_path / "meds" / "data" / "1.parquet", kind)
    with pytest.raises(DataError, match=r"1\.parquet is a pipe, a device or a link to nowhere"):
        open_dataset(config.data.path)
    with pytest.raises(DataError, match=r"1\.parquet is a pipe, a device or a link to nowhere"):
        import_dataset("meds", config.data.path, tmp_path / "out", progress=lambda _: None)
    assert not (tmp_path / "out").exists()


@SPECIAL
@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
def test_a_table_that_is_no_file_is_not_waited_for(kind: str, suffix: str, tmp_path: Path) -> None:
    file = make_special(tmp_path / f"labels{suffix}", kind)
    with pytest.raises(DataError, match=r"labels\.\w+ (is a folder, a pipe or a device|does not exist)"):
        read_table(file, ("subject_id",), "cohort.labels")


@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_a_source_table_and_embeddings_that_are_no_files_are_not_waited_for(kind: str, tmp_path: Path) -> None:
    make_special(tmp_path / "omop" / "person.csv", kind)
    with pytest.raises(DataError, match=r"person\.csv is a pipe, a device"):
        import_dataset("omop", tmp_path / "omop", tmp_path / "out", progress=lambda _: None)
    make_special(tmp_path / "embeddings" / "vocabulary.json", kind)
    with pytest.raises(Exception, match=r"vocabulary\.json is a folder, a pipe or a device"):
        CodeEmbeddings.read(tmp_path / "embeddings")


@pytest.mark.parametrize(
    "content", [b'a"' + b"x" * 200_000 + b'",b\n', b"\x1f\x8b\x08\x00" + b"\x00" * 6 + b"\xff" * 9]
)
def test_a_header_that_is_none_is_named(content: bytes, tmp_path: Path) -> None:
    name = "person.csv.gz" if content.startswith(b"\x1f") else "person.csv"
    (tmp_path / "omop").mkdir()
    (tmp_path / "omop" / name).write_bytes(content)
    with pytest.raises(DataError):
        import_dataset("omop", tmp_path / "omop", tmp_path / "out", progress=lambda _: None)


def test_the_horizon_is_kept_when_labels_are_used(events: pl.DataFrame, tmp_path: Path) -> None:
    """Implausible births are left out by labels as by rules."""
    index = events.filter(pl.col("code") == "INDEX").select("subject_id", prediction_time="time")
    labels = index.with_columns(
        follow_up_days=pl.lit(100.0) + pl.col("subject_id"), is_event=pl.col("subject_id") % 3 == 0
    )
    labels.write_parquet(tmp_path / "labels.parquet")
    is_wrong = BIRTHS & (pl.col("subject_id") == 5)
    config_for(events.with_columns(time=pl.when(is_wrong).then(datetime(1, 1, 1)).otherwise("time")), tmp_path)
    cohort = {"labels": str(tmp_path / "labels.parquet"), "horizon_days": HORIZON_DAYS, "min_followed_share": 0}
    values = study_values(tmp_path / "meds", tmp_path / "cache", cohort=cohort)
    kept: MedsDataset = prepare_cohort(parse_config(values)).dataset
    assert kept.path == tmp_path / "meds"
