"""Benchmark tables out of finished runs: what each model costs, how it scores, and whether that differs.

The best run is chosen by validation and never by test, and runs of different cohorts never share a table.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import polars as pl

from ehrtrack.errors import DataError
from ehrtrack.evaluation.metric_table import (
    C_INDEX,
    METRICS,
    Entry,
    Metric,
    chosen_by,
    interval_text,
    number_text,
    shown,
    with_bounds,
)
from ehrtrack.privacy import RAW
from ehrtrack.runlog import KEPT, TEST, Task
from ehrtrack.survival.resampling import Interval

REFERENCE_MODEL = "cox"
CLASS_REFERENCE_MODEL = "logistic"
ORACLE = "oracle"
"""The true risk of simulated subjects, shown as a model that no run has made."""
CAUSE_METRIC = re.compile(rf"{C_INDEX.named(TEST)}_cause_(\d+)")
"""The C-index of one of several causes, by the name it is logged under."""

Verdict = Literal["better", "no difference", "worse"]


@dataclass(frozen=True)
class RunRow:
    """One finished run, as a comparison sees it. None is a fact that the run does not have.

    Attributes
    ----------
    model : what was fitted, such as "behrt" or "cox"
    strategy, size : of a transformer; empty for baselines
    n_parameters, n_trainable : parameters of the model, and those that were trained
    seconds : training time
    cohort_fingerprint : runs compare only where this is equal
    horizon_days : that the risks are of, as text; empty where the run did not log it
    metrics : by the names under which runs log them, such as ``kept/c_index``
    task : of its model
    subject_key : fingerprint of the key under which subjects' predictions are logged; "raw" for their own ids

    >>> row = RunRow("a", kind="finetune", model="behrt", strategy="lora", size="tiny", cohort_fingerprint="c")
    >>> row.label, row.score(C_INDEX)
    ('behrt · lora · tiny', None)
    """

    run_id: str
    kind: str
    model: str
    cohort_fingerprint: str
    strategy: str = ""
    size: str = ""
    n_parameters: int | None = None
    n_trainable: int | None = None
    checkpoint_mb: float | None = None
    seconds: float | None = None
    horizon_days: str = ""
    subject_key: str = RAW
    metrics: Mapping[str, float] = field(default_factory=dict)
    task: Task = "survival"

    @property
    def label(self) -> str:
        """A short name for figures: model, strategy and size."""
        return " · ".join(part for part in (self.model, self.strategy, self.size) if part)

    @property
    def causes(self) -> dict[int, list[float | None]]:
        """By number, the test C-index of each cause with its bounds, of a run that tells causes apart.

        All other scores of such a run are of any cause.
        """
        numbers = sorted(int(found[1]) for name in self.metrics if (found := CAUSE_METRIC.fullmatch(name)))
        names = {number: with_bounds(f"{C_INDEX.named(TEST)}_cause_{number}") for number in numbers}
        return {number: [self.metrics.get(name) for name in of_cause] for number, of_cause in names.items()}

    def score(self, metric: Metric) -> float | None:
        """A metric of the validation subjects by the kept weights; None where it is not known."""
        score = self.metrics.get(metric.named(KEPT))
        return None if score is None or math.isnan(score) else score

    def is_judged(self, metric: Metric) -> bool:
        """Whether its test subjects were enough for a metric, with its interval where it has one."""
        values = [self.metrics.get(name) for name in Entry(metric, TEST).names]
        return not any(value is None or math.isnan(value) for value in values)


SCHEMA: dict[str, type[pl.DataType]] = {
    "model": pl.String,
    "strategy": pl.String,
    "size": pl.String,
    "n_parameters": pl.Int64,
    "n_trainable": pl.Int64,
    "checkpoint_mb": pl.Float64,
    "seconds": pl.Float64,
    **{column: pl.Float64 for entry in shown("compare") for column in entry.columns},
    "difference": pl.Float64,
    "difference_lower": pl.Float64,
    "difference_upper": pl.Float64,
    "verdict": pl.String,
    "run_id": pl.String,
}
"""Columns of a benchmark table, in order."""


def group_by_cohort(rows: Sequence[RunRow]) -> dict[str, list[RunRow]]:
    """The runs of each cohort, by its fingerprint, in the order of their first run.

    >>> rows = [RunRow(run_id, "baseline", "cox", cohort_fingerprint=cohort) for run_id, cohort in ("ax", "by", "cx")]
    >>> {cohort: [row.run_id for row in of_cohort] for cohort, of_cohort in group_by_cohort(rows).items()}
    {'x': ['a', 'c'], 'y': ['b']}
    """
    groups: dict[str, list[RunRow]] = {}
    for row in rows:
        groups.setdefault(row.cohort_fingerprint, []).append(row)
    return groups


def reference_model(rows: Sequence[RunRow]) -> str:
    """The model that runs are compared with: of labels of classes the logistic regression, else the Cox model.

    Examples
    --------
    >>> reference_model([RunRow("a", "baseline", "lasso", "c")])
    'cox'
    """
    return CLASS_REFERENCE_MODEL if {row.task for row in rows} == {"classes"} else REFERENCE_MODEL


def metric_of_choice(rows: Sequence[RunRow]) -> Metric:
    """The metric by which the best of some runs is chosen.

    >>> metric_of_choice([RunRow("a", "baseline", "cox", cohort_fingerprint="c")]).title
    'C-index'
    """
    return chosen_by({row.task for row in rows})


def best_by_validation(rows: Sequence[RunRow]) -> RunRow:
    """The best run by the metric of choice on validation subjects; of equals, the one with fewer trainable parameters.

    Runs that could not be judged on their test subjects are none to choose.

    Raises
    ------
    DataError
        If no run has the metric or none could be judged, or the runs are of several cohorts.

    Examples
    --------
    The best on validation subjects is chosen, though another is better on the test subjects:

    >>> bounds = {"test/c_index_lower": 0.6, "test/c_index_upper": 0.8}
    >>> rows = [
    ...     RunRow("a", "baseline", "cox", "c", metrics={"kept/c_index": 0.72, "test/c_index": 0.70, **bounds}),
    ...     RunRow("b", "baseline", "gru", "c", metrics={"kept/c_index": 0.71, "test/c_index": 0.73, **bounds}),
    ... ]
    >>> best_by_validation(rows).run_id
    'a'
    """
    require_one_cohort(rows)
    metric = metric_of_choice(rows)
    scored = [row for row in rows if row.score(metric) is not None]
    if not scored:
        raise DataError(
            f"none of {len(rows)} runs has a validation {metric.title}; "
            "needed is at least one finished fine-tuning or baseline run"
        )
    best = next((row for row in best_first(scored) if row.is_judged(metric)), None)
    if best is None:
        raise DataError(
            f"none of {len(scored)} runs could be judged: too few test events; widen the cohort or the split"
        )
    return best


def verdict_of(difference: Interval) -> Verdict:
    """The verdict on a paired difference: ``better`` or ``worse`` only if its interval excludes 0.

    >>> [verdict_of(Interval(0.02, lower, 0.05)) for lower in (0.01, -0.01)]
    ['better', 'no difference']
    """
    if difference.lower > 0:
        return "better"
    return "worse" if difference.upper < 0 else "no difference"


def benchmark_table(
    rows: Sequence[RunRow], differences_to_reference: Mapping[str, Interval] | None = None
) -> pl.DataFrame:
    """One line a run, the best by validation first; on simulated subjects the oracle's after them.

    Parameters
    ----------
    rows : runs of one cohort
    differences_to_reference : from `differences`

    Returns
    -------
    Table with the columns of `SCHEMA`; null where a run lacks a fact.

    Raises
    ------
    DataError
        If there are no rows, or rows of several cohorts (the message lists them).

    >>> rows = [
    ...     RunRow("a", "baseline", "cox", "c", seconds=2, metrics={"kept/c_index": 0.70}),
    ...     RunRow("b", "finetune", "behrt", "c", strategy="lora", metrics={"kept/c_index": 0.72}),
    ... ]
    >>> table = benchmark_table(rows, {"b": Interval(0.02, 0.01, 0.03)})
    >>> table.select("model", "strategy", "seconds", "val_c_index", "difference", "verdict").rows()
    [('behrt', 'lora', None, 0.72, 0.02, 'better'), ('cox', '', 2.0, 0.7, None, None)]
    """
    require_one_cohort(rows)
    lines = []
    for row in best_first(rows):
        line: dict[str, Any] = vars(row) | _scores(row)
        difference = (differences_to_reference or {}).get(row.run_id)
        if difference is not None:
            line["difference"] = difference.estimate
            line["difference_lower"], line["difference_upper"] = difference.lower, difference.upper
            line["verdict"] = verdict_of(difference)
        lines.append({name: line.get(name) for name in SCHEMA})
    lines += [{name: line.get(name) for name in SCHEMA} for line in _oracle_lines(rows)]
    return pl.DataFrame(lines, schema=SCHEMA).with_columns(pl.col(pl.Float64).fill_nan(None))


def _scores(row: RunRow, prefix: str = "") -> dict[str, float | None]:
    """What a run has of the metrics of a table, by column; with a prefix, of the metrics whose keys begin with it."""
    of_task = shown("compare", {row.task})
    columns = {column: name for entry in of_task for column, name in entry.columns.items()}
    return {column: row.metrics.get(name.replace("/", f"/{prefix}")) for column, name in columns.items()}


def _oracle_lines(rows: Sequence[RunRow]) -> list[dict[str, Any]]:
    """The oracle's line, one at most: runs of a cohort score it on the same test subjects."""
    return [
        {**_scores(row, "oracle_"), "model": ORACLE, "attainable": 1.0, "run_id": ""}
        for row in rows
        if METRICS["oracle_c_index"].named(TEST) in row.metrics
    ][:1]


def to_markdown(
    table: pl.DataFrame, *, reference: str = REFERENCE_MODEL, has_causes: bool = False, metric: Metric = C_INDEX
) -> str:
    """The table of `benchmark_table` as aligned Markdown, readable in a terminal as it is.

    Columns in which every run lacks the fact are left out.

    Parameters
    ----------
    reference, metric : what the differences are to, and of
    has_causes : the outcome is the first of several causes, so that a C-index is said to be of any cause

    >>> rows = [RunRow(f"run-{model}", "baseline", model, "c", seconds=2) for model in ("cox", "gru")]
    >>> print(to_markdown(benchmark_table(rows)).strip())
    | model | seconds | run     |
    | ----- | ------: | ------- |
    | cox   |     2.0 | run-cox |
    | gru   |     2.0 | run-gru |
    """
    columns: list[tuple[str, bool, Callable[[dict[str, Any]], str]]] = [
        ("model", False, lambda row: row["model"] or ""),
        ("strategy", False, lambda row: row["strategy"] or ""),
        ("size", False, lambda row: row["size"] or ""),
        ("parameters", True, lambda row: number_text(row["n_parameters"], ",d")),
        ("trainable", True, lambda row: number_text(row["n_trainable"], ",d")),
        ("MB", True, lambda row: number_text(row["checkpoint_mb"], ".2f")),
        ("seconds", True, lambda row: number_text(row["seconds"], ",.1f")),
        *(
            (
                entry.title(" of any cause" if has_causes and entry.metric is C_INDEX else ""),
                not entry.has_bounds,
                entry.text,
            )
            for entry in shown("compare")
        ),
        (
            f"difference to {reference}{'' if metric is C_INDEX else f' in {metric.title}'} (95 % interval)",
            False,
            lambda row: interval_text(row, *with_bounds("difference"), form="+.3f"),
        ),
        ("verdict", False, lambda row: row["verdict"] or ""),
        ("run", False, lambda row: row["run_id"][:8]),
    ]
    rows = list(table.iter_rows(named=True))
    cells = [(title, is_right, [text(row) for row in rows]) for title, is_right, text in columns]
    return aligned([(title, is_right, texts) for title, is_right, texts in cells if any(texts)])


def aligned(columns: list[tuple[str, bool, list[str]]]) -> str:
    """Markdown with every column as wide as its widest cell; numbers to the right.

    >>> print(aligned([("model", False, ["cox", "gru"]), ("seconds", True, ["2.0", "31.5"])]).strip())
    | model | seconds |
    | ----- | ------: |
    | cox   |     2.0 |
    | gru   |    31.5 |
    """
    padded = []
    for title, is_right, texts in columns:
        width = max(3, *(len(text) for text in (title, *texts)))
        rule = "-" * (width - 1) + ":" if is_right else "-" * width
        fit = str.rjust if is_right else str.ljust
        padded.append([fit(title, width), rule, *(fit(text, width) for text in texts)])
    return "\n".join(f"| {' | '.join(line)} |" for line in zip(*padded, strict=True)) + "\n"


def best_first(rows: Sequence[RunRow]) -> list[RunRow]:
    """By the metric of choice on validation subjects, then few trainable parameters, then run id.

    >>> found = {"a": 0.6, "b": 0.7}
    >>> rows = [RunRow(name, "baseline", "cox", "c", metrics={"kept/c_index": c}) for name, c in found.items()]
    >>> [row.run_id for row in best_first(rows)]
    ['b', 'a']
    """
    if not rows:
        return []
    metric = metric_of_choice(rows)

    def order(row: RunRow) -> tuple[float, float, str]:
        score, n_trainable = row.score(metric), row.n_trainable
        return (
            math.inf if score is None else metric.shortfall(score),
            math.inf if n_trainable is None else n_trainable,
            row.run_id,
        )

    return sorted(rows, key=order)


def require_one_cohort(rows: Sequence[RunRow]) -> None:
    """Refuse runs of several cohorts, whose scores do not compare.

    Raises
    ------
    DataError
        If there are no runs, or the runs are of several cohorts.

    >>> require_one_cohort([RunRow("a", "baseline", "cox", "c"), RunRow("b", "baseline", "gru", "c")])
    """
    groups = group_by_cohort(rows)
    if len(groups) == 1:
        return
    if not groups:
        raise DataError("no runs to compare; needed is at least one finished fine-tuning or baseline run")
    found = ", ".join(f"{fingerprint} ({len(runs)} runs)" for fingerprint, runs in groups.items())
    raise DataError(
        f"runs of {len(groups)} cohorts cannot share a table: {found}; make one table a cohort (group_by_cohort)"
    )
