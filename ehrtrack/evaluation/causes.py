"""What a run with competing risks reports of each cause, beside what every run reports of any cause."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

import polars as pl

from ehrtrack.compare import RunRow, aligned, interval_text
from ehrtrack.data.batch import Outcomes
from ehrtrack.data.labels import ANY_CAUSE, CAUSE
from ehrtrack.evaluation.measures import Report
from ehrtrack.objectives.base import Predictions
from ehrtrack.runlog import RunLogger
from ehrtrack.survival.competing_risks import aalen_johansen, cause_c_index, cause_c_index_interval


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


def causes_text(causes: pl.DataFrame) -> dict[str, str]:
    """What a run's description says of each cause, from the table of `log_causes`."""
    return {
        f"test C-index of cause {row['cause']} (95 % interval)": (
            f"{interval_text(row, 'c_index', 'lower', 'upper', '.3f')}; mean incidence {row['predicted']:.3f}, "
            f"observed {row['observed']:.3f}"
        )
        for row in causes.iter_rows(named=True)
    }


def cause_table(rows: Iterable[RunRow]) -> pl.DataFrame:
    """The test C-index of any cause and of each, of the runs that tell causes apart.

    Returns
    -------
    model, strategy, size, cause (`ANY_CAUSE`, then the numbers), c_index, lower, upper, run_id; in the rows' order
    """
    lines = []
    for row in rows:
        scores = [(str(number), *row.causes[number]) for number in sorted(row.causes)]
        any_cause = (ANY_CAUSE, row.test_c_index, row.test_lower, row.test_upper)
        for score in [any_cause, *scores] if scores else ():
            lines.append((row.model, row.strategy, row.size, *score, row.run_id))
    names = ("model", "strategy", "size", CAUSE, "c_index", "lower", "upper", "run_id")
    types = [pl.String] * 4 + [pl.Float64] * 3 + [pl.String]
    return pl.DataFrame(lines, schema=dict(zip(names, types, strict=True)), orient="row")


def causes_to_markdown(table: pl.DataFrame) -> str:
    """The table of `cause_table` as aligned Markdown, to stand below the scores of any cause."""
    rows = list(table.iter_rows(named=True))
    columns = [
        ("model", [row["model"] for row in rows]),
        ("strategy", [row["strategy"] for row in rows]),
        ("size", [row["size"] for row in rows]),
        ("cause", ["any cause" if row[CAUSE] == ANY_CAUSE else row[CAUSE] for row in rows]),
        ("test C-index (95 % interval)", [interval_text(row, "c_index", "lower", "upper", ".3f") for row in rows]),
        ("run", [row["run_id"][:8] for row in rows]),
    ]
    text = aligned([(title, False, texts) for title, texts in columns])
    return f"The scores above are of any cause. The C-index of each cause, by its cumulative incidence:\n\n{text}"
