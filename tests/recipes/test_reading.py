"""How long a record is read is a property of the model: no budget of tokens changes a prediction."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from simulated import Population, study, write_dataset

from ehrtrack.config import RunConfig, override
from ehrtrack.data.events import MedsDataset
from ehrtrack.pipeline.build import adapt
from ehrtrack.pipeline.fit import feed, with_features
from ehrtrack.pipeline.model_folder import read_model_folder, write_checksums, write_model_folder
from ehrtrack.pipeline.predictor import load_predictor
from ehrtrack.pipeline.prepare import prepare_cohort
from ehrtrack.training.ranks import join_ranks

SHORT = 12
"""Tokens: most records of the population are longer, and none is as long as `data.max_tokens`, 64."""

CASES = {
    "survival": ({"name": "survival"}, {"name": "scratch"}),
    "survival with lasso": ({"name": "survival", "lasso": 0.3, "n_intervals": 6}, {"name": "scratch"}),
    "classification": ({"name": "classification"}, {"name": "scratch"}),
    "competing-risks": ({"name": "competing-risks", "n_intervals": 6}, {"name": "scratch"}),
    "frozen features": ({"name": "survival"}, {"name": "frozen"}),
}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> MedsDataset:
    return write_dataset(tmp_path_factory.mktemp("reading") / "meds", Population(n_subjects=200))


def config_of(dataset: MedsDataset, folder: Path, **sections: Any) -> RunConfig:
    """Labels with two causes, followed for a year or censored before."""
    file = folder / "labels.parquet"
    if not file.is_file():
        subjects = prepare_cohort(study(dataset.path, folder / "cache")).cohort.subjects
        cause = subjects["is_event"].to_numpy() * np.random.default_rng(0).integers(1, 3, subjects.height)
        labels = subjects.drop("split").rename({"index_date": "prediction_time"})
        labels.with_columns(cause=pl.Series(cause)).write_parquet(file)
    return study(dataset.path, folder / "cache", cohort={"labels": str(file), "horizon_days": 300}, **sections)


def predicted_in_training(config: RunConfig, folder: Path) -> tuple[pl.DataFrame, np.ndarray[Any, Any]]:
    """Test subjects with survival as the run logs it, and the model in `folder`; the weights are the same each time."""
    torch.manual_seed(0)
    records, ranks = prepare_cohort(config), join_ranks("cpu")
    adapted = adapt(config, records, None, ranks)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in adapted.plain.parameters():  # of a size at which every token matters
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    batches = feed(config, records, adapted.model, adapted.objective, ranks)
    if adapted.strategy.keeps_encoder:
        batches = with_features(batches, adapted.plain, ranks)
    found = adapted.objective.predict(adapted.model, batches.split("test"), ranks.device)
    grid, vocabulary = adapted.objective.grid, records.vocabulary
    write_model_folder(
        folder, config=config, vocabulary=vocabulary, fingerprints={}, model=adapted.strategy.merge(adapted.model),
        grid=grid, seen=records.seen,
    )  # fmt: skip
    return records.cohort.cutoffs[found.rows], found.survival


@pytest.mark.parametrize("name", CASES)
def test_a_prediction_is_that_of_training_whatever_the_budget_was(
    dataset: MedsDataset, name: str, tmp_path: Path
) -> None:
    objective, strategy = CASES[name]
    config = config_of(dataset, tmp_path, objective=objective, strategy=strategy)
    curves = []
    for budget in (SHORT, 64, 4096):
        folder = tmp_path / f"model-{budget}"
        subjects, survival = predicted_in_training(override(config, {"train.batch_tokens": budget}), folder)
        times = subjects.select("subject_id", prediction_time="cutoff")
        scored = load_predictor(folder).predict_events(dataset.scan().collect(), times)
        np.testing.assert_allclose(np.array(scored["survival"].to_list()), survival, atol=1e-6)
        curves.append(survival)
    assert curves[0][:, -1].std() > 0.01
    np.testing.assert_allclose(curves[0], curves[2], atol=1e-6)
    np.testing.assert_allclose(curves[1], curves[2], atol=1e-6)


def test_a_folder_from_before_that_does_not_say_how_long_reads_as_long_as_it_was_trained(
    dataset: MedsDataset, tmp_path: Path
) -> None:
    config = override(config_of(dataset, tmp_path, strategy={"name": "scratch"}), {"train.batch_tokens": SHORT})
    predicted_in_training(config, tmp_path / "model")
    assert json.loads((tmp_path / "model" / "reading.json").read_text())["max_tokens"] == 64
    assert read_model_folder(tmp_path / "model").max_tokens == 64
    (tmp_path / "model" / "reading.json").unlink()
    write_checksums(tmp_path / "model")
    old = read_model_folder(tmp_path / "model")
    assert (old.max_tokens, old.seen) == (SHORT, None)


@pytest.mark.parametrize("name", ["gru", "mean-pool"])
def test_a_baseline_on_tokens_is_the_same_with_any_budget_of_prediction(
    dataset: MedsDataset, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    baseline = {"name": name, "n_candidates": 1, "epochs": 1, "widths": [8], "batch_tokens": SHORT}
    records = prepare_cohort(config_of(dataset, tmp_path))
    from ehrtrack.baselines import _tokens
    from ehrtrack.baselines.base import Labelled, TokenHistories, baseline_class

    config = config_of(dataset, tmp_path, baseline=baseline)
    chosen = baseline_class(name)(config.baseline)
    features = chosen.read(TokenHistories(records.store, records.vocabulary, np.arange(len(records.store)), 64))
    train, validation = (
        Labelled(features[rows], records.outcomes[rows].follow_up_days, records.outcomes[rows].is_event)
        for rows in (records.rows["train"], records.rows["validation"])
    )
    model = chosen.fit(train, validation)
    at_once = model.survival(features, [100.0, 300.0])
    monkeypatch.setattr(_tokens, "CPU_BATCH_TOKENS", SHORT)
    np.testing.assert_allclose(model.survival(features, [100.0, 300.0]), at_once, atol=1e-6)
