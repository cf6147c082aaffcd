"""What an import read, kept and dropped, by table and by reason."""

from __future__ import annotations

from dataclasses import dataclass, fields
from datetime import datetime
from pathlib import Path

# The reasons to drop an event, in the order looked for: an event is counted under the first that holds.
DROP_REASONS = (
    "header row read as data",
    "no subject",
    "subject not in person table",
    "no code",
    "unreadable time",
    "no time",
    "before birth",
    "after death",
    "conflicting birth or death",
    "conflicting sex",
    "exact duplicate",
)
HARMLESS_REASONS = ("header row read as data", "exact duplicate")
"""A table of which nothing is kept for other reasons than these was not understood."""

_MOST_NAMED = 20


@dataclass(frozen=True)
class Results:
    """What the events of a table state beside their code: a number, a text, or nothing; and their times.

    Attributes
    ----------
    n_numeric, n_text, n_empty : events of a table that has results.
    n_timed, n_without_clock : events with a time, and those of them at midnight: a date without a clock.
    """

    n_numeric: int = 0
    n_text: int = 0
    n_empty: int = 0
    n_timed: int = 0
    n_without_clock: int = 0

    def __add__(self, other: Results) -> Results:
        return Results(**{field.name: getattr(self, field.name) + getattr(other, field.name) for field in fields(self)})

    def to_text(self) -> str:
        """The counts as a phrase; nothing where the table has neither results nor times."""
        words = []
        n_results = self.n_numeric + self.n_text + self.n_empty
        if n_results:
            words.append(f"results: {self.n_numeric:,} numbers, {self.n_text:,} texts, {self.n_empty:,} empty")
        if self.n_timed:
            words.append(f"{self.n_without_clock:,} of {self.n_timed:,} times without a clock")
        return "; ".join(words)


@dataclass(frozen=True)
class TableReport:
    """The account of one table: ``n_events == n_kept + sum(dropped.values())``.

    Attributes
    ----------
    n_rows : rows read.
    n_events : events that the rows make; a claim with ten diagnoses makes ten.
    n_kept : events written.
    dropped : number of events by reason, in the order of `DROP_REASONS`.
    results : what the table's candidates state.
    notes : lines on what else is to be known of the table.
    """

    name: str
    n_rows: int
    n_events: int
    n_kept: int
    dropped: dict[str, int]
    results: Results = Results()
    notes: tuple[str, ...] = ()

    @property
    def is_wholly_dropped(self) -> bool:
        """Whether nothing of a table is left that did hold events."""
        return not self.n_kept and any(reason not in HARMLESS_REASONS for reason in self.dropped)


@dataclass(frozen=True)
class ImportReport:
    """The account of an import.

    Attributes
    ----------
    missing_tables : tables that the source may have and does not.
    unread : files and tables in the source that were not read, with the reason where there is another than that the
        source does not know them.
    n_future : events after today.
    has_splits : whether the source says which subjects to train on.
    hints : what the user may want to set.
    """

    source: str
    path: Path
    out: Path
    tables: tuple[TableReport, ...]
    missing_tables: tuple[str, ...]
    unread: tuple[str, ...]
    has_integer_ids: bool
    n_subjects: int
    n_events: int
    n_codes: int
    n_births: int
    n_deaths: int
    n_future: int
    has_splits: bool
    hints: tuple[str, ...]
    first_time: datetime | None
    last_time: datetime | None
    n_shards: int
    seconds: float

    def dropped(self) -> dict[str, int]:
        """Number of events dropped by reason, over all tables."""
        totals = {reason: sum(table.dropped.get(reason, 0) for table in self.tables) for reason in DROP_REASONS}
        return {reason: total for reason, total in totals.items() if total}

    def to_text(self) -> str:
        """The account as a few lines and a table, to be printed."""
        period = "no time"
        if self.first_time is not None and self.last_time is not None:
            period = f"{self.first_time:%Y-%m-%d} to {self.last_time:%Y-%m-%d}"
        ids = (
            "the source's integers"
            if self.has_integer_ids
            else "hashed (63 bits of BLAKE2b), see metadata/subjects.parquet"
        )
        lines = [
            f"Imported {self.source} {self.path} -> {self.out} in {self.seconds:.1f} s",
            f"{self.n_subjects:,} subjects, {self.n_events:,} events, {self.n_codes:,} codes, "
            f"{self.n_births:,} births, {self.n_deaths:,} deaths, {period}, {_count(self.n_shards, 'shard')}",
            f"Subject ids: {ids}",
            "",
            *_columns(self.tables),
        ]
        lines += ["", *self._what_to_know()]
        return "\n".join(lines)

    def _what_to_know(self) -> list[str]:
        """Line by line what a reader would otherwise find out late."""
        lines = [f"{table.name}: {table.results.to_text()}" for table in self.tables if table.results.to_text()]
        lines += [f"{table.name}: {note}" for table in self.tables for note in table.notes]
        n_without_birth = self.n_subjects - self.n_births
        if n_without_birth:
            lines.append(f"Subjects without a birth: {n_without_birth:,} of {self.n_subjects:,}")
        lines += self.hints
        if self.n_future:
            lines.append(f"Events after today: {self.n_future:,}")
        if self.has_splits:
            lines.append(
                "The source's own split of subjects is kept in metadata/subject_splits.parquet: runs that name no "
                "data.split.rule use it"
            )
        if self.missing_tables:
            lines.append(f"Not in the source: {', '.join(self.missing_tables)}")
        if self.unread:
            more = f" and {len(self.unread) - _MOST_NAMED:,} more" if len(self.unread) > _MOST_NAMED else ""
            lines.append(f"Not read: {', '.join(self.unread[:_MOST_NAMED])}{more}")
        return lines


def _columns(tables: tuple[TableReport, ...]) -> list[str]:
    width = max([len("table"), *(len(table.name) for table in tables)])
    lines = [f"{'table':<{width}} {'rows':>12} {'events':>12} {'kept':>12}  dropped"]
    for table in tables:
        dropped = ", ".join(f"{n:,} {reason}" for reason, n in table.dropped.items()) or "-"
        lines.append(f"{table.name:<{width}} {table.n_rows:>12,} {table.n_events:>12,} {table.n_kept:>12,}  {dropped}")
    return lines


def _count(n: int, noun: str) -> str:
    return f"{n:,} {noun}{'' if n == 1 else 's'}"
