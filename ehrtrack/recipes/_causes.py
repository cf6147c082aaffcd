"""What a run with competing risks reports of each cause, beside what every run reports of any cause."""

from __future__ import annotations

import polars as pl

from ehrtrack.data.batch import Outcomes
from ehrtrack.objectives.survival import Predictions
from ehrtrack.runlog import RunLogger
from ehrtrack.survival.bootstrap import Interval
from ehrtrack.survival.competing_risks import aalen_johansen, cause_c_index_interval


def log_causes(
    logger: RunLogger, test: Predictions, outcomes: Outcomes, *, horizon_days: float, seed: int
) -> pl.DataFrame:
    """Log C-index and calibration in the large of each cause on the test subjects; nothing where there is one cause.

    Returns
    -------
    cause, c_index, lower, upper, predicted (mean cumulative incidence at the horizon), observed (Aalen-Johansen)
    """
    rows = []
    if test.incidence is not None and outcomes.cause is not None:
        days, cause = outcomes.follow_up_days, outcomes.cause
        for number in range(1, test.incidence.shape[1] + 1):
            incidence = test.incidence[:, number - 1, -1]
            c = cause_c_index_interval(incidence, days, cause, of=number, seed=seed)
            observed = aalen_johansen(days, cause, of=number, by_day=horizon_days)
            rows.append((number, c.estimate, c.lower, c.upper, float(incidence.mean()), observed))
    names = ["cause", "c_index", "lower", "upper", "predicted", "observed"]
    table = pl.DataFrame(rows, schema=dict(zip(names, [pl.Int64] + [pl.Float64] * 5, strict=True)), orient="row")
    if rows:
        logger.log_table(table, "evaluation/causes.csv")
        for row in table.iter_rows(named=True):
            c = Interval(row["c_index"], row["lower"], row["upper"])
            logger.log_metrics(c.to_metrics(f"test/c_index_cause_{row['cause']}"), step=0)
    return table
