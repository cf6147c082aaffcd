"""External labels: a file of subject_id, prediction_time, follow_up_days, is_event."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import polars as pl

from ehrtrack.data.events import MedsDataset
from ehrtrack.data.histories import check_times, times_us
from ehrtrack.data.tables import open_table
from ehrtrack.data.visits import MICROSECONDS_PER_DAY
from ehrtrack.errors import DataError

COLUMNS = ("subject_id", "prediction_time", "follow_up_days", "is_event")
CAUSE = "cause"
"""An optional column: which of several causes ended the follow-up, from 1; 0 for the censored."""
ANY_CAUSE = "any"
"""In predictions, which have a column `cause` where there are several: what a risk of any of them is called."""
TIME_FORMATS = ("%Y-%m-%d", "%Y-%m-%d %H:%M", "%Y-%m-%d %H:%M:%S%.f")
MEDS_VALUES = ("boolean_value", "integer_value", "float_value", "categorical_value")
"""Columns of MEDS's schema of labels that hold what is to be foretold, without a follow-up."""
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
    need = f"cohort.labels needs a parquet or CSV file with the columns {', '.join(columns)}"
    table = open_table(path, need)
    _check_columns(table, path, columns, need)
    if table.is_empty():
        raise DataError(f"the labels are empty: {path} has no row; give one a subject, with {', '.join(columns)}")
    times = _read_times(table["prediction_time"], path, dataset.time_zone)
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


def _read_times(column: pl.Series, path: Path, time_zone: str) -> pl.Series:
    """The times in UTC, as the events have them; those that name no zone are of the dataset's."""
    name = column.name
    if isinstance(column.dtype, pl.Datetime):
        zone = column.dtype.time_zone
        stamps = column.cast(pl.Datetime("us", zone))
        times = _in_utc(stamps, time_zone) if zone is None else stamps.dt.convert_time_zone("UTC")
    elif column.dtype == pl.Date:
        times = _in_utc(column.cast(pl.Datetime("us")), time_zone)
    elif column.dtype == pl.String:
        times = _read_stamps(column, time_zone)
    else:
        raise DataError(f"{path}: {name} is {column.dtype}; it must be dates, datetimes or text such as 2020-01-31")
    times = times.dt.replace_time_zone(None)
    check_times(times_us(times), f"{path}: {name}")
    _check_read(column, times, path, "a date such as 2020-01-31, 2020-01-31 14:00:00 or 2020-01-31T14:00:00+02:00")
    return times


def _in_utc(times: pl.Series, time_zone: str) -> pl.Series:
    local = times.dt.replace_time_zone(time_zone, ambiguous="earliest", non_existent="null")
    return local.dt.convert_time_zone("UTC")


def _read_stamps(column: pl.Series, time_zone: str) -> pl.Series:
    """ISO 8601 text, with or without a zone, in UTC; null where it is something else."""
    text = column.str.strip_chars().str.replace("T", " ").str.replace(r" ?Z$", "+00:00").str.replace(r" ([+-])", "$1")
    text = text.str.replace(r"(:\d{2}(?:\.\d+)?[+-]\d{2})$", "${1}:00")
    naive = [text.str.to_datetime(form, time_unit="us", strict=False) for form in TIME_FORMATS]
    zoned = [text.str.to_datetime(f"{form}%z", time_unit="us", strict=False) for form in TIME_FORMATS[1:]]
    local = _in_utc(naive[0].to_frame("a").select(pl.coalesce(*naive)).to_series(), time_zone)
    return local.to_frame("a").select(pl.coalesce(local, *zoned)).to_series().alias(column.name)


def _read_subjects(column: pl.Series, dataset: MedsDataset) -> pl.Series:
    """The dataset's subject ids, of its own or the source's; ``12.0``, as pandas writes integers with gaps, is 12."""
    if column.dtype.is_integer():
        return column.cast(pl.Int64)
    if column.dtype.is_float():
        whole = column.cast(pl.Int64, strict=False)
        return whole.set(whole.cast(column.dtype) != column, None)
    text = column.cast(pl.String).str.strip_chars()
    numbers = text.str.replace(r"^(-?\d+)\.0$", "$1").cast(pl.Int64, strict=False)
    is_plain = numbers.cast(pl.String) == text.str.replace(r"\.0$", "")
    if is_plain.fill_null(False).all() and not dataset.has_hashed_ids():
        return numbers
    source = dataset.source_ids()  # where 001 is another subject than 1
    found = text.alias("source_id").to_frame().join(source, on="source_id", how="left", maintain_order="left")
    return found["subject_id"]


def _check_columns(table: pl.DataFrame, path: Path, columns: Sequence[str], need: str) -> None:
    missing = [name for name in columns if name not in table.columns]
    if not missing:
        return
    if meds := [name for name in MEDS_VALUES if name in table.columns]:
        raise DataError(
            f"{path} has the label schema of MEDS ({', '.join(meds)}), which tells whether something happens and not "
            f"when: it lacks {', '.join(missing)}. {need}: add how long each subject was followed (follow_up_days) and "
            "whether the outcome ended it (is_event)"
        )
    raise DataError(f"{path} lacks {', '.join(missing)} (it has {', '.join(table.columns)}); {need}")


def _read_numbers(column: pl.Series, path: Path) -> pl.Series:
    if isinstance(column.dtype, pl.Duration):
        return column.dt.total_microseconds() / MICROSECONDS_PER_DAY
    if column.dtype.is_temporal():
        raise DataError(f"{path}: {column.name} is {column.dtype}; it must be a number of days, or a duration")
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
