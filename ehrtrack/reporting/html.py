"""The report as one page of HTML that needs nothing beside it: styles, scripts, charts and files are within."""

from __future__ import annotations

import base64
import json
import re
from html import escape
from importlib.resources import files

import great_tables
import polars as pl
from plotly.offline import get_plotlyjs
from plotly.utils import PlotlyJSONEncoder

from ehrtrack.reporting.document import (
    Chart,
    Column,
    Document,
    Fact,
    Facts,
    Flow,
    Part,
    Prose,
    Row,
    Section,
    Step,
    Table,
    Verbatim,
)
from ehrtrack.reporting.figures import svg
from ehrtrack.reporting.latex import table_to_latex
from ehrtrack.reporting.markdown import table_to_markdown

SCROLLS_FROM = 25
"""Rows from which a table scrolls in its own box."""


def page(document: Document) -> str:
    """The page."""
    script, style = (files("ehrtrack.reporting").joinpath("assets", name).read_text("utf-8") for name in ASSETS)
    first, *others = document.sections
    has_charts = any(chart.interactive is not None for chart in document.charts())
    links = "".join(f'<a href="#{section.key}">{escape(section.title)}</a>' for section in others)
    return "".join(
        [
            '<!doctype html><html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f'<meta name="color-scheme" content="light dark"><title>{escape(document.question)}</title>',
            f'<link rel="icon" href="data:,"><style>{style}</style></head><body>',
            f'<header id="{first.key}"><div class="sheet"><p class="study">{escape(document.study)}</p>',
            f"<h1>{escape(document.question)}</h1>{''.join(map(_part, first.parts))}</div></header>",
            f'<div class="sheet columns"><nav aria-label="Sections">{links}</nav><main>',
            *map(_section, others),
            "</main></div>",
            f"<script>{get_plotlyjs()}</script>" if has_charts else "",
            f"<script>{script}</script></body></html>\n",
        ]
    )


ASSETS = ("report.js", "report.css")


def _section(section: Section) -> str:
    return f'<section id="{section.key}"><h2>{escape(section.title)}</h2>{"".join(map(_part, section.parts))}</section>'


def _part(part: Part) -> str:
    match part:
        case Table():
            return _table(part)
        case Chart():
            return _chart(part)
        case Prose():
            return _prose(part)
        case Flow():
            return _flow(part)
        case Facts():
            return f'<dl class="facts">{"".join(map(_fact, part.facts))}</dl>'
        case Verbatim():
            return _verbatim(part)


def _text(text: str) -> str:
    """A text with what stands between backticks set as code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text))


def _prose(prose: Prose) -> str:
    kind = ' class="lead"' if prose.is_lead else ""
    if prose.is_list:
        return f"<ul{kind}>{''.join(f'<li>{_text(sentence)}</li>' for sentence in prose.sentences)}</ul>"
    return "".join(f"<p{kind}>{_text(sentence)}</p>" for sentence in prose.sentences)


def _fact(fact: Fact) -> str:
    detail = f"<dd>{escape(fact.detail)}</dd>" if fact.detail else ""
    return f"<div><dt>{escape(fact.name)}</dt><dd>{escape(fact.value)}</dd>{detail}</div>"


def _verbatim(part: Verbatim) -> str:
    text = f"<pre><code>{escape(part.text)}</code></pre>"
    if part.is_folded:
        return f"<details><summary>{escape(part.title)}</summary>{text}</details>"
    return f'<p class="of-code">{escape(part.title)}</p>{text}'


def _flow(flow: Flow) -> str:
    def box(step: Step) -> str:
        dropped = f"<em>{escape(step.dropped)}</em>" if step.dropped else ""
        return f"<li>{dropped}<span>{escape(step.name)}</span><strong>{escape(step.left)}</strong></li>"

    parts = f'<ol class="parts">{"".join(map(box, flow.parts))}</ol>' if flow.parts else ""
    return f'<div class="flow"><ol>{"".join(map(box, flow.steps))}</ol>{parts}</div>'


def _table(table: Table) -> str:
    """As great-tables lays it out, without its styles: the page's hold for all tables, in light and dark."""
    shown = table.without_empty()
    raw = _great_table(shown).as_raw_html(inline_css=False)
    found = re.search(r"<table.*</table>", raw, flags=re.DOTALL)
    assert found is not None
    kinds = " ".join(["scroll", *(["tall"] if table.frame.height > SCROLLS_FROM else [])])
    sortable = " data-sortable" if table.frame.height > 1 else ""
    notes = "".join(f"<p>{escape(note)}</p>" for note in table.notes)
    return (
        f'<figure class="table" id="table-{table.name}"><figcaption>{escape(table.caption)}</figcaption>'
        f'<div class="{kinds}" tabindex="0"{sortable}>{found[0]}</div>{notes}{_downloads(shown)}</figure>'
    )


def _great_table(table: Table) -> great_tables.GT:
    names = [f"c{number}" for number in range(len(table.columns))]
    rows = table.rows()
    cells = {name: [_cell(column, row) for row in rows] for name, column in zip(names, table.columns, strict=True)}
    frame = pl.DataFrame(cells, schema=dict.fromkeys(names, pl.String))
    if table.rows_by:
        frame = frame.with_columns(pl.Series("group", [str(row[table.rows_by]) for row in rows], dtype=pl.String))
    made = great_tables.GT(frame, id=f"gt-{table.name}", groupname_col="group" if table.rows_by else None)
    made = made.fmt(fns=str, columns=names)  # the cells are HTML, and escaped here
    made = made.cols_label({name: column.title for name, column in zip(names, table.columns, strict=True)})
    made = made.cols_align("left", columns=names)
    numbers = [name for name, column in zip(names, table.columns, strict=True) if column.is_right]
    made = made.cols_align("right", columns=numbers) if numbers else made
    if not any(column.title for column in table.columns):
        made = made.tab_options(column_labels_hidden=True)
    for group in dict.fromkeys(column.group for column in table.columns if column.group):
        members = [name for name, column in zip(names, table.columns, strict=True) if column.group == group]
        made = made.tab_spanner(group, columns=members)
    return made


def _cell(column: Column, row: Row) -> str:
    text = escape(column.text(row))
    link = column.link(row) if column.link else ""
    if link:
        text = f'<a href="{escape(link)}">{text}</a>'
    tone = column.tone(row) if column.tone and text else "plain"
    return text if tone == "plain" else f'<span class="tone {tone}">{text}</span>'


def _downloads(table: Table) -> str:
    kinds = {
        "CSV": ("csv", "text/csv", table.frame.write_csv()),
        "LaTeX": ("tex", "application/x-tex", table_to_latex(table)),
        "Markdown": ("md", "text/markdown", table_to_markdown(table)),
    }
    links = (
        f'<a download="{table.name}.{suffix}" href="data:{kind};base64,{base64.b64encode(text.encode()).decode()}">'
        f"{title}</a>"
        for title, (suffix, kind, text) in kinds.items()
    )
    return f'<p class="files">{"".join(links)}</p>'


def _chart(chart: Chart) -> str:
    if chart.is_file_only:
        return ""
    caption = f"<figcaption>{escape(chart.caption)}</figcaption>"
    if chart.interactive is None:
        picture = f'<div class="picture scroll" tabindex="0">{svg(chart.figure())}</div>'
        return f'<figure class="chart" id="chart-{chart.name}">{picture}{caption}</figure>'
    parts = chart.interactive.to_plotly_json()
    data = json.dumps({"data": parts["data"], "layout": parts["layout"]}, cls=PlotlyJSONEncoder, sort_keys=True)
    data = data.replace("</", "<\\/")  # or else a text of the chart could end the script
    return (
        f'<figure class="chart" id="chart-{chart.name}"><div class="plot" id="plot-{chart.name}" '
        f'style="height:{chart.height}px" role="img" aria-label="{escape(chart.caption)}"></div>{caption}'
        f'<script type="application/json" data-of="plot-{chart.name}">{data}</script></figure>'
    )
