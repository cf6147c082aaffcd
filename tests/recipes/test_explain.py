"""`ehrtrack explain` on simulated subjects: does it point at what was planted, what is written, what is sent."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from scipy.stats import binomtest
from simulated import HORIZON_DAYS, Population, study_values, write_dataset
from undrawn import undrawn

from ehrtrack.baselines.base import Labelled, baseline_class
from ehrtrack.cli import main
from ehrtrack.config import RunConfig, parse_config
from ehrtrack.data.events import open_dataset
from ehrtrack.evaluation.contributions import hits
from ehrtrack.pipeline.explain import METHODS, explain
from ehrtrack.pipeline.histories import read_cohort
from ehrtrack.pipeline.model_folder import write_model_folder
from ehrtrack.pipeline.predictor import Predictor, load_predictor
from ehrtrack.pipeline.prepare import prepare_cohort
from ehrtrack.pipeline.records import Record, read_records
from ehrtrack.recipes.baseline import baseline
from ehrtrack.recipes.explain import sample_of
from ehrtrack.recipes.finetune import finetune
from ehrtrack.survival.time_grid import TimeGrid
from ehrtrack.tracking.client.queries import download, get_run, list_artifacts, search_runs

torch.set_num_threads(1)

FIRST_SUBJECT = 730_000_001
GRID = TimeGrid((0.0, 120.0, 240.0, HORIZON_DAYS))
ALPHA = 1e-6


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("explain") / "meds"
    write_dataset(folder, Population(n_subjects=240, first_subject=FIRST_SUBJECT))
    return folder


@pytest.fixture(scope="module")
def permuted(data: Path) -> Path:
    """Each subject with the outcome of another."""
    events = pl.read_parquet(data / "data" / "0.parquet")
    first = events.group_by("subject_id").agg(
        prediction_time=pl.col("time").filter(pl.col("code") == "INDEX").first(),
        outcome=pl.col("time").filter(pl.col("code") == "OUTCOME").first(),
        end=pl.col("time").filter(pl.col("code") == "CONTACT").first(),
    )
    days = (pl.coalesce("outcome", "end") - pl.col("prediction_time")).dt.total_seconds() / 86_400
    labels = first.sort("subject_id").with_columns(follow_up_days=days, is_event=pl.col("outcome").is_not_null())
    order = np.random.default_rng(0).permutation(labels.height)
    outcomes = labels.select("follow_up_days", "is_event")[order]
    labels.select("subject_id", "prediction_time").hstack(outcomes).write_parquet(data.parent / "permuted.parquet")
    return data.parent / "permuted.parquet"


def config_of(data: Path, labels: Path | None = None, **sections: object) -> RunConfig:
    values = study_values(data, data.parent / "cache", **sections)
    if labels is not None:
        values["cohort"] = {"horizon_days": HORIZON_DAYS, "labels": str(labels)}
    return parse_config(values)


def lasso(data: Path, folder: Path, labels: Path | None = None) -> tuple[Predictor, list[Record]]:
    """A lasso, and the records of everybody that it did not learn from."""
    config = config_of(data, labels, baseline={"name": "lasso", "strengths": [0.5]})
    records = prepare_cohort(config)
    chosen = baseline_class("lasso")(config.baseline)
    features = read_cohort(chosen, config, records)
    train, validation = (
        Labelled(features[rows], records.outcomes[rows].follow_up_days, records.outcomes[rows].is_event)
        for rows in (records.rows["train"], records.rows["validation"])
    )
    model = chosen.fit(train, validation).to_json()
    write_model_folder(folder, config=config, vocabulary=records.vocabulary, fingerprints={}, grid=GRID, baseline=model)
    unseen = records.cohort.subjects.filter(pl.col("split") != "train")
    times = unseen.select("subject_id", prediction_time="index_date")
    of = load_predictor(folder)
    return of, read_records(of, open_dataset(data), times)


@pytest.fixture(scope="module")
def learnt(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Predictor, list[Record]]:
    return lasso(data, tmp_path_factory.mktemp("lasso"))


@pytest.fixture(scope="module")
def learnt_nothing(
    data: Path, permuted: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Predictor, list[Record]]:
    return lasso(data, tmp_path_factory.mktemp("permuted-lasso"), permuted)


def planted_found(of: Predictor, records: list[Record], method: str) -> tuple[int, int, float]:
    """Of the one or two codes with the largest contributions of each subject those planted; all; those by chance.

    What everybody has is left out, as it tells nobody apart: the index itself, and static facts.
    """
    n_found, n_asked, by_chance = 0, 0, 0.0
    for found in explain(of, records, method=method):
        codes = found.codes.filter(pl.col("n_visits") > 0, pl.col("code") != "INDEX")
        is_planted = codes["code"].str.starts_with("RISK//")
        if is_planted.any() and codes.height > 3:
            n_top = min(2, is_planted.sum())
            top = hits(codes["contribution"], is_planted, n_top)
            n_found, n_asked, by_chance = n_found + top.n_found, n_asked + n_top, by_chance + top.n_by_chance
    return n_found, n_asked, by_chance


@pytest.mark.parametrize("method", METHODS)
def test_planted_codes_have_the_largest_contributions_more_often_than_chance(
    learnt: tuple[Predictor, list[Record]], method: str
) -> None:
    n_found, n_asked, by_chance = planted_found(*learnt, method)
    assert n_asked > 80
    assert by_chance / n_asked < 0.45
    assert n_found / n_asked > 0.9
    assert binomtest(n_found, n_asked, by_chance / n_asked, alternative="greater").pvalue < ALPHA


@pytest.mark.parametrize("method", METHODS)
def test_of_a_model_that_learnt_other_subjects_outcomes_they_do_not(
    learnt_nothing: tuple[Predictor, list[Record]], method: str
) -> None:
    n_found, n_asked, by_chance = planted_found(*learnt_nothing, method)
    assert binomtest(n_found, n_asked, by_chance / n_asked, alternative="greater").pvalue > 1e-3
    assert n_found / n_asked < 0.7


@pytest.fixture(scope="module")
def store(data: Path, empty_database: Path) -> Iterator[Path]:
    """A tracking database with the runs of a network and of a ridge regression."""
    folder = data.parent
    shutil.copy(empty_database, folder / "mlflow.db")
    with pytest.MonkeyPatch.context() as patch, undrawn():
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder / 'mlflow.db'}")
        patch.setenv("XDG_DATA_HOME", str(folder / "data-home"))
        patch.delenv("MLFLOW_RUN_ID", raising=False)
        patch.chdir(folder)
        yield folder


@pytest.fixture(scope="module")
def network(data: Path, store: Path) -> str:
    objective = {"name": "survival", "lasso": 0.2}
    train = {"epochs": 1, "batch_tokens": 512, "lr": 1e-3}
    return finetune(config_of(data, strategy={"name": "scratch"}, objective=objective, train=train)).run_id


@pytest.fixture(scope="module")
def ridge(data: Path, store: Path) -> str:
    return baseline(config_of(data, baseline={"name": "ridge", "n_candidates": 3})).run_id


def call(words: list[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(words)
    assert end.value.code == 0


def subject_of(run_id: str) -> int:
    return sample_of(run_id, 1)[1][0].subject_id


def test_a_network_that_was_trained_points_at_what_was_planted(network: str) -> None:
    of, records = sample_of(network, 40)
    for method in METHODS:
        n_found, n_asked, by_chance = planted_found(of, records, method)
        assert binomtest(n_found, n_asked, by_chance / n_asked, alternative="greater").pvalue < ALPHA


def test_a_subject_is_told_on_the_terminal_and_in_files(
    network: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    subject = subject_of(network)
    call(["explain", network, "--subject", str(subject), "--top", "3", "--out", str(tmp_path / "out")])
    said = capsys.readouterr().out
    of, records = sample_of(network, 1)
    times = pl.DataFrame({"subject_id": [subject], "prediction_time": [records[0].prediction_time]})
    risk = of.predict_dataset(open_dataset(data), times)["risk"][0]
    assert f"risk within 365 days {risk:.1%}" in said
    assert "other codes, left out together" in said
    assert "Age " in said
    assert "It does not say what causes the outcome" in said
    codes = pl.read_csv(tmp_path / "out" / "codes.csv")
    assert codes["code"][0] in said
    page = (tmp_path / "out" / "explanation.html").read_text()
    assert str(subject) in page
    assert codes["last_time"].drop_nulls()[0][:10] in page
    assert {file.name for file in (tmp_path / "out").iterdir()} == {
        *("codes.csv", "visits.csv", "explanation.html", "timeline.png"),
    }
    assert not search_runs("simulated", kinds=["explain"])  # nothing is sent unless it is asked for


def test_what_is_sent_of_a_subject_has_neither_its_id_nor_a_date(network: str, tmp_path: Path) -> None:
    subject = subject_of(network)
    call(["explain", network, "--subject", str(subject), "--method", "integrated-gradients", "--log"])
    (run,) = search_runs("simulated", kinds=["explain"])
    assert run.tags["model_run"] == network
    paths = [path for path in list_artifacts(run.run_id) if path.startswith("explain/")]
    assert [re.sub("[0-9a-f]{12}", "HASH", path) for path in paths] == [
        *("explain/subject_HASH.csv", "explain/subject_HASH.html"),
    ]
    (record,) = sample_of(network, 1)[1]
    days = {f"{moment:%Y-%m-%d}" for moment in (*record.visit_times, record.prediction_time)}
    for path in paths:
        text = download(run.run_id, path, tmp_path).read_text()
        assert str(subject) not in text
        assert not days & set(re.findall(r"\d{4}-\d\d-\d\d", text))
    assert str(subject) not in str((run.name, run.tags, run.params))


def test_a_cohort_is_summed_up_in_a_run(ridge: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call(["explain", ridge, "--cohort", "60", "--out", str(tmp_path / "out")])
    (run,) = [run for run in search_runs("simulated", kinds=["explain"]) if run.tags["model_run"] == ridge]
    assert run.tags["ehrtrack.explained"].endswith("test subjects, occlusion")
    table = pl.read_csv(download(run.run_id, "explain/codes.csv", tmp_path))
    assert set(table["code"].head(3)) == {"RISK//0", "RISK//1", "RISK//2"}
    risks = table.filter(pl.col("code").str.starts_with("RISK"))
    assert (risks["mean_contribution_lower"] > 0).all()
    assert (table["spread_lower"] <= table["spread"] + 1e-12).all()
    assert table["n_subjects"].min() >= 11
    assert "RISK//1" in capsys.readouterr().out
    each = pl.read_parquet(tmp_path / "out" / "contributions.parquet")
    of_code = each.filter(pl.col("code") == "RISK//1")
    (row,) = table.filter(pl.col("code") == "RISK//1").iter_rows(named=True)
    assert row["n_subjects"] == of_code.height
    assert row["mean_contribution"] == pytest.approx(of_code["contribution"].mean())
    assert "plots/contributions.png" in list_artifacts(run.run_id)
    assert get_run(run.run_id).status == "FINISHED"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "name one subject"),
        (("--subject", "1", "--cohort", "5"), "name one subject"),
        (("--cohort", "5", "--log"), "--log is of one --subject"),
        (("--subject", "999"), "not in the model's cohort"),
        (("--subject", "999", "--time", "2016-01-01"), "subject 999 is not in"),
        (("--subject", "Anna"), "nor an integer"),
        (("--subject", f"{FIRST_SUBJECT}", "--time", "1900-01-01"), "gives subject 730000001 no risk at 1900-01-01"),
        (("--subject", f"{FIRST_SUBJECT}", "--method", "integrated-gradients"), "take --method occlusion"),
        (("--subject", f"{FIRST_SUBJECT}", "--labels", "labels.csv"), "leave out --labels"),
        (("--subject", f"{FIRST_SUBJECT}", "--out", "."), "is there already"),
    ],
)
def test_what_cannot_be_explained_is_refused_in_words(
    ridge: str, words: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main(["explain", ridge, *words])
    assert end.value.code == 2
    message = capsys.readouterr().err
    assert said in message
    assert "Traceback" not in message


def test_where_days_would_tell_dates_nothing_is_sent(
    network: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from ehrtrack.privacy import Privacy
    from ehrtrack.recipes import explain as recipe

    monkeypatch.setattr(recipe, "privacy_of", lambda config: Privacy(b"k" * 32, hides_days=True))
    before = search_runs("simulated", kinds=["explain"])
    with pytest.raises(SystemExit):
        main(["explain", network, "--subject", str(subject_of(network)), "--log"])
    assert "would give a subject's dates" in capsys.readouterr().err
    assert search_runs("simulated", kinds=["explain"]) == before
