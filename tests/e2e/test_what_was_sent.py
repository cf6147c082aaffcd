"""Nothing that a run sends, and nothing in its journal, names a subject, one of their days, or a secret."""

from __future__ import annotations

import gzip
import io
import json
import sqlite3
from contextlib import closing
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from planted import FIRST_SUBJECT, SECRET_TEXTS, Planted, files, sent
from plotly.offline import get_plotlyjs
from whole_study import Study

from ehrtrack.config import load_config
from ehrtrack.errors import DataError
from ehrtrack.pipeline.run import open_run


@pytest.fixture(scope="module")
def planted(simulated_data: Path) -> Planted:
    return Planted.of(simulated_data)


def test_the_search_finds_what_was_planted(planted: Planted, tmp_path: Path) -> None:
    subject, moment_us = FIRST_SUBJECT + 7, int(planted.moments_us[0])
    day = min(planted.days)
    predictions = pl.DataFrame(
        {"subject_id": [subject], "time": [moment_us]}, schema_overrides={"time": pl.Datetime("us")}
    )
    compressed, archive = io.BytesIO(), io.BytesIO()
    predictions.write_parquet(compressed, compression="zstd")
    np.savez_compressed(archive, ids=np.array([subject]))
    number = {f"number {subject}"}
    assert planted.in_file("a.parquet", compressed.getvalue()) >= {f"subject {subject}"}
    assert any(found.startswith("day ") for found in planted.in_file("a.parquet", compressed.getvalue()))
    assert planted.in_file("a.npz", archive.getvalue()) == number
    assert planted.in_file("a.gz", gzip.compress(f"x,{subject},{day}".encode())) == {f"subject {subject}", f"day {day}"}
    assert planted.in_file("a.bin", b"abc" + np.int64(moment_us).tobytes()) == {f"number {moment_us}"}
    assert planted.in_bytes(day.replace("-", "").encode()) == {f"day {day.replace('-', '')}"}
    assert planted.in_bytes(SECRET_TEXTS[0].encode()) == {f"secret {SECRET_TEXTS[0]}"}
    assert planted.in_bytes(f"0.{subject} 1{subject}".encode()) == set()


def test_no_subject_no_day_and_no_secret_was_sent(
    server_study: Study, planted: Planted, mlflow_server_folder: Path
) -> None:
    runs = server_study.runs(["pretrain", "finetune", "baseline", "compare"])
    content = dict(sent(mlflow_server_folder))
    for run in runs:
        assert run.run_id.encode() in content["rows"]
        assert any(run.run_id in name for name in content)
    script = get_plotlyjs().encode()  # of a report's page; a date stands in its documentation
    found = {name: planted.in_file(name, there.replace(script, b"")) for name, there in content.items()}
    for name in found:
        if name.endswith(".whl"):  # the package itself, whose examples have days of their own
            found[name] = {what for what in found[name] if not what.startswith("day ")}
    assert {name: there for name, there in found.items() if there} == {}


def test_no_subject_no_day_and_no_secret_is_in_a_journal_or_figure(server_study: Study, planted: Planted) -> None:
    content = dict(files(server_study.folder / "journals"))
    assert len([name for name in content if name.endswith("journal.log")]) == 4
    assert b"subjects at risk" in content["figures.txt"]
    assert {name: found for name, there in content.items() if (found := planted.in_file(name, there))} == {}


def test_the_key_of_the_hashes_was_not_sent(server_study: Study, mlflow_server_folder: Path) -> None:
    key = (server_study.folder / "cache" / "subject.key").read_bytes().strip()
    everything = dict(sent(mlflow_server_folder)) | dict(files(server_study.folder / "journals"))
    assert [
        name for name, content in everything.items() if key in content or bytes.fromhex(key.decode()) in content
    ] == []


def test_no_count_of_few_subjects_was_sent(server_study: Study, mlflow_server_folder: Path) -> None:
    """In tables: every number of subjects or events is 0, at least 11, or hidden."""
    counted = []
    run_ids = [run.run_id for run in server_study.runs()]
    for name, content in sent(mlflow_server_folder):
        if name.endswith(".csv") and any(run_id in name for run_id in run_ids):
            table = pl.read_csv(content, infer_schema=False)
            for column in table.select("^n_(subjects|events|dropped)$"):
                counted += [(name, text) for text in column if text is not None]
    assert len(counted) > 50
    assert "<11" in {text for _, text in counted}
    assert [(name, text) for name, text in counted if text != "<11" and 0 < int(text) < 11] == []


def test_a_logged_vocabulary_tells_no_counts(server_study: Study, mlflow_server_folder: Path) -> None:
    vocabularies = [json.loads(c) for name, c in sent(mlflow_server_folder) if name.endswith("model/vocabulary.json")]
    assert len(vocabularies) >= 3
    assert [vocabulary["counts"] for vocabulary in vocabularies if vocabulary["counts"]] == []


def test_a_failed_run_does_not_say_which_subject_it_failed_for(
    server_study: Study, planted: Planted, mlflow_server_folder: Path
) -> None:
    day = min(planted.days)
    with server_study.at_work():
        config = load_config("finetune.toml")
        with pytest.raises(DataError, match=str(FIRST_SUBJECT)), open_run(config, kind="finetune", sections=()) as run:
            raise DataError(f"1 of 400 subjects has two births (first: subject {FIRST_SUBJECT}, {day})")
    with closing(sqlite3.connect(mlflow_server_folder / "mlflow.db")) as database:
        tags = dict(database.execute("SELECT key, value FROM tags WHERE run_uuid = ?", [run.logger.server_run_id]))
    assert tags["ehrtrack.error"] == (
        "DataError: <11 of 400 subjects has two births (first: subject (not logged), (date not logged))"
    )
    assert planted.in_bytes("\n".join(tags.values()).encode()) == set()
