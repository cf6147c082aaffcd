"""The engine of ``ehrtrack import``: any source's tables into a MEDS dataset, checked, counted and streamed.

1. DuckDB reads each table, batch by batch; the candidate events that its rows make go to files beside the
   output, the runs (`candidates`).
2. Subjects get their ids and are dealt to shards in order of these (`shards`).
3. Each shard is made on its own: of its candidates each is kept or dropped for one reason, and the kept are
   sorted and written (`write`). Shards are made side by side where there are several workers.

Memory holds a few batches, or as many shards as there are workers, and the subjects' identifiers; never the
table. The output is the same, byte for byte, for any number of threads and workers.

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
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import duckdb
import numpy as np
import polars as pl
from pydantic import ValidationError

from ehrtrack import plugins
from ehrtrack.arrays import Ints
from ehrtrack.data.engines import Engine, open_engine
from ehrtrack.data.importing.account import TableAccount
from ehrtrack.data.importing.candidates import Candidates, number_subjects
from ehrtrack.data.importing.metadata import write_codes, write_description, write_splits, write_subjects
from ehrtrack.data.importing.report import DROP_REASONS, ImportReport, TableReport
from ehrtrack.data.importing.shards import name_shards, order_codes, plan_shards
from ehrtrack.data.importing.write import ShardAccount, write_shard
from ehrtrack.data.sources._messages import what_is_wrong
from ehrtrack.data.sources._reader import Reader
from ehrtrack.data.sources._relation import quote_text
from ehrtrack.data.sources._results import with_results_in_codes
from ehrtrack.data.sources._units import Conversion, read_conversions, with_units
from ehrtrack.data.sources.base import Source, SourceTable
from ehrtrack.data.sources.settings import Reading
from ehrtrack.errors import ConfigError, DataError
from ehrtrack.files import publish, scratch_folder
from ehrtrack.study_file import read_toml

_SOUNDS_LIKE_LIFE = r"(?i)(^|[/_ ])(dob|birth|born|dod|death|died|dead|deceased|expired)($|[/_ ])"
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
    engine: str = "local",
    n_workers: int = 1,
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
    threads : threads with which DuckDB reads; all cores if not given.
    events_per_shard : a shard ends with the first subject that reaches this many events of the source.
    engine : a name of ``plugins.names("data.engines")``: where shards are written.
    n_workers : shards that are written at the same time.
    progress : called with a line of text after each step; prints to stderr if not given.

    Raises
    ------
    ConfigError
        If the source, the engine or a setting is unknown.
    DataError
        If a file or column is missing, most times of a table are unreadable, nothing is left, or `out` is
        taken.
    """
    started = time.monotonic()
    path, out = Path(path), Path(out)
    chosen = plugins.plugin("data.sources", source, Source)
    settings = read_config(chosen.Config, source, config)
    _check_paths(path, out)
    conversions = read_conversions(settings.units) if settings.units else ()
    report = progress or _print_progress
    with open_engine(engine, n_workers) as workers, _staging_folder(out) as staging:
        candidates = Candidates(staging / "scratch" / "runs")
        with _database(staging / "scratch", memory_limit, threads, settings.time_zone) as connection:
            reader = Reader(connection, settings, staging / "scratch")
            place = str(path)
            try:
                tables = chosen(settings).tables(reader, path)
                present = [_read_alike(reader, table, conversions) for table in tables if table.relation is not None]
                for table in present:
                    place = f"table {table.name} of {path}"
                    began = time.monotonic()
                    n_rows = candidates.stage(connection, table, settings)
                    report(f"read {table.name}: {n_rows:,} rows ({time.monotonic() - began:.1f} s)")
            except duckdb.OutOfMemoryException as error:
                raise DataError(
                    f"{path} does not fit the memory limit of {memory_limit}; import with a higher one "
                    f"({what_is_wrong(error)})"
                ) from error
            except duckdb.ConversionException as error:
                places = ", ".join(reader.unreadable_columns()) or place
                raise DataError(
                    f"{places} cannot be read: {what_is_wrong(error)}; needed: values that DuckDB can hold, of times "
                    "those within microseconds of 64 bits. Mend the column, or store it as text"
                ) from error
            except duckdb.Error as error:
                raise DataError(f"{path} cannot be imported as {source}: {what_is_wrong(error)}") from error
        subjects, has_integer_ids = number_subjects(candidates, has_roster=any(table.is_roster for table in present))
        shards, n_unknown = _write_events(candidates, subjects, staging, events_per_shard, workers, settings.time_zone)
        accounts = _accounts(candidates, subjects, shards, n_unknown)
        _check_deaths(shards, candidates.accounts, settings)
        _check_something_left(accounts, path, settings)
        codes = _write_metadata(candidates, subjects, shards, staging, source, settings)
        report(f"checked, sorted and wrote {sum(shard.n_events for shard in shards):,} events")
        left_out = [f"{table.name} ({table.left_out})" for table in tables if table.left_out]
        _publish(staging, out)
    written = [shard for shard in shards if shard.n_events]
    return ImportReport(
        source=source,
        path=path,
        out=out,
        tables=tuple(accounts),
        missing_tables=tuple(table.name for table in tables if table.relation is None and not table.left_out),
        unread=(*left_out, *reader.unread(path)),
        has_integer_ids=has_integer_ids,
        n_subjects=sum(len(shard.subjects) for shard in shards),
        n_events=sum(shard.n_events for shard in shards),
        n_codes=codes.height,
        n_births=sum(shard.n_births for shard in shards),
        n_deaths=sum(shard.n_deaths for shard in shards),
        n_future=sum(shard.n_future for shard in shards),
        has_splits=candidates.splits is not None,
        hints=(*_hints(codes, shards, settings), *_unused(candidates, conversions)),
        first_time=min((shard.first_time for shard in written if shard.first_time), default=None),
        last_time=max((shard.last_time for shard in written if shard.last_time), default=None),
        n_shards=len(written),
        seconds=time.monotonic() - started,
    )


def _read_alike(reader: Reader, table: SourceTable, conversions: tuple[Conversion, ...]) -> SourceTable:
    """The table with its results and their units as every source has them."""
    return with_results_in_codes(reader, with_units(reader, table, conversions))


def _write_events(
    candidates: Candidates,
    subjects: pl.DataFrame,
    staging: Path,
    events_per_shard: int,
    workers: Engine,
    time_zone: str,
) -> tuple[list[ShardAccount], Ints]:
    """Write all shards; by table, the candidates of subjects that no roster names come with the accounts."""
    folder = staging / "data"
    folder.mkdir()
    tasks, n_unknown = plan_shards(
        candidates, subjects, out=folder, events_per_shard=events_per_shard, time_zone=time_zone
    )
    shards = workers.map(write_shard, tasks)
    name_shards([shard.out for shard in shards if shard.n_events])
    return shards, n_unknown


def _write_metadata(
    candidates: Candidates,
    subjects: pl.DataFrame,
    shards: list[ShardAccount],
    staging: Path,
    source: str,
    settings: Reading,
) -> pl.DataFrame:
    """Write codes, subjects, their splits and description of the dataset; returns the codes."""
    folder = staging / "metadata"
    folder.mkdir()
    used = np.unique(np.concatenate([shard.codes for shard in shards]))
    codes = order_codes(candidates)[used]
    for frame in (candidates.descriptions, candidates.parents):
        codes = codes.join(frame, left_on="number", right_on="code", how="left", maintain_order="left")
    write_codes(folder / "codes.parquet", codes)
    kept = subjects[np.concatenate([shard.subjects for shard in shards])]
    write_subjects(folder / "subjects.parquet", kept)
    if candidates.splits is not None:
        write_splits(folder / "subject_splits.parquet", kept, candidates.splits)
    write_description(folder / "dataset.json", source, time_zone=settings.time_zone)
    return codes


def _hints(codes: pl.DataFrame, shards: list[ShardAccount], settings: Reading) -> tuple[str, ...]:
    """What the user may want to set: codes that sound like births or deaths where there are none."""
    has_all = all(any(getattr(shard, name) for shard in shards) for name in ("n_births", "n_deaths"))
    if has_all or "birth_codes" not in type(settings).model_fields:
        return ()
    sounding = codes.filter(pl.col("code").str.contains(_SOUNDS_LIKE_LIFE) & ~pl.col("code").str.starts_with("MEDS_"))
    if sounding.is_empty():
        return ()
    names = ", ".join(sounding["code"].sort().head(5))
    return (f"The codes {names} may be births or deaths: say birth_codes, death_codes in the source's TOML (--config)",)


def _unused(candidates: Candidates, conversions: tuple[Conversion, ...]) -> Iterator[str]:
    """A line on each conversion that no result needed."""
    used = {
        note.words
        for account in candidates.accounts
        for note, n in zip(account.table.notes, account.n_notes, strict=True)
        if n
    }
    for one in conversions:
        if one.words not in used:
            units = f"from {one.from_unit or 'no unit'} to {one.to_unit}"
            yield f"The conversion of {one.pattern} {units} found no result: look at its code and unit"


def _accounts(
    candidates: Candidates,
    subjects: pl.DataFrame,
    shards: list[ShardAccount],
    n_unknown: Ints,
) -> list[TableReport]:
    """What became of every candidate of every table."""
    unknown = DROP_REASONS.index("subject not in person table")
    is_unknown = pl.col("subject").is_not_null() & ~pl.col("subject").is_in(subjects["number"].implode())
    counts = pl.concat(
        [
            candidates.dropped.select(
                "table_index",
                reason=pl.when(is_unknown).then(pl.lit(unknown, pl.UInt8)).otherwise("reason"),
                n=pl.col("n").cast(pl.Int64),
            ),
            *(shard.counts for shard in shards),
        ]
    )
    totals = counts.group_by("table_index", "reason").agg(pl.col("n").sum())
    n_of = {(table, reason): n for table, reason, n in totals.iter_rows()}
    reports, texts = [], candidates.codes.texts()
    for index, account in enumerate(candidates.accounts):
        dropped = {reason: n_of.get((index, place), 0) for place, reason in enumerate(DROP_REASONS)}
        dropped[DROP_REASONS[unknown]] += int(n_unknown[index])
        n_kept = n_of.get((index, None), 0)
        reports.append(
            TableReport(
                name=account.table.name,
                n_rows=account.n_rows,
                n_events=n_kept + sum(dropped.values()),
                n_kept=n_kept,
                dropped={reason: n for reason, n in dropped.items() if n},
                results=account.results(),
                notes=account.notes(texts),
            )
        )
    return reports


def read_config(section: type[Reading], source: str, path: Path | None) -> Reading:
    """The source's settings from a TOML file, or its defaults."""
    values: dict[str, object] = {}
    if path is not None:
        try:
            values = read_toml(path)
        except FileNotFoundError as error:
            raise ConfigError(f"configuration {path} cannot be read: {error.strerror}") from error
    try:
        settings = section.model_validate(values)
        if path is None or settings.units is None:
            return settings
        return settings.model_copy(update={"units": path.parent / settings.units})
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
    with ExitStack() as opened:
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
            staging = opened.enter_context(scratch_folder(out.parent, f".{out.name}-importing-"))
            (staging / "scratch").mkdir()
        except OSError as error:
            raise DataError(f"{out} cannot be written: {error.strerror}; choose another output") from error
        yield staging


@contextmanager
def _database(
    scratch: Path, memory_limit: str, threads: int | None, time_zone: str
) -> Iterator[duckdb.DuckDBPyConnection]:
    """A connection to a scratch database in a folder, with its spill files beside it."""
    connection = duckdb.connect(str(scratch / "source.duckdb"))
    try:
        connection.execute(f"SET memory_limit = {quote_text(memory_limit)}")
        connection.execute(f"SET temp_directory = {quote_text(str(scratch / 'spill'))}")
        connection.execute("SET preserve_insertion_order = true")
        connection.execute("SET enable_progress_bar = false")
        connection.execute(f"SET TimeZone = {quote_text(time_zone)}")  # of stamps without a zone
        connection.execute("SET autoinstall_known_extensions = false")  # nothing is fetched from the network
        connection.execute("SET produce_arrow_string_view = true")  # as Polars keeps texts: they are not copied
        if threads is not None:
            connection.execute(f"SET threads = {threads}")
        yield connection
    finally:
        connection.close()


def _publish(staging: Path, out: Path) -> None:
    """Move the finished dataset to its place in one step."""
    shutil.rmtree(staging / "scratch")
    publish(staging, out)


def _check_something_left(accounts: list[TableReport], path: Path, settings: Reading) -> None:
    """Refuse a source of which nothing is left, or nothing of a table that held events."""

    def told(account: TableReport) -> str:
        reasons = "".join(f", {n:,} {reason}" for reason, n in account.dropped.items())
        return f"{account.name}: {account.n_rows:,} rows{reasons}"

    if not any(account.n_kept for account in accounts):
        raise DataError(f"{path} has no usable event ({'; '.join(map(told, accounts))}); nothing was written")
    dropped = [account for account in accounts if account.is_wholly_dropped]
    refused = [account for account in dropped if account.name not in settings.allow_dropped_tables]
    if refused:
        names = ", ".join(f'"{account.name}"' for account in refused)
        raise DataError(
            f"{path}: nothing is left of {'; '.join(map(told, refused))}; nothing was written. Mend the table, or say "
            f"allow_dropped_tables = [{names}] in the source's TOML (--config) to do without it"
        )


def _check_deaths(shards: list[ShardAccount], tables: list[TableAccount], settings: Reading) -> None:
    """Refuse a source whose deaths contradict the births of their subjects: the dead would be taken for living."""
    n_lost = sum(shard.n_lost_deaths for shard in shards)
    n_deaths = n_lost + sum(shard.n_deaths for shard in shards)
    if n_lost > settings.max_unreadable_deaths * n_deaths:
        births, deaths = (", ".join(c for table in tables for c in table.life_columns(life)) for life in (0, 1))
        raise DataError(
            f"{n_lost:,} of {n_deaths:,} subjects who died did so before they were born, and would be taken for living "
            f"(births are of {births}; deaths of {deaths}); max_unreadable_deaths is "
            f"{settings.max_unreadable_deaths:g}. Mend births and deaths, or raise that share in the source's TOML "
            "(--config)"
        )


def _print_progress(line: str) -> None:
    print(f"import: {line}", file=sys.stderr, flush=True)
