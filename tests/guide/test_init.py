"""`ehrtrack init` writes files that run as they are, from what the dataset holds, and writes over nothing."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path

import polars as pl
import pytest
from simulated import Population, write_dataset

from ehrtrack.cli import main
from ehrtrack.config import load_config
from ehrtrack.data.events import open_dataset
from ehrtrack.guide.init import init_study
from ehrtrack.study.cells import read_study
from ehrtrack.study.questions import check_questions


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write_dataset(tmp_path / "meds", Population(n_subjects=40))
    return tmp_path / "meds"


def test_every_file_is_read_by_its_recipe(data: Path, tmp_path: Path) -> None:
    out = init_study("mystudy", data, folder=tmp_path / "projects")

    pretrain = load_config(out / "pretrain.toml", kind="pretraining")
    assert (pretrain.study, pretrain.data.path, pretrain.objective.name) == ("mystudy", data, "mlm")
    for name in ("finetune", "baseline", "compare", "sweep"):
        config = load_config(out / f"{name}.toml", kind="outcome")
        assert (config.objective.name, config.strategy.name, config.init.run) == ("survival", "lora", "latest")
    study = read_study(out / "study.toml")
    check_questions(study)
    assert {cell.recipe for cell in study.cells} == {"pretrain", "finetune", "baseline"}


def test_the_files_say_what_the_dataset_holds(data: Path, tmp_path: Path) -> None:
    out = init_study("mystudy", data, folder=tmp_path / "projects")

    cohort = load_config(out / "finetune.toml").cohort
    assert cohort is not None
    assert cohort.outcome is not None
    assert cohort.outcome.codes, "nobody dies in this dataset"
    text = (out / "finetune.toml").read_text()
    assert "A GUESS to begin with" in text
    assert "#   INDEX (40 subjects)" in text


def test_a_split_of_the_dataset_is_taken(data: Path, tmp_path: Path) -> None:
    subjects = open_dataset(data).scan().select("subject_id").unique().collect().sort("subject_id")
    names = pl.Series(["train", "tuning", "held_out", "train"] * 10)
    (data / "metadata").mkdir(exist_ok=True)
    subjects.with_columns(split=names).write_parquet(data / "metadata" / "subject_splits.parquet")

    out = init_study("mystudy", data, folder=tmp_path / "projects")

    assert load_config(out / "pretrain.toml", kind="pretraining").data.split.rule == "dataset"


def test_records_of_hours_are_read_by_the_hour(data: Path, tmp_path: Path) -> None:
    start = datetime(2020, 1, 1)
    rows = [(n, start + timedelta(hours=h), f"LAB//{h % 3}") for n in range(20) for h in range(12)]
    frame = pl.DataFrame(rows, schema=["subject_id", "time", "code"], orient="row")
    stays = tmp_path / "stays"
    (stays / "data").mkdir(parents=True)
    frame.with_columns(pl.col("time").cast(pl.Datetime("us")), numeric_value=pl.lit(None, pl.Float32)).write_parquet(
        stays / "data" / "0.parquet"
    )

    config = load_config(init_study("stays", stays, folder=tmp_path / "projects") / "pretrain.toml", kind="pretraining")

    assert (config.data.visits.unit, config.model.readout_days) == ("hour", (0.05, 0.3, 1.0))
    assert config.data.births == "unknown"


def test_nothing_is_written_over(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "projects"
    words = ["init", "mystudy", "--data", str(data), "--folder", str(folder)]
    main_ends_well(words)
    (folder / "mystudy" / "study.toml").write_text("mine")

    with pytest.raises(SystemExit) as end:
        main(words)

    assert end.value.code == 2
    assert "is there already, and nothing is written over" in capsys.readouterr().err
    assert (folder / "mystudy" / "study.toml").read_text() == "mine"


@pytest.mark.parametrize("name", ["a/b", "../up", ""])
def test_a_name_that_is_no_folder_is_refused(name: str, data: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as end:
        main(["init", name, "--data", str(data), "--folder", str(tmp_path / "projects")])

    assert end.value.code == 2
    assert not (tmp_path / "projects").exists()


def main_ends_well(words: list[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(words)
    assert end.value.code == 0
