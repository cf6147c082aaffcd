"""The report of a study that was run: kept with its run, and the same bytes from the tracking server alone."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner
from simulated import Population, study_values, write_dataset
from tomli_w import dumps

from ehrtrack.cli import cli
from ehrtrack.errors import DataError
from ehrtrack.recipes.report import REPORT, report
from ehrtrack.recipes.study import study
from ehrtrack.tracking.client.queries import download, list_artifacts, search_runs

STUDY = """
question = "Is Cox better than boosting on these records?"
baseline = "baseline.toml"
matrix = { baseline = ["cox", "gradient-boosting"] }
reference = { baseline = "cox" }
"""


def _files(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.fixture
def study_file(local_store: Path) -> Path:
    write_dataset(local_store / "data", Population(n_subjects=160))
    values = study_values(local_store / "data", local_store / ".ehrtrack", baseline={"n_candidates": 1})
    del values["model"], values["train"]
    (local_store / "baseline.toml").write_text(dumps(values))
    (local_store / "study.toml").write_text(STUDY)
    return local_store / "study.toml"


def test_report_is_kept_with_the_run_and_made_again_from_the_server_alone(study_file: Path) -> None:
    results = study(study_file)
    assert results is not None
    (run,) = search_runs("simulated", kinds=["study"])
    assert "cohort/table_one.csv" in list_artifacts(run.run_id)
    kept = download(run.run_id, REPORT, study_file.parent / "kept")

    shutil.rmtree(study_file.parent / ".ehrtrack")  # queue, token stores and what else workers keep
    shutil.rmtree(study_file.parent / "data")
    out = study_file.parent / "out"
    answered = CliRunner().invoke(cli, ["report", str(study_file), "--out", str(out)])

    assert answered.exit_code == 0, answered.output
    assert "out/index.html" in answered.output
    made, there = _files(out), _files(kept)
    assert made.keys() == there.keys()
    assert [name for name in made if made[name] != there[name]] == []
    text = made["report.md"].decode()
    assert "# Is Cox better than boosting on these records?" in text
    assert "| sex: F " in text
    assert all(repeat.row.run_id[:12] in text for repeat in results.repeats)


def test_study_without_a_finished_run_has_no_report(study_file: Path) -> None:
    with pytest.raises(DataError, match=r"no run of study 'simulated' is finished .* run `ehrtrack study run` first"):
        report(study_file)
    assert not (study_file.parent / "reports").exists()
