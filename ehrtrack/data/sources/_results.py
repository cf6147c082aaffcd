"""Results that are words, such as positive and negative, as a part of the code: only there do they reach a model."""

from __future__ import annotations

from dataclasses import replace

from ehrtrack.data.sources._reader import Reader
from ehrtrack.data.sources._relation import quote_text
from ehrtrack.data.sources.base import NULL, SourceTable

LONGEST_LEVEL = 100
"""Characters; a longer text is no level of a result, but a note."""


def with_results_in_codes(reader: Reader, table: SourceTable) -> SourceTable:
    """The table with ``LAB//x`` and its text ``positive`` as ``LAB//x//positive``, where a code has few such levels.

    The table is read once to find these codes. A text beyond the levels that are allowed stays beside its code.
    """
    assert table.relation is not None
    stated = [event for event in table.events if event.text_value != NULL]
    most = reader.reading.max_result_levels
    if not stated or not most:
        return table
    pairs = ", ".join(f"{{'code': {event.code}, 'text': {event.text_value}}}" for event in stated)
    patterns = reader.reading.results_in_codes
    chosen = " OR ".join(f"regexp_matches(result.code, {quote_text(f'^(?:{pattern})')})" for pattern in patterns)
    few = reader.scratch_table(
        f"SELECT result.code AS code FROM (SELECT unnest([{pairs}]) AS result FROM {table.relation.sql}) "
        f"WHERE result.text IS NOT NULL AND ({chosen or 'true'}) "
        f"GROUP BY result.code HAVING count(DISTINCT result.text) <= {most} "
        f"AND max(length(result.text)) <= {LONGEST_LEVEL}",
        of=table.name,
    )
    events = [
        event
        if event.text_value == NULL
        else replace(event, code=f"({event.code} || {_level(event.code, event.text_value, few)})")
        for event in table.events
    ]
    return replace(table, events=tuple(events))


def _level(code: str, text: str, few: str) -> str:
    return f"CASE WHEN {code} IN (SELECT code FROM {few}) THEN coalesce('//' || {text}, '') ELSE '' END"
