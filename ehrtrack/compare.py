"""Benchmark tables out of finished runs: what each model costs, how it scores, and whether that differs.

Rules that keep a table honest: the best run is chosen by validation and never by test; runs of different
cohorts never share a table; a difference is claimed only by a paired interval on the same subjects that
excludes 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, Literal

import polars as pl

from ehrtrack.data.labels import of_any_cause
from ehrtrack.errors import DataError
from ehrtrack.evaluation.measures import Report
from ehrtrack.privacy import KEY_FILE, KEY_VARIABLE, RAW
from ehrtrack.survival.bootstrap import Interval, paired_difference

REFERENCE_MODEL = "cox"
ORACLE = "oracle"
"""The true risk of simulated subjects, shown as a model that no run has made."""

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
    val_c_index : on validation subjects, by which runs are chosen
    test_c_index, test_lower, test_upper : on test subjects, with its bootstrap interval
    test_ibs : integrated Brier score on test subjects
    attainable, attainable_lower, attainable_upper : on simulated subjects, (C - 0.5) / (oracle C - 0.5) on the test
        subjects, with its interval
    oracle_c_index, oracle_lower, oracle_upper : of the true risk on the same test subjects
    cohort_fingerprint : runs compare only where this is equal
    horizon_days : that the risks are of, as text; empty where the run did not log it
    causes : by number, the test C-index of each cause with its bounds, of a run that tells causes apart; all other
        scores are of any cause then
    subject_key : fingerprint of the key under which subjects' predictions are logged; "raw" for their own ids
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
    val_c_index: float | None = None
    test_c_index: float | None = None
    test_lower: float | None = None
    test_upper: float | None = None
    test_ibs: float | None = None
    horizon_days: str = ""
    subject_key: str = RAW
    attainable: float | None = None
    attainable_lower: float | None = None
    attainable_upper: float | None = None
    oracle_c_index: float | None = None
    oracle_lower: float | None = None
    oracle_upper: float | None = None
    causes: Mapping[int, tuple[float, float | None, float | None]] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """A short name for figures: model, strategy and size."""
        return " · ".join(part for part in (self.model, self.strategy, self.size) if part)

    @property
    def is_judged(self) -> bool:
        """Whether its test subjects were enough for an interval of the C-index."""
        return _is_known(self.test_lower) and _is_known(self.test_upper)


SCHEMA: dict[str, type[pl.DataType]] = {
    "model": pl.String,
    "strategy": pl.String,
    "size": pl.String,
    "n_parameters": pl.Int64,
    "n_trainable": pl.Int64,
    "checkpoint_mb": pl.Float64,
    "seconds": pl.Float64,
    "val_c_index": pl.Float64,
    "test_c_index": pl.Float64,
    "test_lower": pl.Float64,
    "test_upper": pl.Float64,
    "attainable": pl.Float64,
    "attainable_lower": pl.Float64,
    "attainable_upper": pl.Float64,
    "test_ibs": pl.Float64,
    "difference": pl.Float64,
    "difference_lower": pl.Float64,
    "difference_upper": pl.Float64,
    "verdict": pl.String,
    "run_id": pl.String,
}
"""Columns of a benchmark table, in order."""


def group_by_cohort(rows: Sequence[RunRow]) -> dict[str, list[RunRow]]:
    """The runs of each cohort, by its fingerprint, in the order of their first run."""
    groups: dict[str, list[RunRow]] = {}
    for row in rows:
        groups.setdefault(row.cohort_fingerprint, []).append(row)
    return groups


def best_by_validation(rows: Sequence[RunRow]) -> RunRow:
    """The run with the highest validation C-index; of equals, the one with fewer trainable parameters.

    Runs that could not be judged on their test subjects are none to choose.

    Raises
    ------
    DataError
        If no run has a validation C-index or none could be judged, or the runs are of several cohorts.
    """
    _require_one_cohort(rows)
    scored = [row for row in rows if _is_known(row.val_c_index)]
    if not scored:
        raise DataError(
            f"none of {len(rows)} runs has a validation C-index; "
            "needed is at least one finished fine-tuning or baseline run"
        )
    best = min((row for row in scored if row.is_judged), key=_validation_order, default=None)
    if best is None:
        raise DataError(
            f"none of {len(scored)} runs could be judged: too few test events; widen the cohort or the split"
        )
    return best


def reference_run(
    rows: Sequence[RunRow], predictions: Mapping[str, pl.DataFrame], *, reference: str = REFERENCE_MODEL
) -> RunRow | None:
    """The run that others are compared with, of several the best by validation; None if none has predictions."""
    candidates = [row for row in rows if row.model == reference and row.run_id in predictions]
    return min(candidates, key=_validation_order, default=None)


def unpaired(base: RunRow, rows: Sequence[RunRow], predictions: Mapping[str, pl.DataFrame]) -> dict[str, str]:
    """Runs whose predictions cannot be paired with those of the run `base`: run id -> why, and how to mend it."""
    found = {}
    for row in rows:
        if row.run_id == base.run_id or row.run_id not in predictions:
            continue
        try:
            _require_one_key([base, row])
            _pairs(row.run_id, base.run_id, predictions)
        except DataError as reason:
            found[row.run_id] = str(reason)
    return found


def differences(
    rows: Sequence[RunRow],
    predictions: Mapping[str, pl.DataFrame],
    *,
    reference: str = REFERENCE_MODEL,
    n_resamples: int = 500,
    seed: int = 0,
) -> dict[str, Interval]:
    """Test C-index of each run minus that of the reference, with a paired bootstrap interval.

    Parameters
    ----------
    rows : runs of one cohort
    predictions : by run id, with columns subject_id, follow_up_days (or follow_up_rank), is_event, risk; runs without
        are left out
    reference : a model's name; of several such runs, the best by validation

    Returns
    -------
    By run id, without the reference run itself, and without runs whose subjects have too few events for an interval.
    Empty if there is no reference run with predictions.

    Raises
    ------
    DataError
        If two runs predict for different subjects, call them by hashes of different keys, or disagree on an outcome.
    """
    _require_one_cohort(rows)
    base = reference_run(rows, predictions, reference=reference)
    return {} if base is None else differences_to(base.run_id, rows, predictions, n_resamples=n_resamples, seed=seed)


def differences_to(
    base: str,
    rows: Sequence[RunRow],
    predictions: Mapping[str, pl.DataFrame],
    *,
    n_resamples: int = 500,
    seed: int = 0,
) -> dict[str, Interval]:
    """As `differences`, to the run with id `base`, which is one of `rows` and has predictions."""
    _require_one_cohort(rows)
    _require_one_key([row for row in rows if row.run_id in predictions])
    others = [row.run_id for row in rows if row.run_id != base and row.run_id in predictions]
    paired = partial(_paired, base=base, predictions=predictions, n_resamples=n_resamples, seed=seed)
    found = {run_id: Report().measure(run_id, partial(paired, run_id)) for run_id in others}
    return {run_id: difference for run_id, difference in found.items() if difference is not None}


def verdict_of(difference: Interval) -> Verdict:
    """What a paired difference allows to be said: its interval must exclude 0 for a claim."""
    if difference.lower > 0:
        return "better"
    return "worse" if difference.upper < 0 else "no difference"


def benchmark_table(
    rows: Sequence[RunRow], differences_to_reference: Mapping[str, Interval] | None = None
) -> pl.DataFrame:
    """One line a run, best validation C-index first; on simulated subjects the oracle's after them.

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
    """
    _require_one_cohort(rows)
    lines = []
    for row in sorted(rows, key=_validation_order):
        line: dict[str, Any] = asdict(row)
        difference = (differences_to_reference or {}).get(row.run_id)
        if difference is not None:
            line["difference"] = difference.estimate
            line["difference_lower"], line["difference_upper"] = difference.lower, difference.upper
            line["verdict"] = verdict_of(difference)
        lines.append({name: line.get(name) for name in SCHEMA})
    lines += [{name: line.get(name) for name in SCHEMA} for line in _oracle_lines(rows)]
    return pl.DataFrame(lines, schema=SCHEMA).with_columns(pl.col(pl.Float64).fill_nan(None))


def _oracle_lines(rows: Sequence[RunRow]) -> list[dict[str, Any]]:
    """The oracle's line, one at most: runs of a cohort score it on the same test subjects."""
    return [
        {
            "model": ORACLE,
            "test_c_index": row.oracle_c_index,
            "test_lower": row.oracle_lower,
            "test_upper": row.oracle_upper,
            "attainable": 1.0,
            "run_id": "",
        }
        for row in rows
        if row.oracle_c_index is not None
    ][:1]


def to_markdown(table: pl.DataFrame, *, reference: str = REFERENCE_MODEL, has_causes: bool = False) -> str:
    """The table of `benchmark_table` as aligned Markdown, readable in a terminal as it is.

    Columns in which every run lacks the fact are left out.

    Parameters
    ----------
    has_causes : the outcome is the first of several causes, so that a C-index is said to be of any cause
    """
    c_index = "C-index of any cause" if has_causes else "C-index"
    columns: list[tuple[str, bool, Callable[[dict[str, Any]], str]]] = [
        ("model", False, lambda row: row["model"] or ""),
        ("strategy", False, lambda row: row["strategy"] or ""),
        ("size", False, lambda row: row["size"] or ""),
        ("parameters", True, lambda row: number_text(row["n_parameters"], ",d")),
        ("trainable", True, lambda row: number_text(row["n_trainable"], ",d")),
        ("MB", True, lambda row: number_text(row["checkpoint_mb"], ".2f")),
        ("seconds", True, lambda row: number_text(row["seconds"], ",.1f")),
        (f"val {c_index}", True, lambda row: number_text(row["val_c_index"], ".3f")),
        (
            f"test {c_index} (95 % interval)",
            False,
            lambda row: interval_text(row, "test_c_index", "test_lower", "test_upper", ".3f"),
        ),
        (
            "% of attainable (95 % interval)",
            False,
            lambda row: interval_text(row, "attainable", "attainable_lower", "attainable_upper", ".0%"),
        ),
        ("test IBS", True, lambda row: number_text(row["test_ibs"], ".4f")),
        (
            f"difference to {reference} (95 % interval)",
            False,
            lambda row: interval_text(row, "difference", "difference_lower", "difference_upper", "+.3f"),
        ),
        ("verdict", False, lambda row: row["verdict"] or ""),
        ("run", False, lambda row: row["run_id"][:8]),
    ]
    rows = list(table.iter_rows(named=True))
    cells = [(title, is_right, [text(row) for row in rows]) for title, is_right, text in columns]
    return aligned([(title, is_right, texts) for title, is_right, texts in cells if any(texts)])


def aligned(columns: list[tuple[str, bool, list[str]]]) -> str:
    """Markdown with every column as wide as its widest cell; numbers to the right."""
    padded = []
    for title, is_right, texts in columns:
        width = max(3, *(len(text) for text in (title, *texts)))
        rule = "-" * (width - 1) + ":" if is_right else "-" * width
        fit = str.rjust if is_right else str.ljust
        padded.append([fit(title, width), rule, *(fit(text, width) for text in texts)])
    return "\n".join(f"| {' | '.join(line)} |" for line in zip(*padded, strict=True)) + "\n"


def number_text(value: float | None, form: str) -> str:
    """A cell with a number, empty where it is not known."""
    return "" if value is None else format(value, form)


def interval_text(row: Mapping[str, Any], estimate: str, lower: str, upper: str, form: str) -> str:
    """A cell such as ``0.612 [0.537, 0.684]``: without bounds where they are not known, empty without an estimate."""
    text = number_text(row[estimate], form)
    if not text or row[lower] is None or row[upper] is None:
        return text
    return f"{text} [{row[lower]:{form}}, {row[upper]:{form}}]"


def _is_known(value: float | None) -> bool:
    return value is not None and not math.isnan(value)


def _validation_order(row: RunRow) -> tuple[float, float, str]:
    """Sorts best first: high validation C-index, then few trainable parameters, then run id."""
    score = row.val_c_index if row.val_c_index is not None and _is_known(row.val_c_index) else -math.inf
    return -score, row.n_trainable if row.n_trainable is not None else math.inf, row.run_id


def _require_one_cohort(rows: Sequence[RunRow]) -> None:
    groups = group_by_cohort(rows)
    if len(groups) == 1:
        return
    if not groups:
        raise DataError("no runs to compare; needed is at least one finished fine-tuning or baseline run")
    found = ", ".join(f"{fingerprint} ({len(runs)} runs)" for fingerprint, runs in groups.items())
    raise DataError(
        f"runs of {len(groups)} cohorts cannot share a table: {found}; make one table a cohort (group_by_cohort)"
    )


def _require_one_key(rows: Sequence[RunRow]) -> None:
    """Two keys give one subject two names: there are no pairs to compare."""
    by_key: dict[str, list[str]] = {}
    for row in rows:
        by_key.setdefault(row.subject_key, []).append(row.run_id)
    if len(by_key) > 1:
        found = "; ".join(f"key {key}: {', '.join(runs)}" for key, runs in by_key.items())
        raise DataError(
            f"the predictions of these runs name subjects by hashes under {len(by_key)} different keys ({found}) and "
            f"cannot be paired. Set the same {KEY_VARIABLE} (or copy the cache's {KEY_FILE}) on every machine that "
            "trains, and make the runs of the other keys again or delete them; raw stands for the subjects' own ids"
        )


def _pairs(run_id: str, base: str, predictions: Mapping[str, pl.DataFrame]) -> tuple[str, pl.DataFrame]:
    """The column of follow-up, and the outcome with the risks of both runs (risk, other_risk), a row a subject."""
    # A study that names a calendar date logs ranks of days, which order subjects alike (`privacy.Privacy`).
    days = "follow_up_rank" if "follow_up_rank" in predictions[base].columns else "follow_up_days"
    if days not in predictions[run_id].columns:
        raise DataError(f"run {run_id} logged no {days}, which run {base} did; make one of them again")
    columns = ["subject_id", days, "is_event", "risk"]
    mine, theirs = (of_any_cause(predictions[name]).select(columns).sort("subject_id") for name in (run_id, base))
    if not mine["subject_id"].equals(theirs["subject_id"]):
        unshared = set(mine["subject_id"]) ^ set(theirs["subject_id"])
        raise DataError(
            f"runs {run_id} and {base} predict for {mine.height} and {theirs.height} subjects, "
            f"{len(unshared)} of them in one run alone; a paired difference needs the same subjects in both"
        )
    outcome = [days, "is_event"]
    if not mine.select(outcome).equals(theirs.select(outcome)):
        raise DataError(
            f"runs {run_id} and {base} disagree on the outcome of some subjects; they are not of one cohort"
        )
    return days, mine.with_columns(other_risk=theirs["risk"])


def _paired(
    run_id: str, base: str, predictions: Mapping[str, pl.DataFrame], *, n_resamples: int, seed: int
) -> Interval:
    days, pairs = _pairs(run_id, base, predictions)
    pairs = pairs.sort(days, "is_event", "risk", "other_risk")  # resamples must not depend on what subjects are called
    columns = (pairs[name].to_numpy() for name in ("risk", "other_risk", days, "is_event"))
    return paired_difference(*columns, n_resamples=n_resamples, seed=seed)
