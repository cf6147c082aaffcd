from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from simulated import HORIZON_DAYS, Population, study, write_dataset

from ehrtrack.data.outcomes import Outcomes
from ehrtrack.evaluation.groups import subject_groups
from ehrtrack.evaluation.report import Report
from ehrtrack.evaluation.split import EvaluationConfig
from ehrtrack.objectives.base import Predictions
from ehrtrack.pipeline.prepare import CohortRecords, prepare_cohort
from ehrtrack.pipeline.report import horizon, judge_risks, log_evaluation, not_measured
from ehrtrack.runlog import MemoryRunLogger
from ehrtrack.survival.time_grid import TimeGrid

GRID = TimeGrid((0.0, 90.0, 180.0, 270.0, HORIZON_DAYS))
METRICS = {
    "test/c_index", "test/uno_c", "test/uno_c_lower", "test/antolini_c", "test/auc_mean", "test/auc_horizon",
    "test/average_precision", "test/brier", "test/brier_skill", "test/ibs_skill", "test/calibration_slope", "test/ici",
    "test/observed_to_expected", "test/d_calibration_p", "test/gap_sex", "test/recalibrated_ici",
    "test/recalibrated_ibs", "test/conformal_coverage",
}  # fmt: skip
TABLES = {
    f"evaluation/{name}.csv"
    for name in ("subgroups", "subgroup_gaps", "decision_curve", "calibration", "calibration_curve", "auc", "left_out")
}
FIGURES = {f"plots/{name}.png" for name in ("discrimination", "calibration_curves", "subgroups", "decision_curve")}


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> CohortRecords:
    folder = tmp_path_factory.mktemp("evaluate")
    write_dataset(folder / "data", Population(n_subjects=900))
    return prepare_cohort(study(folder / "data", folder / "cache"))


def predictions(records: CohortRecords, rows: np.ndarray) -> Predictions:
    """Curves that know a little of the outcome."""
    days = records.outcomes.follow_up_days[rows]
    rate = np.exp(np.random.default_rng(0).normal(size=rows.size) - days / HORIZON_DAYS) / 600
    return Predictions(rows, np.exp(-np.outer(rate, GRID.edges_days)))


def logged(records: CohortRecords, test_rows: np.ndarray, config: EvaluationConfig) -> MemoryRunLogger:
    return evaluated(records, test_rows, config)[0]


def evaluated(
    records: CohortRecords, test_rows: np.ndarray, config: EvaluationConfig
) -> tuple[MemoryRunLogger, dict[str, Report]]:
    logger = MemoryRunLogger()
    evaluations = log_evaluation(
        logger,
        records,
        GRID,
        validation=predictions(records, records.rows["validation"]),
        test=predictions(records, test_rows),
        seed=0,
        config=config,
    )
    return logger, evaluations


def test_a_run_logs_every_measure_table_and_figure(records: CohortRecords) -> None:
    logger = logged(records, records.rows["test"], EvaluationConfig(n_resamples=50))
    assert set(logger.metrics) >= METRICS
    assert set(logger.artifacts) >= TABLES | FIGURES
    assert [name for name in logger.artifacts if "calibration" in name and name.endswith(".csv")] == [
        "evaluation/d_calibration.csv",
        "evaluation/calibration.csv",
        "evaluation/calibration_curve.csv",
    ]
    days = logger.artifacts["evaluation/calibration.csv"]["horizon_days"].unique().sort()
    assert days.to_list() == [HORIZON_DAYS / 4, HORIZON_DAYS / 2, HORIZON_DAYS]
    assert logger.tags["ehrtrack.task"] == "survival"
    assert not [name for name in logger.metrics if set(name) & set("@%() ")]  # refused by tracking servers
    assert all(np.isfinite(value) for steps in logger.metrics.values() for value in steps.values())


def test_a_test_set_with_few_events_finishes_and_names_what_was_left_out(
    records: CohortRecords, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = records.rows["test"]
    event = np.flatnonzero(records.outcomes.is_event[rows])
    few = rows[np.sort(np.concatenate([event[:8], np.flatnonzero(~records.outcomes.is_event[rows])]))]
    logger, evaluations = evaluated(records, few, EvaluationConfig(n_resamples=50))
    assert "test/c_index" in logger.metrics
    assert "test/calibration_slope" not in logger.metrics
    left_out: pl.DataFrame = logger.artifacts["evaluation/left_out.csv"]
    reason = left_out.filter(pl.col("measure") == "calibration_slope")["reason"].item()
    assert reason.startswith("8 events by day 365")
    assert "left out of the evaluation" in capsys.readouterr().out
    assert "plots/decision_curve.png" not in logger.artifacts
    assert list(evaluations["test"].left_out) == left_out["measure"].to_list()
    (said,) = not_measured(evaluations["test"]).values()
    assert "calibration_slope" in said
    measured = next(verdict for verdict in judge_risks(evaluations) if verdict.check == "measured")
    assert measured.state == "warn"
    assert "calibration_slope" in measured.reason


def test_a_horizon_that_was_cut_is_said_in_the_runs_description(records: CohortRecords) -> None:
    assert horizon(records.cohort) == {"horizon": "365 days"}
    (said,) = horizon(replace(records.cohort, is_horizon_cut=True)).values()
    assert said.startswith("365 days, the longest that enough training subjects are followed to")


def test_options_turn_recalibration_and_bounds_off(records: CohortRecords) -> None:
    config = EvaluationConfig(n_resamples=20, recalibration="none", conformal_coverage=0)
    logger = logged(records, records.rows["test"], config)
    assert not [name for name in logger.metrics if "recalibrated" in name or "conformal" in name]


def test_groups_are_those_of_the_records(records: CohortRecords) -> None:
    rows = records.rows["test"]
    groups = subject_groups(records.store, records.vocabulary, rows)
    assert set(groups) == {"sex", "age_years", "history_years"}  # no race is recorded
    assert set(groups["sex"]) == {"F", "M"}
    age = records.store.end_age_years[rows]
    is_middle = (age >= 40) & (age < 55)
    assert ((groups["age_years"] == "40–54").to_numpy() == is_middle).all()
    assert groups["age_years"].unique().sort().to_list()[0] == "18–39"
    assert set(groups["history_years"]) <= {"under 1", "1–2", "3–4"}  # visits lie within 900 days of the index date


RACES = ("other", "not recorded", "(other)", "a$b$c", "white", "black", "r7", "r8", "")
"""Names that a hospital may give, ever rarer: those of the groups that are made here, and what looks like a formula."""


def write_races(file: Path) -> dict[int, str]:
    """Give the subjects of a shard a race each; the last of `RACES` is a bare prefix. Returns them by subject."""
    events = pl.read_parquet(file)
    subjects = events["subject_id"].unique(maintain_order=True)
    weight = np.arange(len(RACES), 0, -1.0)
    drawn = np.random.default_rng(0).choice(RACES, subjects.len(), p=weight / weight.sum())
    static = pl.DataFrame({"subject_id": subjects, "code": [f"RACE//{name}" for name in drawn]})
    every = pl.concat([events, static.with_columns(time=pl.lit(None, pl.Datetime("us"))).select(events.columns)])
    every.sort("subject_id", "time", nulls_last=False, maintain_order=True).write_parquet(file)
    return dict(zip(subjects.to_list(), drawn.tolist(), strict=True))


def test_groups_that_the_data_call_other_or_not_recorded_are_groups_like_others(tmp_path: Path) -> None:
    race = write_races(write_dataset(tmp_path / "data", Population(n_subjects=900)).path / "data" / "0.parquet")
    records = prepare_cohort(study(tmp_path / "data", tmp_path / "cache"))
    rows = records.rows["test"]
    recorded = pl.Series([race[subject] for subject in records.store.subject_ids[rows].tolist()])
    group = subject_groups(records.store, records.vocabulary, rows)["race"]
    common = RACES[:6]
    assert group.dtype.categories.to_list() == [*sorted(common), "((other))", "(not recorded)"]  # type: ignore[attr-defined]
    expected = recorded.replace({"r7": "((other))", "r8": "((other))", "": "(not recorded)"})
    assert group.cast(pl.String).to_list() == expected.to_list()
    logger = logged(records, rows, EvaluationConfig(n_resamples=20))
    logger.artifacts["plots/subgroups.png"].savefig(tmp_path / "subgroups.png")
    table: pl.DataFrame = logger.artifacts["evaluation/subgroups.csv"]
    assert set(common) <= set(table.filter(pl.col("attribute") == "race")["group"])


def test_outcomes_of_the_test_subjects_alone_decide_their_metrics(records: CohortRecords) -> None:
    """Another subject's outcome moves nothing of the raw result: recalibration alone learns from validation."""
    config = EvaluationConfig(n_resamples=20)
    before = logged(records, records.rows["test"], config)
    days, event = records.outcomes.follow_up_days.copy(), records.outcomes.is_event.copy()
    changed = records.rows["validation"][::3]  # of all, and higher hazards would have fewer events: refused
    event[changed] = ~event[changed]
    other = CohortRecords(**(vars(records) | {"outcomes": Outcomes(days, event)}))
    after = logged(other, records.rows["test"], config)
    moved = {
        name for name in before.metrics if name.startswith("test/") and before.metrics[name] != after.metrics[name]
    }
    assert moved
    assert all("recalibrated" in name or "conformal" in name for name in moved)
