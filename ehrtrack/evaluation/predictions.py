"""Predictions as rows: one a subject and prediction time, or where causes are told apart one for each cause."""

from __future__ import annotations

import polars as pl

from ehrtrack.arrays import Floats
from ehrtrack.data.cohort import Cohort
from ehrtrack.data.labels import ANY_CAUSE, CAUSE, NUMBER, with_numbers
from ehrtrack.objectives.base import Predictions

CURVE = pl.List(pl.Float64)


def with_predictions(subjects: pl.DataFrame, predictions: Predictions) -> pl.DataFrame:
    """The N rows of subjects at prediction times with the predictions of a model, row for row.

    Returns
    -------
    With one outcome: risk (1 - S at the horizon) and survival (list of K + 1, S at the edges of the time grid).

    With R causes: 1 + R rows for each, told apart by cause: `ANY_CAUSE` in the first and then 1 to R, as text.
    risk is the cumulative incidence at the horizon, of any cause 1 - S; incidence (list of K + 1) is its curve, and
    survival, free of all causes, stands in the first row alone.

    Examples
    --------
    >>> import numpy as np
    >>> subjects = pl.DataFrame({"subject_id": [4, 7]})
    >>> predictions = Predictions(np.array([0, 1]), survival=np.array([[1.0, 0.75], [1.0, 0.5]]))
    >>> with_predictions(subjects, predictions).rows()
    [(4, 0.25, [1.0, 0.75]), (7, 0.5, [1.0, 0.5])]
    """
    survival = pl.Series(predictions.survival.tolist(), dtype=CURVE)
    if predictions.incidence is None:
        return subjects.with_columns(risk=pl.Series(predictions.risk, dtype=pl.Float64), survival=survival)
    numbered = subjects.with_row_index("__row")
    parts = [_of_cause(numbered, ANY_CAUSE, 1 - predictions.survival).with_columns(survival=survival)]
    for number in range(1, predictions.incidence.shape[1] + 1):
        parts.append(_of_cause(numbered, str(number), predictions.incidence[:, number - 1]))
    return pl.concat(parts, how="diagonal").sort("__row", maintain_order=True).drop("__row")


def _of_cause(subjects: pl.DataFrame, cause: str, incidence: Floats) -> pl.DataFrame:
    """The rows of one cause; incidence is (N, K + 1)."""
    return subjects.with_columns(
        pl.lit(cause).alias(CAUSE),
        risk=pl.Series(incidence[:, -1], dtype=pl.Float64),
        incidence=pl.Series(incidence.tolist(), dtype=CURVE),
        survival=pl.lit(None, dtype=CURVE),
    )


def prediction_table(cohort: Cohort, predictions: Predictions) -> pl.DataFrame:
    """Subjects with outcome and prediction; of a cohort whose labels tell causes apart, which cause each risk is of.

    Where subjects have several prediction times, their numbers in the whole cohort are kept. observed_cause is the
    label's cause, 0 for the censored.

    Examples
    --------
    >>> import numpy as np
    >>> from datetime import datetime
    >>> follow_up = {"follow_up_days": [10.0, 30.0], "is_event": [True, False]}
    >>> subjects = pl.DataFrame({"subject_id": [4, 7], "index_date": [datetime(2020, 1, 1)] * 2, **follow_up})
    >>> cohort = Cohort(subjects, horizon_days=30, attrition=pl.DataFrame(), fingerprint="c")
    >>> predictions = Predictions(np.array([1]), survival=np.array([[1.0, 0.75]]))
    >>> prediction_table(cohort, predictions).drop("prediction_time").rows()
    [(7, 30.0, False, 0.25, [1.0, 0.75])]
    """
    everybody = with_numbers(cohort.subjects.rename({"index_date": "prediction_time"}))
    subjects = everybody[predictions.rows]
    numbers = [name for name in (NUMBER,) if name in subjects.columns]
    columns = ["subject_id", "prediction_time", *numbers, "follow_up_days", "is_event"]
    if CAUSE not in subjects.columns:
        return with_predictions(subjects.select(columns), predictions)
    table = with_predictions(subjects.select(*columns, observed_cause=CAUSE), predictions)
    return table if CAUSE in table.columns else table.with_columns(pl.lit(ANY_CAUSE).alias(CAUSE))
