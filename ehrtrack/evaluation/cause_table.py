"""What a comparison says of each of several causes."""

from __future__ import annotations

from collections.abc import Iterable

import polars as pl

from ehrtrack.data.labels import ANY_CAUSE, CAUSE
from ehrtrack.evaluation.benchmark import RunRow, aligned
from ehrtrack.evaluation.metric_table import (
    C_INDEX,
    Entry,
    interval_text,
)
from ehrtrack.runlog import TEST


def cause_table(rows: Iterable[RunRow]) -> pl.DataFrame:
    """The test C-index of any cause and of each, of the runs that tell causes apart.

    Returns
    -------
    model, strategy, size, cause (`ANY_CAUSE`, then the numbers), c_index, lower, upper, run_id; in the rows' order

    >>> metrics = {"test/c_index": 0.7, "test/c_index_cause_1": 0.8, "test/c_index_cause_2": 0.6}
    >>> cause_table([RunRow("a", "finetune", "behrt", "c", metrics=metrics)]).select("cause", "c_index").rows()
    [('any', 0.7), ('1', 0.8), ('2', 0.6)]
    """
    lines = []
    for row in rows:
        scores = [(str(number), *row.causes[number]) for number in sorted(row.causes)]
        any_cause = (ANY_CAUSE, *(row.metrics.get(name) for name in Entry(C_INDEX, TEST).names))
        for score in [any_cause, *scores] if scores else ():
            lines.append((row.model, row.strategy, row.size, *score, row.run_id))
    names = ("model", "strategy", "size", CAUSE, "c_index", "lower", "upper", "run_id")
    types = [pl.String] * 4 + [pl.Float64] * 3 + [pl.String]
    return pl.DataFrame(lines, schema=dict(zip(names, types, strict=True)), orient="row")


def causes_to_markdown(table: pl.DataFrame) -> str:
    """The table of `cause_table` as aligned Markdown, to stand below the scores of any cause.

    >>> metrics = {"test/c_index": 0.7, "test/c_index_cause_1": 0.8, "test/c_index_cause_2": 0.6}
    >>> table = cause_table([RunRow("a", "finetune", "behrt", "c", metrics=metrics)])
    >>> print(causes_to_markdown(table).splitlines()[-1])
    | behrt |          |      | 2         | 0.600                        | a   |
    """
    rows = list(table.iter_rows(named=True))
    columns = [
        ("model", [row["model"] for row in rows]),
        ("strategy", [row["strategy"] for row in rows]),
        ("size", [row["size"] for row in rows]),
        ("cause", ["any cause" if row[CAUSE] == ANY_CAUSE else row[CAUSE] for row in rows]),
        ("test C-index (95 % interval)", [interval_text(row, "c_index", "lower", "upper", form=".3f") for row in rows]),
        ("run", [row["run_id"][:8] for row in rows]),
    ]
    text = aligned([(title, False, texts) for title, texts in columns])
    return f"The scores above are of any cause. The C-index of each cause, by its cumulative incidence:\n\n{text}"
