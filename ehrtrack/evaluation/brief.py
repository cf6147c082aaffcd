"""Long tables for people: the first lines of each, and how many more there are and where."""

from __future__ import annotations

from itertools import groupby

MOST_LINES = 40
"""Of a table in a terminal or on a run's page, and of models in one figure."""


def brief(markdown: str, *, whole: str, keep: str = "", most: int = MOST_LINES) -> str:
    """A text whose tables have as many lines as can be looked through; the best come first, so they stay.

    Parameters
    ----------
    markdown : in which tables are lines that begin with a bar, the first two of each its head
    whole : where all lines are
    keep : a model of which the first line stays, wherever it stands: the one that the others are compared with
    most : lines of a table, beside that one

    Examples
    --------
    >>> table = "| model |" + chr(10) + "| ----- |" + "".join(f"{chr(10)}| run {n} |" for n in range(4))
    >>> print(brief(table, whole="all.md", keep="run 2", most=1))
    | model |
    | ----- |
    | run 0 |
    | run 2 |
    <BLANKLINE>
    2 more lines are in `all.md`.
    """
    parts = []
    for is_table, found in groupby(markdown.split("\n"), key=lambda line: line.startswith("|")):
        lines = list(found)
        parts += _first(lines, whole, keep, most) if is_table else lines
    return "\n".join(parts)


def _first(table: list[str], whole: str, keep: str, most: int) -> list[str]:
    head, rows = table[:2], table[2:]
    kept = next((row for row in rows[most:] if keep and row.split("|")[1].strip() == keep), None)
    has_it_already = any(row.split("|")[1].strip() == keep for row in rows[:most])
    shown = rows[:most] + ([kept] if kept is not None and not has_it_already else [])
    n_more = len(rows) - len(shown)
    said = ["", f"{n_more:,} more line{'s are' if n_more > 1 else ' is'} in `{whole}`."] if n_more else []
    return [*head, *shown, *said]
