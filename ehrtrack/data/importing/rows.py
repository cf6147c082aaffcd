"""The SQL that reads a source's table: each row once, with the columns of every event that it makes."""

from __future__ import annotations

from dataclasses import dataclass

import polars as pl

from ehrtrack.data.sources._relation import Relation, quote_text
from ehrtrack.data.sources.base import NULL, Event, SourceTable


@dataclass(frozen=True)
class EventColumns:
    """The names of an event's columns in the rows; None where there is nothing to read.

    Attributes
    ----------
    time_column : the source's column, for messages; None for a static fact.
    result_column : the source's column of numbers, for messages.
    unit : of the number, where units are told apart.
    may_lack_time : whether the event without a time is a static fact.
    has_result : whether a row may state a number or a text.
    """

    code: str
    time: str | None
    unreadable: str | None
    numeric_value: str | None
    text_value: str | None
    decimal_comma: str | None
    description: str | None
    unit: str | None
    time_column: str | None
    result_column: str | None
    may_lack_time: bool

    @property
    def has_result(self) -> bool:
        return self.numeric_value is not None or self.text_value is not None

    def selection(self, *, visit: bool) -> list[pl.Expr]:
        """Polars' selection of the event from the rows; columns of the run that it lacks are left out."""

        def column(name: str | None, alias: str, dtype: pl.DataType) -> pl.Expr:
            return (pl.lit(None, dtype) if name is None else pl.col(name)).alias(alias)

        selected = [
            pl.col("is_header"),
            pl.col("subject"),
            column(self.time, "time", pl.Datetime("us")),
            pl.col(self.code).alias("code"),
            column(self.unreadable, "unreadable", pl.String()),
            column(self.description, "description", pl.String()),
        ]
        if self.numeric_value:
            selected.append(pl.col(self.numeric_value).alias("numeric_value"))
        if self.text_value:
            selected.append(pl.col(self.text_value).alias("text_value"))
        if self.decimal_comma:
            selected.append(pl.col(self.decimal_comma).alias("decimal_comma"))
        if self.unit:
            selected.append(pl.col(self.unit).alias("unit"))
        if visit:
            selected.append(pl.col("visit").alias("visit_id"))
        return selected


def row_query(table: SourceTable, relation: Relation) -> tuple[str, list[EventColumns]]:
    """SQL of the table's rows (`is_header`, `subject`, `visit` if it has one, events' columns, notes), and the columns.

    An expression that several events share, as their time, is read once.
    """
    names: dict[str, str] = {}

    def column(sql: str, kind: str) -> str | None:
        return None if sql == NULL else names.setdefault(f"CAST({sql} AS {kind})", f"c{len(names)}")

    def columns(event: Event) -> EventColumns:
        time = event.time
        unreadable = NULL
        if time is not None:
            unreadable = f"CASE WHEN ({relation.is_plausible(time.parsed)}) IS NOT TRUE THEN {time.stated} END"
        return EventColumns(
            code=names.setdefault(f"CAST({event.code} AS VARCHAR)", f"c{len(names)}"),
            time=None if time is None else column(time.parsed, "TIMESTAMP"),
            unreadable=column(unreadable, "VARCHAR"),
            numeric_value=column(event.numeric_value, "FLOAT"),
            text_value=column(event.text_value, "VARCHAR"),
            decimal_comma=column(relation.decimal_commas(event.result_column), "BOOLEAN"),
            description=column(event.description, "VARCHAR"),
            unit=column(event.unit, "VARCHAR"),
            time_column=None if time is None else time.column,
            result_column=event.result_column,
            may_lack_time=time is None or event.may_lack_time,
        )

    events = [columns(event) for event in table.events]
    selected = [*_subject(table, relation)]
    if table.visit:
        selected.append(f"{relation.identifier(table.visit)} AS visit")
    selected += [f"{sql} AS {name}" for sql, name in names.items()]
    selected += [f"coalesce(CAST({note.rows} AS INTEGER), 0) AS note{place}" for place, note in enumerate(table.notes)]
    return f"SELECT {', '.join(selected)} FROM {relation.sql}", events


def _subject(table: SourceTable, relation: Relation) -> tuple[str, str]:
    """The columns `is_header` and `subject`: NULL in a header that was read as data, an integer if it is stored so."""
    if relation.is_integer(table.subject):
        return "false AS is_header", f"{relation.integer(table.subject)} AS subject"
    subject = relation.identifier(table.subject)
    is_header = f"coalesce(lower({subject}) = {quote_text(table.subject.lower())}, false)"
    return f"{is_header} AS is_header", f"CASE WHEN NOT {is_header} THEN {subject} END AS subject"
