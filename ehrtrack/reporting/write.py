"""The files of a report: one page of HTML, and beside it what a paper takes of it."""

from __future__ import annotations

from pathlib import Path

from ehrtrack.files import written_aside
from ehrtrack.reporting.document import Document
from ehrtrack.reporting.figures import save_figure
from ehrtrack.reporting.html import page
from ehrtrack.reporting.latex import document_to_latex, table_to_latex
from ehrtrack.reporting.markdown import document_to_markdown, table_to_markdown

INDEX = "index.html"
TABLES, FIGURES = "tables", "figures"


def write_report(document: Document, folder: Path) -> Path:
    """Write a report into a folder; returns the page's path.

    The same document gives the same bytes: nothing says when it was written.

    - ``index.html``: the page, which needs nothing beside it
    - ``report.md``, ``report.tex``: the whole report
    - ``tables/NAME.csv``, ``.tex``, ``.md``: each table
    - ``figures/NAME.png``, ``.svg``, ``.pdf``: each figure; what Optuna draws as PNG alone
    """
    for part in (TABLES, FIGURES):
        (folder / part).mkdir(parents=True, exist_ok=True)
    for table in document.tables():
        stem = folder / TABLES / table.name
        shown = table.without_empty()
        table.frame.write_csv(stem.with_name(f"{table.name}.csv"))
        _write(stem.with_name(f"{table.name}.tex"), table_to_latex(shown))
        _write(stem.with_name(f"{table.name}.md"), table_to_markdown(shown))
    for chart in document.charts():
        save_figure(chart.figure(), folder / FIGURES / chart.name, chart.suffixes)
    _write(folder / "report.md", document_to_markdown(document))
    _write(folder / "report.tex", document_to_latex(document))
    _write(folder / INDEX, page(document))
    return folder / INDEX


def _write(path: Path, text: str) -> None:
    with written_aside(path) as aside:
        aside.write_text(text, encoding="utf-8")
