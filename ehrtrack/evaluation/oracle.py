"""The oracle of a simulated cohort: how well the true risk does on the subjects that a model is scored on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

from ehrtrack.data.batch import Outcomes
from ehrtrack.data.settings import CohortConfig
from ehrtrack.data.tables import read_table
from ehrtrack.errors import DataError
from ehrtrack.recipes._prepare import CohortRecords, Rows
from ehrtrack.survival.attainable import attainable_interval
from ehrtrack.survival.bootstrap import Interval, c_index_interval

TRUTH = "truth.parquet"
"""Beside the labels, as `ehrtrack simulate` writes it."""


@dataclass(frozen=True)
class Oracle:
    """C-index of the true risk on the test subjects, and the share of it that the model has attained."""

    c_index: Interval
    attained: Interval

    def to_metrics(self) -> dict[str, float]:
        """Metrics named ``test/oracle_c_index...`` and ``test/attainable...``."""
        return self.c_index.to_metrics("test/oracle_c_index") | self.attained.to_metrics("test/attainable")


def truth_beside(cohort: CohortConfig | None) -> Path | None:
    """The file of true risks of a simulated cohort, or None; they are of the index date, and of no later landmark."""
    if cohort is None or cohort.labels is None or cohort.landmark_days:
        return None
    truth = cohort.labels.parent / TRUTH
    return truth if truth.is_file() else None


def checked_truth(cohort: CohortConfig | None, records: CohortRecords) -> Path | None:
    """As `truth_beside`, after a look at whether it has the test subjects: better before training than after it.

    Raises
    ------
    DataError
        If the file cannot be read, or lacks a test subject.
    """
    truth = truth_beside(cohort)
    if truth is not None:
        read_true_risk(truth, records, records.rows["test"])
    return truth


def read_true_risk(truth: Path, records: CohortRecords, rows: Rows) -> npt.NDArray[np.float64]:
    """(B,) true risk of the subjects in some rows of the store.

    Raises
    ------
    DataError
        If the file cannot be read, or lacks a subject.
    """
    subjects = pl.DataFrame({"subject_id": records.store.subject_ids[rows]})
    risks = read_table(truth, ("subject_id", "risk"), "the file of true risks beside cohort.labels")
    found = subjects.join(risks, on="subject_id", how="left", maintain_order="left")
    if n_absent := found["risk"].null_count():
        raise DataError(
            f"{truth} lacks {n_absent} of {len(rows)} test subjects of the labels beside it; it is of another "
            "population: simulate again, or move the labels to a folder of their own"
        )
    return found["risk"].to_numpy()


def score_oracle(
    truth: Path, records: CohortRecords, rows: Rows, risk: npt.NDArray[np.float64], outcomes: Outcomes, *, seed: int
) -> Oracle:
    """Score the true risk on the same subjects as a model's.

    Parameters
    ----------
    rows : (B,) of the store
    risk : (B,) the model's
    outcomes : of the B subjects

    Raises
    ------
    DataError
        If the file cannot be read, or lacks a subject.
    NotMeasurable
        If the true risk is no better than chance on these subjects, or they are too few.
    """
    true_risk = read_true_risk(truth, records, rows)
    days, event = outcomes.follow_up_days, outcomes.is_event
    return Oracle(
        c_index_interval(true_risk, days, event, seed=seed),
        attainable_interval(risk, true_risk, days, event, seed=seed),
    )
