"""On simulated subjects a run scores the true risk beside its own."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from lifelines.utils import concordance_index
from simulated import study

from ehrtrack.data.settings import CohortConfig
from ehrtrack.errors import DataError
from ehrtrack.evaluation.benchmark import benchmark_table
from ehrtrack.evaluation.oracle import read_true_risk, truth_beside
from ehrtrack.evaluation.split import EvaluationConfig
from ehrtrack.objectives.base import Predictions
from ehrtrack.pipeline.prepare import CohortRecords, prepare_cohort
from ehrtrack.pipeline.report import attained, log_evaluation
from ehrtrack.pipeline.run_rows import run_row
from ehrtrack.runlog import MemoryRunLogger
from ehrtrack.survival.time_grid import TimeGrid
from ehrtrack.tracking.client.queries import RunRecord

HORIZON_DAYS = 1095.0


@pytest.fixture(scope="module")
def records(target_site: Path, tmp_path_factory: pytest.TempPathFactory) -> CohortRecords:
    cohort = {"labels": str(target_site / "labels.parquet")}
    return prepare_cohort(study(target_site, tmp_path_factory.mktemp("cache"), cohort=cohort))


def true_risk(target_site: Path, records: CohortRecords, rows: np.ndarray) -> np.ndarray:
    truth = pl.read_parquet(target_site / "truth.parquet")
    risk = dict(zip(truth["subject_id"], truth["risk"], strict=True))
    return np.array([risk[subject] for subject in records.store.subject_ids[rows].tolist()])


def test_a_run_on_simulated_subjects_logs_the_oracle_and_its_share(target_site: Path, records: CohortRecords) -> None:
    grid = TimeGrid((0.0, 365.0, 730.0, HORIZON_DAYS))

    def blurred(rows: np.ndarray) -> Predictions:
        noise = np.random.default_rng(0).normal(scale=1.0, size=rows.size)
        rate = np.exp(np.log(true_risk(target_site, records, rows)) + noise) / HORIZON_DAYS
        return Predictions(rows, np.exp(-np.outer(rate, grid.edges_days)))

    logger, rows = MemoryRunLogger(), records.rows["test"]
    evaluations = log_evaluation(
        *(logger, records, grid),
        validation=blurred(records.rows["validation"]),
        test=blurred(rows),
        seed=0,
        truth=truth_beside(CohortConfig(labels=target_site / "labels.parquet")),
        config=EvaluationConfig(n_resamples=20, recalibration="none", conformal_coverage=0),
    )
    outcomes = records.outcomes[rows]
    oracle = concordance_index(outcomes.follow_up_days, -true_risk(target_site, records, rows), outcomes.is_event)
    metrics = {name: values[0] for name, values in logger.metrics.items()}
    assert metrics["test/oracle_c_index"] == pytest.approx(oracle, abs=1e-12)
    assert metrics["test/oracle_c_index_lower"] < oracle < metrics["test/oracle_c_index_upper"]
    share = (metrics["test/c_index"] - 0.5) / (oracle - 0.5)
    assert metrics["test/attainable"] == pytest.approx(share, abs=1e-12)
    assert metrics["test/attainable_lower"] < share < metrics["test/attainable_upper"]
    assert f"{share:.0%}" in attained(evaluations["test"])["of the attainable (95 % interval)"]
    assert "kept/oracle_c_index" not in metrics


def test_labels_without_a_truth_beside_them_have_no_oracle(tmp_path: Path) -> None:
    assert truth_beside(None) is None
    assert truth_beside(CohortConfig(labels=tmp_path / "labels.csv")) is None


def test_the_truth_of_another_population_is_refused(target_site: Path, records: CohortRecords, tmp_path: Path) -> None:
    rows = records.rows["test"]
    truth = pl.read_parquet(target_site / "truth.parquet")
    absent = records.store.subject_ids[rows][:3].tolist()
    truth.filter(~pl.col("subject_id").is_in(absent)).write_parquet(tmp_path / "truth.parquet")
    with pytest.raises(DataError, match=rf"lacks 3 of {len(rows)} test subjects"):
        read_true_risk(tmp_path / "truth.parquet", records.store.subject_ids[rows])


def test_a_comparison_reads_what_the_run_logged() -> None:
    names = ("attainable", "attainable_lower", "attainable_upper", "oracle_c_index", "oracle_c_index_lower")
    metrics = {f"test/{name}": 0.1 * number for number, name in enumerate(names)}
    now = datetime(2026, 1, 1)
    record = RunRecord(
        run_id="r", name="cox", study="s", kind="baseline", status="FINISHED", params={"baseline.name": "cox"},
        metrics=metrics, tags={"fingerprint.cohort": "c"}, started=now, ended=now, experiment_id="1",
        parent_run_id=None,
    )  # fmt: skip
    cox, oracle = benchmark_table([run_row(record)]).iter_rows(named=True)
    found = (cox["attainable"], cox["attainable_lower"], cox["attainable_upper"])
    assert (*found, oracle["test_c_index"], oracle["test_lower"]) == tuple(metrics.values())
    assert oracle["test_upper"] is None
