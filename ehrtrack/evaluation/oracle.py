"""The true risks of a simulated cohort, by which its oracle is scored on the subjects that a model is scored on."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from ehrtrack.arrays import Floats, Ints
from ehrtrack.data.settings import CohortConfig
from ehrtrack.data.tables import read_table
from ehrtrack.errors import DataError

TRUTH = "truth.parquet"
"""Beside the labels, as `ehrtrack simulate` writes it."""


def truth_beside(cohort: CohortConfig | None) -> Path | None:
    """The file of true risks of a simulated cohort, or None; they are of the follow-up from the index date on.

    Examples
    --------
    >>> truth_beside(CohortConfig(labels="labels.csv", horizon_days=30, landmark_days=7)) is None
    True
    """
    if cohort is None or cohort.labels is None or cohort.landmark_days or cohort.gap_days:
        return None
    truth = cohort.labels.parent / TRUTH
    return truth if truth.is_file() else None


def checked_truth(cohort: CohortConfig | None, test_subjects: Ints) -> Path | None:
    """As `truth_beside`, after a look at whether it has the test subjects: better before training than after it.

    Raises
    ------
    DataError
        If the file cannot be read, or lacks a test subject.

    Examples
    --------
    >>> import numpy as np
    >>> checked_truth(None, np.array([1, 2])) is None
    True
    """
    truth = truth_beside(cohort)
    if truth is not None:
        read_true_risk(truth, test_subjects)
    return truth


def read_true_risk(truth: Path, subject_ids: Ints) -> Floats:
    """(B,) true risk of B test subjects.

    Raises
    ------
    DataError
        If the file cannot be read, or lacks a subject.

    Examples
    --------
    >>> import numpy as np
    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     pl.DataFrame({"subject_id": [4, 7], "risk": [0.2, 0.5]}).write_parquet(Path(folder) / TRUTH)
    ...     read_true_risk(Path(folder) / TRUTH, np.array([7, 4])).tolist()
    [0.5, 0.2]
    """
    subjects = pl.DataFrame({"subject_id": subject_ids})
    if subjects["subject_id"].is_duplicated().any():
        raise DataError(
            f"{truth} has a true risk a subject, at one index date, and subjects of the labels beside it have several "
            "prediction times: move the labels to a folder of their own"
        )
    risks = read_table(truth, ("subject_id", "risk"), "the file of true risks beside cohort.labels")
    found = subjects.join(risks, on="subject_id", how="left", maintain_order="left")
    if n_absent := found["risk"].null_count():
        raise DataError(
            f"{truth} lacks {n_absent} of {subjects.height} test subjects of the labels beside it; it is of another "
            "population: simulate again, or move the labels to a folder of their own"
        )
    return found["risk"].to_numpy()
