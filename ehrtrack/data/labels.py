"""External labels: a file of subject_id, prediction_time, follow_up_days, is_event."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from ehrtrack.data.events import MedsDataset
from ehrtrack.data.histories import check_times, times_us
from ehrtrack.data.tables import read_table
from ehrtrack.errors import DataError

COLUMNS = ("subject_id", "prediction_time", "follow_up_days", "is_event")
CAUSE = "cause"
"""An optional column: which of several causes ended the follow-up, from 1; 0 for the censored."""
ANY_CAUSE = "any"
"""In predictions, which have a column `cause` where there are several: what a risk of any of them is called."""
TIME_FORMATS = ("%Y-%m-%d", "%Y-%m-%d %H:%M", "%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%dT%H:%M:%S%.f")
TRUTHS = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}


def read_labels(path: Path, dataset: MedsDataset, *, needs_outcome: bool = True) -> pl.DataFrame:
    """One row a subject, from parquet or CSV.

    Subject ids that are no integers are looked up among the source's ids (`metadata/subjects.parquet`).

    Parameters
    ----------
    needs_outcome : False to read only subject_id and prediction_time, as for prediction

    Returns
    -------
    subject_id i64, index_date datetime[us], and with the outcome follow_up_days f64, is_event bool, and cause i64 where
    the file has it.
    Source ids that the dataset does not have get a null subject_id.

    Raises
    ------
    DataError
        If the file or a column is missing, there is no row, a value cannot be read, or a subject appears twice.
    """
    path = Path(path)
    columns = COLUMNS if needs_outcome else COLUMNS[:2]
    table = read_table(path, columns, "cohort.labels")
    if table.is_empty():
        raise DataError(f"the labels are empty: {path} has no row; give one a subject, with {', '.join(columns)}")
    times = _read_times(table["prediction_time"], path)
    result = pl.DataFrame({"subject_id": _read_subjects(table["subject_id"], dataset), "index_date": times})
    if needs_outcome:
        result = result.with_columns(
            _read_numbers(table["follow_up_days"], path), _read_truths(table["is_event"], path)
        )
        if CAUSE in table.columns:
            result = result.with_columns(_read_causes(table[CAUSE], result["is_event"], path))
    twice = result.filter(pl.col("subject_id").is_not_null() & pl.col("subject_id").is_duplicated())
    if not twice.is_empty():
        first = twice["subject_id"][0]
        raise DataError(
            f"{path}: {twice['subject_id'].n_unique()} subjects appear more than once (first: subject "
            f"{first}, {(twice['subject_id'] == first).sum()} times); keep one prediction time a subject"
        )
    return result


def of_any_cause(predictions: pl.DataFrame) -> pl.DataFrame:
    """One row a subject: of predictions that tell causes apart, the risk of any of them."""
    if CAUSE not in predictions.columns:
        return predictions
    return predictions.filter(pl.col(CAUSE) == ANY_CAUSE)


def _read_times(column: pl.Series, path: Path) -> pl.Series:
    name = column.name
    if isinstance(column.dtype, pl.Datetime):
        times = column.dt.replace_time_zone(None).cast(pl.Datetime("us"))
    elif column.dtype == pl.Date:
        times = column.cast(pl.Datetime("us"))
    elif column.dtype == pl.String:
        text = pl.col(name).str.strip_chars()
        read = [text.str.to_datetime(form, time_unit="us", strict=False) for form in TIME_FORMATS]
        times = column.to_frame().select(pl.coalesce(read).alias(name))[name]
    else:
        raise DataError(f"{path}: {name} is {column.dtype}; it must be dates, datetimes or text such as 2020-01-31")
    check_times(times_us(times), f"{path}: {name}")
    _check_read(column, times, path, "a date such as 2020-01-31 or 2020-01-31 14:00:00")
    return times


def _read_subjects(column: pl.Series, dataset: MedsDataset) -> pl.Series:
    if column.dtype.is_integer():
        return column.cast(pl.Int64)
    text = column.cast(pl.String).str.strip_chars()
    numbers = text.cast(pl.Int64, strict=False)
    if numbers.null_count() == 0:
        return numbers
    source = dataset.source_ids()
    found = text.alias("source_id").to_frame().join(source, on="source_id", how="left", maintain_order="left")
    return found["subject_id"]


def _read_numbers(column: pl.Series, path: Path) -> pl.Series:
    numbers = column.cast(pl.Float64, strict=False).fill_nan(None)
    _check_read(column, numbers, path, "a number of days")
    return numbers


def _read_truths(column: pl.Series, path: Path) -> pl.Series:
    if column.dtype == pl.Boolean:
        truths = column
    else:
        lower = column.cast(pl.String).str.strip_chars().str.to_lowercase()
        truths = lower.replace_strict(TRUTHS, default=None, return_dtype=pl.Boolean)
    _check_read(column, truths, path, "true, false, 1 or 0")
    return truths


def _read_causes(column: pl.Series, is_event: pl.Series, path: Path) -> pl.Series:
    causes = column.cast(pl.Float64, strict=False)
    causes = pl.select(pl.when((causes >= 0) & (causes == causes.floor())).then(causes)).to_series().alias(CAUSE)
    _check_read(column, causes, path, "a whole number from 0")
    differs = (causes > 0) != is_event
    if differs.any():
        row = differs.arg_true()[0]
        raise DataError(
            f"{path}: {differs.sum()} rows have a cause without an event or an event without a cause (first: cause "
            f"{column[row]} with is_event {is_event[row]} in row {row + 1}); a cause is above 0 where is_event is true"
        )
    return causes.cast(pl.Int64)


def _check_read(column: pl.Series, read: pl.Series, path: Path, expected: str) -> None:
    unread = read.is_null()
    if unread.any():
        row = unread.arg_true()[0]
        raise DataError(
            f"{path}: {unread.sum()} of {len(read)} values of {column.name} cannot be read "
            f"(first: {column[row]!r} in row {row + 1}); each must be {expected}"
        )
