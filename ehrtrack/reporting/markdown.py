"""The report as Markdown: text, tables, and figures as pictures beside it."""

from __future__ import annotations

from ehrtrack.evaluation.benchmark import aligned
from ehrtrack.reporting.document import Chart, Document, Facts, Flow, Part, Prose, Table, Verbatim


def table_to_markdown(table: Table) -> str:
    """The table with every column as wide as its widest cell.

    Examples
    --------
    >>> import polars as pl
    >>> from ehrtrack.reporting.document import Column
    >>> print(table_to_markdown(Table("t", "", pl.DataFrame({"m": ["a|b"]}), (Column("model", lambda r: r["m"]),))))
    | model |
    | ----- |
    | a\\|b  |
    <BLANKLINE>
    """
    groups = [] if not table.rows_by else [("", False, [str(row[table.rows_by]) for row in table.rows()])]
    texts = list(zip(*table.cells(), strict=True)) or [() for _ in table.columns]
    columns = [
        (f"{column.group} {column.title}".strip(), column.is_right, list(of_column))
        for column, of_column in zip(table.columns, texts, strict=True)
    ]
    return aligned([(title, is_right, [_cell(text) for text in cells]) for title, is_right, cells in groups + columns])


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def document_to_markdown(document: Document) -> str:
    """The whole report; figures are in the folder ``figures`` beside it."""
    lines = [f"# {document.question}", ""]
    for number, section in enumerate(document.sections):
        lines += [f"## {section.title}", ""] if number else []
        lines += [text for part in section.parts for text in (_part(part), "")]
    return "\n".join(lines).rstrip("\n") + "\n"


def _part(part: Part) -> str:
    match part:
        case Table():
            notes = "".join(f"\n{note}\n" for note in part.notes)
            return f"**{part.caption}**\n\n{table_to_markdown(part)}{notes}".rstrip("\n")
        case Chart():
            return f"![{part.caption}](figures/{part.name}.png)\n\n*{part.caption}*"
        case Prose():
            return "\n".join(f"- {s}" for s in part.sentences) if part.is_list else "\n\n".join(part.sentences)
        case Flow():
            steps = [*part.steps, *part.parts]
            return "\n".join(f"- {s.name}: {s.left}{f' ({s.dropped})' if s.dropped else ''}" for s in steps)
        case Facts():
            return "\n".join(f"- {f.name}: **{f.value}**{f' ({f.detail})' if f.detail else ''}" for f in part.facts)
        case Verbatim():
            return f"{part.title}:\n\n```\n{part.text}\n```"
