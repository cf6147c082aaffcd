"""The engine of ``ehrtrack import``: any source's tables into a MEDS dataset, checked, counted and streamed.

All tables are staged as candidate events in a DuckDB file beside the output, which spills to disk and holds
memory at a limit. Each candidate is kept or dropped for one reason; the kept are sorted and written.

Rules of time
-------------
- An event is *before birth* if it is on a day before the day of birth.
- An event is *after death* if it is later than the time of death; where death is known by its date alone,
  if it is on a later day.
- Birth and death enclose the events of their day: a death known by its date alone is put at the subject's
  last event of that day (midnight if there is none), and a birth at the first event of its day if that is
  earlier. So no subject has an event before birth or after death.
- Of several deaths the earliest day counts, and on that day the latest time stated, which is the exact one.
  Of several births the earliest counts.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import duckdb
from pydantic import ValidationError

from ehrtrack import plugins
from ehrtrack.data._import_events import judge_events, map_subjects, stage_table
from ehrtrack.data._import_write import Totals, write_dataset
from ehrtrack.data.import_report import ImportReport, TableReport
from ehrtrack.data.sources._relation import first_line, quote_text
from ehrtrack.data.sources._table import SourceTable
from ehrtrack.errors import ConfigError, DataError
from ehrtrack.section import Section

Progress = Callable[[str], None]


def import_dataset(
    source: str,
    path: Path,
    out: Path,
    *,
    config: Path | None = None,
    memory_limit: str = "1GB",
    threads: int | None = None,
    events_per_shard: int = 1_000_000,
    progress: Progress | None = None,
) -> ImportReport:
    """Write the records at `path` as a MEDS dataset in `out`, whole or not at all.

    Parameters
    ----------
    source : a name of ``plugins.names("data.sources")``, such as ``"omop"``.
    path : the source's folder or file.
    out : folder of the dataset; it must be empty or not there yet.
    config : TOML file for the source's settings; `events-csv` needs one.
    memory_limit : what DuckDB may hold in memory before it spills to disk next to `out`.
    threads : threads to use; all cores if not given.
    events_per_shard : a shard ends with the first subject that reaches this many events.
    progress : called with a line of text after each step; prints to stderr if not given.

    Raises
    ------
    ConfigError
        If the source or a setting is unknown.
    DataError
        If a file or column is missing, most times of a table are unreadable, nothing is left, or `out` is
        taken.
    """
    started = time.monotonic()
    path, out = Path(path), Path(out)
    module = plugins.load("data.sources", source)
    settings = read_config(module.Config, source, config)
    _check_paths(path, out)
    report = progress or _print_progress
    with _staging_folder(out) as staging, _database(staging, memory_limit, threads) as connection:
        try:
            tables: list[SourceTable] = module.tables(connection, path, settings)
            present = [table for table in tables if table.relation is not None]
            for index, table in enumerate(present):
                began = time.monotonic()
                n_rows = stage_table(connection, index, table)
                report(f"read {table.name}: {n_rows:,} rows ({time.monotonic() - began:.1f} s)")
            has_integer_ids = map_subjects(connection, present)
            accounts = judge_events(connection, present)
            report(f"checked and sorted {sum(a.n_kept for a in accounts):,} events")
            _check_something_left(accounts, path)
            totals = write_dataset(connection, staging, source, events_per_shard)
            report(f"wrote {totals.n_shards} shard(s)")
        except duckdb.OutOfMemoryException as error:
            raise DataError(
                f"{path} does not fit the memory limit of {memory_limit}; import with a higher one "
                f"({first_line(error)})"
            ) from error
        except duckdb.Error as error:
            raise DataError(f"{path} cannot be imported as {source}: {first_line(error)}") from error
        connection.close()
        _publish(staging, out)
    return _report(source, path, out, tables, accounts, has_integer_ids, totals, time.monotonic() - started)


def read_config(section: type[Section], source: str, path: Path | None) -> Section:
    """The source's settings from a TOML file, or its defaults."""
    values: dict[str, object] = {}
    if path is not None:
        try:
            values = tomllib.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise ConfigError(f"configuration {path} cannot be read: {error.strerror}") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigError(f"configuration {path} is no valid TOML: {error}") from error
    try:
        return section.model_validate(values)
    except ValidationError as error:
        if path is None:
            raise ConfigError(f"source {source} needs a configuration; give one with --config FILE.toml") from error
        known = ", ".join(section.model_fields) or "no setting"
        faults = "; ".join(
            f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors(include_url=False)
        )
        raise ConfigError(f"configuration {path} of source {source}: {faults} (top-level keys: {known})") from error


def _check_paths(path: Path, out: Path) -> None:
    if not path.exists():
        raise DataError(f"{path} not found; needed: the source's folder or file")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"{out} exists and is not an empty folder; choose another output or remove it first")


@contextmanager
def _staging_folder(out: Path) -> Iterator[Path]:
    """A hidden folder beside `out`, on the same file system so that renaming is atomic; gone at the end."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{out.name}-importing-", dir=out.parent))
    except OSError as error:
        raise DataError(f"{out} cannot be written: {error.strerror}; choose another output") from error
    try:
        yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)


@contextmanager
def _database(staging: Path, memory_limit: str, threads: int | None) -> Iterator[duckdb.DuckDBPyConnection]:
    """A connection to a scratch database inside the staging folder, with its spill files beside it."""
    scratch = staging / "scratch"
    scratch.mkdir()
    connection = duckdb.connect(str(scratch / "events.duckdb"))
    try:
        connection.execute(f"SET memory_limit = {quote_text(memory_limit)}")
        connection.execute(f"SET temp_directory = {quote_text(str(scratch / 'spill'))}")
        connection.execute("SET preserve_insertion_order = false")
        connection.execute("SET enable_progress_bar = false")
        connection.execute("SET TimeZone = 'UTC'")
        if threads is not None:
            connection.execute(f"SET threads = {threads}")
        yield connection
    finally:
        connection.close()


def _publish(staging: Path, out: Path) -> None:
    """Move the finished dataset to its place in one step."""
    shutil.rmtree(staging / "scratch")
    staging.chmod(0o755)
    if out.exists():
        out.rmdir()
    staging.rename(out)


def _check_something_left(accounts: list[TableReport], path: Path) -> None:
    if any(account.n_kept for account in accounts):
        return
    lines = [
        f"{account.name}: {account.n_rows:,} rows"
        + "".join(f", {n:,} {reason}" for reason, n in account.dropped.items())
        for account in accounts
    ]
    raise DataError(f"{path} has no usable event ({'; '.join(lines)}); nothing was written")


def _report(
    source: str,
    path: Path,
    out: Path,
    tables: list[SourceTable],
    accounts: list[TableReport],
    has_integer_ids: bool,
    totals: Totals,
    seconds: float,
) -> ImportReport:
    return ImportReport(
        source=source,
        path=path,
        out=out,
        tables=tuple(accounts),
        missing_tables=tuple(table.name for table in tables if table.relation is None),
        has_integer_ids=has_integer_ids,
        n_subjects=totals.n_subjects,
        n_events=totals.n_events,
        n_codes=totals.n_codes,
        n_births=totals.n_births,
        n_deaths=totals.n_deaths,
        first_time=totals.first_time,
        last_time=totals.last_time,
        n_shards=totals.n_shards,
        seconds=seconds,
    )


def _print_progress(line: str) -> None:
    print(f"import: {line}", file=sys.stderr, flush=True)
