"""The scores of each cause of a run with competing risks, and their table in a comparison."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

import polars as pl

from ehrtrack.arrays import Floats
from ehrtrack.data.labels import ANY_CAUSE, CAUSE
from ehrtrack.data.outcomes import Outcomes
from ehrtrack.evaluation.benchmark import RunRow, aligned
from ehrtrack.evaluation.metric_table import C_INDEX, Entry, interval_text
from ehrtrack.evaluation.report import Report
from ehrtrack.runlog import TEST
from ehrtrack.survival.cause_measures import aalen_johansen, cause_c_index, cause_c_index_interval

SCHEMA: dict[str, type[pl.DataType]] = {
    "cause": pl.Int64,
    "c_index": pl.Float64,
    "lower": pl.Float64,
    "upper": pl.Float64,
    "predicted": pl.Float64,
    "observed": pl.Float64,
    "left_out": pl.String,
}


def score_causes(
    incidence: Floats,
    outcomes: Outcomes,
    *,
    horizon_days: float,
    seed: int,
) -> Report:
    """C-index and calibration in the large of each of R causes, by its cumulative incidence at the horizon.

    Parameters
    ----------
    incidence : (B, R, K + 1) predicted, at the edges of the time grid
    outcomes : of B rows, with the cause of each, from 1; 0 for the censored

    Returns
    -------
    The metrics ``c_index_cause_1`` and so on, and the table ``causes``: cause, c_index, lower, upper, predicted (mean
    cumulative incidence at the horizon), observed (Aalen-Johansen), left_out (why there is no C-index or no interval).

    Examples
    --------
    Cause 1 comes first and cause 2 later, and the model says so:

    >>> import numpy as np
    >>> cause = np.tile([1, 2], 10)
    >>> outcomes = Outcomes(np.where(cause == 1, 10.0, 20.0), cause > 0, cause)
    >>> incidence = np.stack([np.where(cause == 1, 0.7, 0.2), np.where(cause == 2, 0.6, 0.1)], axis=1)
    >>> report = score_causes(incidence[:, :, None] * [0, 1], outcomes, horizon_days=30, seed=0)
    >>> report.tables["causes"].select("cause", "c_index", pl.col("predicted", "observed").round(3)).rows()
    [(1, 1.0, 0.45, 0.5), (2, 1.0, 0.35, 0.5)]
    """
    assert outcomes.cause is not None
    report, rows = Report(), []
    follow_up_days, cause = outcomes.follow_up_days, outcomes.cause
    drawn_interval = partial(cause_c_index_interval, seed=seed, subject=outcomes.subject)
    for number in range(1, incidence.shape[1] + 1):
        at_horizon = incidence[:, number - 1, -1]
        name = f"c_index_cause_{number}"
        of_cause = (at_horizon, follow_up_days, cause)
        estimate = report.measure(name, partial(cause_c_index, *of_cause, of=number))
        interval = report.measure(name, partial(drawn_interval, *of_cause, of=number))
        for value in (estimate, interval):
            report.add({} if value is None else {name: value})
        scores = [report.metrics.get(f"{name}{bound}") for bound in ("", "_lower", "_upper")]
        observed = aalen_johansen(follow_up_days, cause, of=number, by_day=horizon_days)
        rows.append((number, *scores, float(at_horizon.mean()), observed, report.left_out.get(name)))
    report.tables["causes"] = pl.DataFrame(rows, schema=SCHEMA, orient="row")
    return report


def causes_text(report: Report) -> dict[str, str]:
    """Lines on each cause for the description of a run; empty if the report has no table ``causes``.

    Examples
    --------
    >>> table = pl.DataFrame([(1, 0.7, 0.6, 0.8, 0.2, 0.25, None)], schema=SCHEMA, orient="row")
    >>> causes_text(Report(tables={"causes": table}))
    {'test C-index of cause 1 (95 % interval)': '0.700 [0.600, 0.800]; mean incidence 0.200, observed 0.250'}
    """
    if "causes" not in report.tables:
        return {}
    return {
        f"test C-index of cause {row['cause']} (95 % interval)": (
            f"{interval_text(row, 'c_index', 'lower', 'upper', form='.3f')}; mean incidence {row['predicted']:.3f}, "
            f"observed {row['observed']:.3f}"
        )
        for row in report.tables["causes"].iter_rows(named=True)
    }


def cause_table(rows: Iterable[RunRow]) -> pl.DataFrame:
    """The test C-index of any cause and of each, of the runs that tell causes apart.

    Returns
    -------
    model, strategy, size, cause (`ANY_CAUSE`, then the numbers), c_index, lower, upper, run_id; in the rows' order

    >>> metrics = {"test/c_index": 0.7, "test/c_index_cause_1": 0.8, "test/c_index_cause_2": 0.6}
    >>> cause_table([RunRow("a", "finetune", "behrt", "c", metrics=metrics)]).select("cause", "c_index").rows()
    [('any', 0.7), ('1', 0.8), ('2', 0.6)]
    """
    lines = []
    for row in rows:
        scores = [(str(number), *row.causes[number]) for number in sorted(row.causes)]
        any_cause = (ANY_CAUSE, *(row.metrics.get(name) for name in Entry(C_INDEX, TEST).names))
        for score in [any_cause, *scores] if scores else ():
            lines.append((row.model, row.strategy, row.size, *score, row.run_id))
    names = ("model", "strategy", "size", CAUSE, "c_index", "lower", "upper", "run_id")
    types = [pl.String] * 4 + [pl.Float64] * 3 + [pl.String]
    return pl.DataFrame(lines, schema=dict(zip(names, types, strict=True)), orient="row")


def causes_to_markdown(table: pl.DataFrame) -> str:
    """The table of `cause_table` as aligned Markdown, to stand below the scores of any cause.

    >>> metrics = {"test/c_index": 0.7, "test/c_index_cause_1": 0.8, "test/c_index_cause_2": 0.6}
    >>> table = cause_table([RunRow("a", "finetune", "behrt", "c", metrics=metrics)])
    >>> print(causes_to_markdown(table).splitlines()[-1])
    | behrt |          |      | 2         | 0.600                        | a   |
    """
    rows = list(table.iter_rows(named=True))
    columns = [
        ("model", [row["model"] for row in rows]),
        ("strategy", [row["strategy"] for row in rows]),
        ("size", [row["size"] for row in rows]),
        ("cause", ["any cause" if row[CAUSE] == ANY_CAUSE else row[CAUSE] for row in rows]),
        ("test C-index (95 % interval)", [interval_text(row, "c_index", "lower", "upper", form=".3f") for row in rows]),
        ("run", [row["run_id"][:8] for row in rows]),
    ]
    text = aligned([(title, False, texts) for title, texts in columns])
    return f"The scores above are of any cause. The C-index of each cause, by its cumulative incidence:\n\n{text}"
