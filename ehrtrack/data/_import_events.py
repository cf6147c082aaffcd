"""Candidate events of an import: staged from the source's tables, given subjects, judged, and sorted.

Tables in the scratch database: `candidate` (every event as read), `subject` (source_id, subject_id, birth,
death), `accepted` (the events to write, sorted by subject and time).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import duckdb
import pyarrow as pa

from ehrtrack.data.import_report import DROP_REASONS, TableReport
from ehrtrack.data.sources._relation import Relation, first_line, quote_text
from ehrtrack.data.sources._table import NULL, Event, SourceTable
from ehrtrack.errors import DataError

_EVENT_FIELDS = (
    "time",
    "is_static",
    "unreadable",
    "time_column",
    "code",
    "numeric_value",
    "text_value",
    "description",
)
_SUBJECTS_PER_BATCH = 100_000


def stage_table(connection: duckdb.DuckDBPyConnection, index: int, table: SourceTable) -> int:
    """Append the candidates of a table to `candidate`; returns the number of rows read.

    Raises
    ------
    DataError
        If the table cannot be read, or more than half of the times stated in it are unreadable.
    """
    connection.execute(
        """CREATE TABLE IF NOT EXISTS candidate (
            table_index UTINYINT, is_first_of_row BOOLEAN, is_header BOOLEAN,
            source_id VARCHAR, visit_id VARCHAR,
            time TIMESTAMP, is_static BOOLEAN, unreadable VARCHAR, time_column VARCHAR, code VARCHAR,
            numeric_value FLOAT, text_value VARCHAR, description VARCHAR)"""
    )
    assert table.relation is not None
    table.relation.require(table.subject)
    try:
        connection.execute(f"INSERT INTO candidate {_candidates_sql(index, table, table.relation)}")
    except duckdb.OutOfMemoryException:
        raise
    except duckdb.Error as error:
        raise DataError(f"table {table.name} cannot be read: {first_line(error)}") from error
    _check_times(connection, index, table.name)
    query = "SELECT count(*) FROM candidate WHERE table_index = ? AND is_first_of_row"
    return _scalar(connection, query, [index])


def map_subjects(connection: duckdb.DuckDBPyConnection, tables: Sequence[SourceTable]) -> bool:
    """Build `subject` with each subject's int64 id, birth and death; tells whether the ids are the source's.

    Raises
    ------
    DataError
        If two identifiers hash to the same id.
    """
    rosters = [str(index) for index, table in enumerate(tables) if table.is_roster]
    roster = f"AND table_index IN ({', '.join(rosters)})" if rosters else ""
    connection.execute(
        f"""CREATE TABLE source_subject AS SELECT DISTINCT source_id FROM candidate
        WHERE source_id IS NOT NULL AND NOT is_header {roster}"""
    )
    n_other = _scalar(
        connection,
        "SELECT count(*) FROM source_subject WHERE TRY_CAST(source_id AS BIGINT)::VARCHAR IS DISTINCT FROM source_id",
    )
    has_integer_ids = n_other == 0
    connection.execute("CREATE TABLE subject_number (source_id VARCHAR, subject_id BIGINT)")
    if has_integer_ids:
        connection.execute("INSERT INTO subject_number SELECT source_id, source_id::BIGINT FROM source_subject")
    else:
        _hash_subjects(connection)
    connection.execute(_SUBJECTS_SQL)
    return has_integer_ids


def judge_events(connection: duckdb.DuckDBPyConnection, tables: Sequence[SourceTable]) -> list[TableReport]:
    """Sort what is kept into `accepted`, and account for every candidate of every table."""
    connection.execute(_JUDGED_SQL)
    counts = connection.execute(
        "SELECT table_index, reason, count(*), count(*) FILTER (is_first_of_row) FROM judged GROUP BY ALL"
    ).fetchall()
    connection.execute(
        """CREATE TABLE accepted AS
        SELECT min(table_index) AS table_index, subject_id, time, code, numeric_value, text_value, visit_id
        FROM judged WHERE reason IS NULL
        GROUP BY subject_id, time, code, numeric_value, text_value, visit_id
        ORDER BY subject_id, time NULLS FIRST"""
    )
    kept = dict(connection.execute("SELECT table_index, count(*) FROM accepted GROUP BY table_index").fetchall())
    reports = []
    for index, table in enumerate(tables):
        rows = [row for row in counts if row[0] == index]
        dropped = {reason: n for _, reason, n, _ in rows if reason is not None}
        n_passed = sum(n for _, reason, n, _ in rows if reason is None)
        dropped["exact duplicate"] = n_passed - kept.get(index, 0)
        reports.append(
            TableReport(
                name=table.name,
                n_rows=sum(row[3] for row in rows),
                n_events=sum(row[2] for row in rows),
                n_kept=kept.get(index, 0),
                dropped={reason: dropped[reason] for reason in DROP_REASONS if dropped.get(reason)},
            )
        )
    return reports


def _candidates_sql(index: int, table: SourceTable, relation: Relation) -> str:
    """One pass over the table: each row's events, or one without a code if it has none."""
    subject = relation.identifier(table.subject)
    visit = relation.identifier(table.visit) if table.visit else NULL
    is_header = f"coalesce(lower({subject}) = {quote_text(table.subject.lower())}, false)"
    row = f"{is_header} AS is_header, {subject} AS source_id, {visit} AS visit_id"
    fields = ", ".join(f"event.{name}" for name in _EVENT_FIELDS)
    if len(table.events) == 1:
        event = _event_sql(table.events[0])
        rows = f"SELECT true AS is_first_of_row, {row}, {event} AS event FROM {relation.sql}"
    else:
        events = ", ".join(_event_sql(event) for event in table.events)
        rows = f"""
            SELECT * EXCLUDE events, unnest(events) AS event,
                unnest(range(len(events))) = 0 AS is_first_of_row
            FROM (
                SELECT * EXCLUDE (all_events, coded),
                    CASE WHEN len(coded) > 0 THEN coded ELSE all_events[:1] END AS events
                FROM (
                    SELECT *, list_filter(all_events, lambda event: event.code IS NOT NULL) AS coded
                    FROM (SELECT {row}, [{events}] AS all_events FROM {relation.sql})
                )
            )"""
    return f"SELECT {index}, is_first_of_row, is_header, source_id, visit_id, {fields} FROM ({rows})"


def _event_sql(event: Event) -> str:
    """The event as a struct with the fields of `_EVENT_FIELDS`."""
    if event.time is None:
        parsed, unreadable, column, is_static = "CAST(NULL AS TIMESTAMP)", NULL, NULL, "true"
    else:
        parsed = event.time.parsed
        unreadable = f"CASE WHEN {parsed} IS NULL THEN {event.time.stated} END"
        column = quote_text(event.time.column)
        is_static = f"({event.time.stated} IS NULL)" if event.may_lack_time else "false"
    return (
        f"{{'time': {parsed}, 'is_static': {is_static}, 'unreadable': CAST({unreadable} AS VARCHAR), "
        f"'time_column': CAST({column} AS VARCHAR), 'code': CAST({event.code} AS VARCHAR), "
        f"'numeric_value': CAST({event.numeric_value} AS FLOAT), "
        f"'text_value': CAST({event.text_value} AS VARCHAR), "
        f"'description': CAST({event.description} AS VARCHAR)}}"
    )


def _check_times(connection: duckdb.DuckDBPyConnection, index: int, name: str) -> None:
    """Refuse a table whose dates are mostly in another format; a few bad ones are dropped by reason later."""
    rows = connection.execute(
        """SELECT time_column, count(unreadable), count(unreadable) + count(time), min(unreadable)
        FROM candidate WHERE table_index = ? AND NOT is_header AND code IS NOT NULL
        GROUP BY time_column HAVING count(unreadable) > count(time) ORDER BY 1""",
        [index],
    ).fetchall()
    for column, n_unreadable, n_stated, example in rows:
        raise DataError(
            f"table {name}, column {column}: {n_unreadable:,} of {n_stated:,} times are unreadable "
            f"(for example {example!r}); needed: ISO 8601 such as 2008-06-30 or 2008-06-30T14:05:00Z, "
            "or, with the source events-csv, a time_format"
        )


def _hash_subjects(connection: duckdb.DuckDBPyConnection) -> None:
    """Number the subjects by the first 63 bits of BLAKE2b of their identifiers."""
    with connection.cursor() as reader:
        reader.execute("SELECT source_id FROM source_subject")
        while rows := reader.fetchmany(_SUBJECTS_PER_BATCH):
            source_ids = [str(row[0]) for row in rows]
            numbers = pa.table(
                {
                    "source_id": pa.array(source_ids, pa.string()),
                    "subject_id": pa.array(list(map(hash_subject_id, source_ids)), pa.int64()),
                }
            )
            connection.register("hashed", numbers)
            connection.execute("INSERT INTO subject_number SELECT source_id, subject_id FROM hashed")
            connection.unregister("hashed")
    clash = connection.execute(
        "SELECT min(source_id), max(source_id) FROM subject_number GROUP BY subject_id HAVING count(*) > 1"
    ).fetchone()
    if clash is not None:
        raise DataError(
            f"subjects {clash[0]!r} and {clash[1]!r} get the same 63-bit id; rename one of them in the source"
        )


def hash_subject_id(source_id: str) -> int:
    """The first 63 bits of BLAKE2b of a text, as a non-negative integer."""
    return int.from_bytes(hashlib.blake2b(source_id.encode(), digest_size=8).digest(), "big") >> 1


def _scalar(connection: duckdb.DuckDBPyConnection, query: str, values: Sequence[object] = ()) -> int:
    row = connection.execute(query, list(values)).fetchone()
    assert row is not None
    return int(row[0])


# Birth and death as stated, then moved within their day to enclose that day's events.
_SUBJECTS_SQL = """
CREATE TABLE subject AS
WITH fact AS (
    SELECT source_id, time, code FROM candidate
    WHERE code IN ('MEDS_BIRTH', 'MEDS_DEATH') AND time IS NOT NULL AND NOT is_header
), birth AS (
    SELECT source_id, min(time) AS birth FROM fact WHERE code = 'MEDS_BIRTH' GROUP BY source_id
), death_day AS (
    SELECT source_id, min(time::DATE) AS day FROM fact LEFT JOIN birth USING (source_id)
    WHERE code = 'MEDS_DEATH' AND (birth IS NULL OR time::DATE >= birth::DATE) GROUP BY source_id
), death AS (
    SELECT source_id, max(time) AS death FROM fact JOIN death_day USING (source_id)
    WHERE code = 'MEDS_DEATH' AND time::DATE = day GROUP BY source_id
), edge AS (
    SELECT source_id,
        min(time) FILTER (time::DATE = birth::DATE) AS first_of_birthday,
        max(time) FILTER (time::DATE = death::DATE) AS last_of_death_day
    FROM candidate LEFT JOIN birth USING (source_id) LEFT JOIN death USING (source_id)
    WHERE NOT is_header AND code IS NOT NULL AND code NOT IN ('MEDS_BIRTH', 'MEDS_DEATH')
      AND (time::DATE = birth::DATE OR time::DATE = death::DATE)
    GROUP BY source_id
)
SELECT source_id, subject_id, birth AS stated_birth, death AS stated_death,
    least(birth, first_of_birthday) AS birth,
    CASE WHEN death = date_trunc('day', death) THEN greatest(death, last_of_death_day) ELSE death END AS death
FROM subject_number
LEFT JOIN birth USING (source_id) LEFT JOIN death USING (source_id) LEFT JOIN edge USING (source_id)
"""

_JUDGED_SQL = """
CREATE VIEW judged AS
SELECT table_index, is_first_of_row, subject_id, code, description,
    CASE code WHEN 'MEDS_BIRTH' THEN birth WHEN 'MEDS_DEATH' THEN death ELSE time END AS time,
    CASE WHEN code NOT IN ('MEDS_BIRTH', 'MEDS_DEATH') THEN numeric_value END AS numeric_value,
    CASE WHEN code NOT IN ('MEDS_BIRTH', 'MEDS_DEATH') THEN text_value END AS text_value,
    CASE WHEN code NOT IN ('MEDS_BIRTH', 'MEDS_DEATH') THEN visit_id END AS visit_id,
    CASE
        WHEN is_header THEN 'header row read as data'
        WHEN candidate.source_id IS NULL THEN 'no subject'
        WHEN subject_id IS NULL THEN 'subject not in person table'
        WHEN code IS NULL THEN 'no code'
        WHEN unreadable IS NOT NULL THEN 'unreadable time'
        WHEN time IS NULL AND NOT is_static THEN 'no time'
        WHEN code = 'MEDS_BIRTH' AND time::DATE > stated_birth::DATE THEN 'conflicting birth or death'
        WHEN time::DATE < stated_birth::DATE THEN 'before birth'
        WHEN code = 'MEDS_DEATH' THEN
            CASE WHEN time::DATE > stated_death::DATE THEN 'conflicting birth or death' END
        WHEN time > death THEN 'after death'
    END AS reason
FROM candidate LEFT JOIN subject USING (source_id)
"""
