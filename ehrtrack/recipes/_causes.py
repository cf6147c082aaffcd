"""What a run with competing risks reports of each cause, beside what every run reports of any cause."""

from __future__ import annotations

from functools import partial

import polars as pl

from ehrtrack.data.batch import Outcomes
from ehrtrack.objectives.survival import Predictions
from ehrtrack.runlog import RunLogger
from ehrtrack.survival.competing_risks import aalen_johansen, cause_c_index, cause_c_index_interval
from ehrtrack.survival.evaluation import Report


def log_causes(
    logger: RunLogger, test: Predictions, outcomes: Outcomes, *, horizon_days: float, seed: int
) -> pl.DataFrame:
    """Log C-index and calibration in the large of each cause on the test subjects; nothing where there is one cause.

    Returns
    -------
    cause, c_index, lower, upper, predicted (mean cumulative incidence at the horizon), observed (Aalen-Johansen),
    left_out (why there is no C-index or no interval)
    """
    rows, report = [], Report()
    if test.incidence is not None and outcomes.cause is not None:
        days, cause = outcomes.follow_up_days, outcomes.cause
        for number in range(1, test.incidence.shape[1] + 1):
            incidence = test.incidence[:, number - 1, -1]
            name = f"c_index_cause_{number}"
            of_cause = (incidence, days, cause)
            c = report.measure(name, partial(cause_c_index, *of_cause, of=number))
            interval = report.measure(name, partial(cause_c_index_interval, *of_cause, of=number, seed=seed))
            bounds = (None, None) if interval is None else (interval.lower, interval.upper)
            observed = aalen_johansen(days, cause, of=number, by_day=horizon_days)
            rows.append((number, c, *bounds, float(incidence.mean()), observed, report.left_out.get(name)))
    names = ["cause", "c_index", "lower", "upper", "predicted", "observed", "left_out"]
    types = [pl.Int64] + [pl.Float64] * 5 + [pl.String]
    table = pl.DataFrame(rows, schema=dict(zip(names, types, strict=True)), orient="row")
    if rows:
        logger.log_table(table, "evaluation/causes.csv")
        for row in table.iter_rows(named=True):
            values = {"": row["c_index"], "_lower": row["lower"], "_upper": row["upper"]}
            found = {f"test/c_index_cause_{row['cause']}{bound}": v for bound, v in values.items() if v is not None}
            logger.log_metrics(found, step=0)
        if report.left_out:
            print(f"left out, with reasons in evaluation/causes.csv: {', '.join(report.left_out)}", flush=True)
    return table
