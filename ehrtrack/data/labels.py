"""External labels: what becomes of subjects after the times at which it is to be foretold.

A row is a subject at a prediction time, and a subject may have several. Labels say when the outcome comes
(`follow_up_days` or `censor_time`, with `is_event`), or only whether it does: the label schema of MEDS (`LabelSchema`
of the package meds 0.4), as ACES and MEDS-DEV write it.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import NoReturn

import polars as pl

from ehrtrack.data.events import MedsDataset
from ehrtrack.data.histories import check_times, times_us
from ehrtrack.data.tables import open_table, open_tables, parts_of
from ehrtrack.data.visits import MICROSECONDS_PER_DAY
from ehrtrack.errors import DataError

KEYS = ("subject_id", "prediction_time")
NEED = "cohort.labels needs a parquet or CSV file, or a folder of them, with the columns subject_id, prediction_time"
OUTCOMES = (
    "and either follow_up_days (or censor_time, when it ended) with is_event (or boolean_value), or boolean_value alone"
)
CAUSE = "cause"
"""An optional column: which of several causes ended the follow-up, from 1; 0 for the censored."""
ANY_CAUSE = "any"
"""In predictions, which have a column `cause` where there are several: what a risk of any of them is called."""
NUMBER = "prediction_number"
"""A column of predictions where subjects have several prediction times: which of a subject's they are of, the first
being 1. Logged predictions have no dates, and go by it."""
TIME_FORMATS = ("%Y-%m-%d", "%Y-%m-%d %H:%M", "%Y-%m-%d %H:%M:%S%.f")
MEDS_VALUES = ("boolean_value", "integer_value", "float_value", "categorical_value")
"""Columns of MEDS's schema of labels. The last two are of what no objective here foretells."""
TRUTHS = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}


def tells_when(path: Path) -> bool:
    """Whether labels tell when the outcome comes, and not only whether, by their columns.

    Raises
    ------
    DataError
        If they cannot be read.
    """
    need = f"{NEED}, {OUTCOMES}"
    first = parts_of(path, need)[0][0] if path.is_dir() else path
    return not {"follow_up_days", "censor_time"}.isdisjoint(open_table(first, need).columns)


def read_labels(path: Path, dataset: MedsDataset, *, needs_outcome: bool = True) -> pl.DataFrame:
    """One row a subject and prediction time, from a parquet or CSV file or a folder of them.

    Subject ids that are no integers are looked up among the source's ids (`metadata/subjects.parquet`). Of MEDS's value
    columns one that is wholly empty counts as not there: ACES writes all of them, whatever its task has. Where there
    are several, `follow_up_days` goes before `censor_time`, `is_event` before `boolean_value`, and that before
    `integer_value`, which is read where it holds 0 and 1 alone.

    Parameters
    ----------
    needs_outcome : False to read only subject_id and prediction_time, as for prediction

    Returns
    -------
    subject_id i64, index_date datetime[us]; with the outcome is_event bool, follow_up_days f64 where the labels tell
    of a follow-up, and cause i64 where they have it.
    Source ids that the dataset does not have get a null subject_id.

    Raises
    ------
    DataError
        If the file or a column is missing, there is no row, a value cannot be read, or a subject has a prediction time
        twice.
    """
    path = Path(path)
    need = f"{NEED}, {OUTCOMES}" if needs_outcome else NEED
    table = open_tables(path, need)
    if table.is_empty():
        raise DataError(f"the labels are empty: {path} has no row; {need}")
    _check_columns(table.columns, path, KEYS, need)
    times = _read_times(table["prediction_time"], path, dataset.time_zone)
    result = pl.DataFrame({"subject_id": read_subjects(table["subject_id"], dataset), "index_date": times})
    if needs_outcome:
        result = result.with_columns(*_read_outcome(table, path, need, result["index_date"], dataset.time_zone))
    _check_once(result, path)
    return result


def _read_outcome(
    table: pl.DataFrame, path: Path, need: str, index_dates: pl.Series, time_zone: str
) -> list[pl.Series]:
    """The columns of the outcome: is_event, with follow_up_days and cause where the labels have them."""
    empty = [name for name in MEDS_VALUES if name in table.columns and table[name].null_count() == table.height]
    table = table.drop(empty)
    names = table.columns
    if "follow_up_days" in names:
        follow_up = [_read_numbers(table["follow_up_days"], path)]
    elif "censor_time" in names:
        ends = _read_times(table["censor_time"], path, time_zone)
        days = (ends - index_dates).dt.total_microseconds() / MICROSECONDS_PER_DAY
        follow_up = [days.alias("follow_up_days")]
    else:
        follow_up = []
    truths = [name for name in ("is_event", "boolean_value", "integer_value") if name in names]
    if not follow_up and "is_event" in truths:
        truths.remove("is_event")  # it says what ended a follow-up
    if not truths:
        _refuse(table, path, empty, need)
    is_event = _read_truths(table[truths[0]], path).alias("is_event")
    if not follow_up or CAUSE not in names:
        return [*follow_up, is_event]
    return [*follow_up, is_event, _read_causes(table[CAUSE], is_event, path)]


def _refuse(table: pl.DataFrame, path: Path, empty: Collection[str], need: str) -> NoReturn:
    """Say what the labels hold instead of an outcome."""
    if others := [name for name in MEDS_VALUES if name in table.columns]:
        raise DataError(
            f"{path} has labels of {', '.join(others)} (MEDS's schema), and what is foretold here is whether something "
            "happens, or when: make it a boolean_value, such as whether a value is above a limit or which category it "
            "is, or give follow_up_days and is_event"
        )
    lacking = "follow_up_days" if "is_event" in table.columns else "is_event"
    is_empty = f"; wholly empty: {', '.join(empty)}" if empty else ""
    raise DataError(f"{path} lacks {lacking} (it has {', '.join(table.columns)}{is_empty}); {need}")


def _check_once(labels: pl.DataFrame, path: Path) -> None:
    """A subject may have several prediction times, and each of them once."""
    known = labels.filter(pl.col("subject_id").is_not_null())
    twice = known.filter(pl.struct("subject_id", "index_date").is_duplicated())
    if not twice.is_empty():
        first = twice.row(0, named=True)
        n_pairs = twice.n_unique(["subject_id", "index_date"])
        n_of_first = twice.filter(subject_id=first["subject_id"], index_date=first["index_date"]).height
        raise DataError(
            f"{path}: {n_pairs} pairs of subject_id and prediction_time appear more than once (first: subject "
            f"{first['subject_id']} at {first['index_date']}, {n_of_first} times); keep one label of each"
        )


def with_numbers(times: pl.DataFrame) -> pl.DataFrame:
    """Rows of subjects at prediction times with `NUMBER` where a subject has several, else as they are.

    Parameters
    ----------
    times : subject_id, prediction_time and any other columns, in any order
    """
    if not times["subject_id"].is_duplicated().any():
        return times
    number = pl.col("prediction_time").rank("ordinal").over("subject_id").cast(pl.Int64)
    return times.with_columns(number.alias(NUMBER))


def of_any_cause(predictions: pl.DataFrame) -> pl.DataFrame:
    """One row a subject and prediction time: of predictions that tell causes apart, the risk of any of them."""
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


def read_subjects(column: pl.Series, dataset: MedsDataset) -> pl.Series:
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


def _check_columns(present: Collection[str], path: Path, columns: Collection[str], need: str) -> None:
    missing = [name for name in columns if name not in present]
    if missing:
        raise DataError(f"{path} lacks {', '.join(missing)} (it has {', '.join(present)}); {need}")


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
    hint = "; make classes in greater number and counts a boolean_value, such as whether one is above a limit"
    _check_read(column, truths, path, "true, false, 1 or 0" + (hint if column.name == "integer_value" else ""))
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
