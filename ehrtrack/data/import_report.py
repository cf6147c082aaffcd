"""What an import read, kept and dropped, by table and by reason."""

from __future__ import annotations

from dataclasses import dataclass
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
    "exact duplicate",
)


@dataclass(frozen=True)
class TableReport:
    """The account of one table: ``n_events == n_kept + sum(dropped.values())``.

    Attributes
    ----------
    n_rows : rows read.
    n_events : events that the rows make; a claim with ten diagnoses makes ten.
    n_kept : events written.
    dropped : number of events by reason, in the order of `DROP_REASONS`.
    """

    name: str
    n_rows: int
    n_events: int
    n_kept: int
    dropped: dict[str, int]


@dataclass(frozen=True)
class ImportReport:
    """The account of an import."""

    source: str
    path: Path
    out: Path
    tables: tuple[TableReport, ...]
    missing_tables: tuple[str, ...]
    has_integer_ids: bool
    n_subjects: int
    n_events: int
    n_codes: int
    n_births: int
    n_deaths: int
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
        if self.missing_tables:
            lines += ["", f"Not in the source: {', '.join(self.missing_tables)}"]
        return "\n".join(lines)


def _columns(tables: tuple[TableReport, ...]) -> list[str]:
    width = max([len("table"), *(len(table.name) for table in tables)])
    lines = [f"{'table':<{width}} {'rows':>12} {'events':>12} {'kept':>12}  dropped"]
    for table in tables:
        dropped = ", ".join(f"{n:,} {reason}" for reason, n in table.dropped.items()) or "-"
        lines.append(f"{table.name:<{width}} {table.n_rows:>12,} {table.n_events:>12,} {table.n_kept:>12,}  {dropped}")
    return lines


def _count(n: int, noun: str) -> str:
    return f"{n:,} {noun}{'' if n == 1 else 's'}"
