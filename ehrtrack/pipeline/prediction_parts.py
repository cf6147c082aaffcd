"""Predictions of one shard each, in files: what is finished stays when the process ends, and no table is held whole."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from ehrtrack.arrays import Ints
from ehrtrack.data.eligibility import NOT_IN_DATASET, REASON
from ehrtrack.data.events import fingerprint_of
from ehrtrack.data.labels import of_any_cause
from ehrtrack.errors import DataError
from ehrtrack.files import sha256_of, written_aside
from ehrtrack.pipeline.model_files import CHECKSUMS
from ehrtrack.survival.interpolation import interpolate_survival
from ehrtrack.survival.time_grid import TimeGrid

ROWS_AT_ONCE = 50_000
"""Prediction times whose rows are held in memory when parts become one file."""
_N_EVENTS = "n_events"
_ROWS_TOGETHER = 10_000  # of a part, which is in the order of rows: so a reader of some rows skips the others


def parts_folder(out: Path, model_folder: Path, times: pl.DataFrame, days: Sequence[float]) -> Path:
    """Where the parts of a file of predictions lie: named by all that decides them but the shard.

    Parameters
    ----------
    times : subject_id, prediction_time, as they were asked for
    days : at which risks are told besides
    """
    model = sha256_of(model_folder / CHECKSUMS)
    key = fingerprint_of("predictions", metadata.version("ehrtrack"), model, times, list(days))
    return out.parent / f".parts-{out.name}.{key}"  # no name of what `written_aside` clears away


def part_file(folder: Path, number: int, shard: Path) -> Path:
    """Of a shard by its place among the others and its content."""
    return folder / f"{number:06d}-{sha256_of(shard)[:32]}.parquet"


def write_part(file: Path, table: pl.DataFrame, n_events: Ints) -> None:
    """Keep the predictions of a shard.

    Parameters
    ----------
    table : row (the place among the times asked for, rising) and what is to be written
    n_events : (V,) by token
    """
    with written_aside(file) as aside:
        content = {_N_EVENTS: json.dumps(n_events.tolist())}
        table.write_parquet(aside, metadata=content, row_group_size=_ROWS_TOGETHER)


def events_of(files: Sequence[Path]) -> Ints:
    """(V,) events by token of all parts."""
    of_part = [np.array(json.loads(pl.read_parquet_metadata(file)[_N_EVENTS]), dtype=np.int64) for file in files]
    n_events: Ints = np.sum(of_part, axis=0)
    return n_events


def write_together(
    files: Sequence[Path],
    times: pl.DataFrame,
    nowhere: Callable[[pl.DataFrame], pl.DataFrame],
    out: Path,
    content: dict[str, str],
) -> None:
    """Write the rows of all parts as one file in the order asked for, some at a time.

    Parameters
    ----------
    times : row, subject_id, prediction_time
    nowhere : makes of rows with a reason the table of those that no part has
    content : further entries of the file's metadata

    Raises
    ------
    DataError
        If a subject is in two parts.
    """
    with written_aside(out) as aside:
        writer: pq.ParquetWriter | None = None
        try:
            for block in _blocks(files, times, nowhere):
                arrow = block.to_arrow()
                if writer is None:
                    schema = arrow.schema.with_metadata({name: value.encode() for name, value in content.items()})
                    writer = pq.ParquetWriter(aside, schema)
                writer.write_table(arrow.cast(pa.schema(list(writer.schema))))
        finally:
            if writer is not None:
                writer.close()


def _blocks(
    files: Sequence[Path], times: pl.DataFrame, nowhere: Callable[[pl.DataFrame], pl.DataFrame]
) -> Iterator[pl.DataFrame]:
    for start in range(0, max(times.height, 1), ROWS_AT_ONCE):
        is_here = pl.col("row").is_between(start, start + ROWS_AT_ONCE - 1)
        held = pl.scan_parquet(list(files)).filter(is_here).collect()
        _check_once(held)
        absent = (
            times.filter(is_here).join(held, on="row", how="anti").with_columns(pl.lit(NOT_IN_DATASET).alias(REASON))
        )
        yield pl.concat([held, nowhere(absent)]).sort("row", maintain_order=True).drop("row")


def _check_once(held: pl.DataFrame) -> None:
    """A subject lies in one shard."""
    rows = of_any_cause(held)
    twice = rows.filter(pl.col("row").is_duplicated())
    if not twice.is_empty():
        raise DataError(
            f"subject {twice['subject_id'][0]} is in more than one shard; a MEDS dataset keeps all events of a "
            "subject in one: import the data again"
        )


def with_days(table: pl.DataFrame, grid: TimeGrid, days: Sequence[float]) -> pl.DataFrame:
    """The table with a column of risks for each day, beside that at the horizon; null where there is none."""
    if not days:
        return table
    # Of several causes each row has its incidence; else the risk is what survival leaves.
    curve = pl.col("incidence") if "incidence" in table.columns else pl.col("survival").list.eval(1 - pl.element())
    curves = table.select(curve.alias("curve"))["curve"]
    is_known = curves.is_not_null().to_numpy()
    risks = np.full((table.height, len(days)), np.nan)
    if is_known.any():
        risks[is_known] = 1 - interpolate_survival(1 - np.array(curves.drop_nulls().to_list()), grid, days)
    columns = [pl.Series(f"risk_{day:g}", risks[:, n]).fill_nan(None) for n, day in enumerate(days)]
    place = table.columns.index("risk") + 1
    return table.select(*table.columns[:place], *columns, *table.columns[place:])
