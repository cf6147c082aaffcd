"""A baseline that was logged scores new records as it did when it was fitted, whatever it reads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from simulated import HORIZON_DAYS, Population, study, write_dataset

from ehrtrack.baselines.base import Labelled, baseline_class
from ehrtrack.pipeline.histories import read_cohort
from ehrtrack.pipeline.model_folder import write_model_folder
from ehrtrack.pipeline.predictor import load_predictor
from ehrtrack.pipeline.prepare import CohortRecords, prepare_cohort
from ehrtrack.survival.time_grid import TimeGrid

GRID = TimeGrid((0.0, 100.0, HORIZON_DAYS))
READERS = {  # one baseline of each kind of input, made quick
    "cox": {"n_candidates": 2},
    "ridge": {},
    "gradient-boosting-timing": {"n_candidates": 1, "max_trees": 20},
    "gru": {"n_candidates": 1, "epochs": 2, "widths": [8], "batch_tokens": 12},  # fewer than a record has
}


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, CohortRecords]:
    folder = tmp_path_factory.mktemp("predict-baseline")
    write_dataset(folder / "meds", Population(n_subjects=150))
    return folder, prepare_cohort(study(folder / "meds", folder / "cache"))


@pytest.mark.parametrize("name", READERS)
def test_a_logged_baseline_scores_as_when_it_was_fitted(
    cohort: tuple[Path, CohortRecords], name: str, tmp_path: Path
) -> None:
    folder, records = cohort
    config = study(folder / "meds", folder / "cache", baseline={"name": name} | READERS[name])
    chosen = baseline_class(name)(config.baseline)
    features = read_cohort(chosen, config, records)
    train, validation = (
        Labelled(features[rows], records.outcomes[rows].follow_up_days, records.outcomes[rows].is_event)
        for rows in (records.rows["train"], records.rows["validation"])
    )
    model = chosen.fit(train, validation)
    write_model_folder(
        tmp_path,
        config=config,
        vocabulary=records.vocabulary,
        fingerprints={},
        grid=GRID,
        baseline=model.to_json(),
    )
    times = records.cohort.cutoffs.select("subject_id", pl.col("cutoff").alias("prediction_time"))
    scored = load_predictor(tmp_path).predict_dataset(records.dataset, times)
    expected = model.survival(features, GRID.edges_days)
    assert expected[:, -1].std() > 0
    np.testing.assert_array_equal(np.array(scored["survival"].to_list()), expected)
