"""The report as LaTeX: tables with booktabs, figures as PDF, and a document that has them all."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import PurePosixPath

from ehrtrack.reporting.document import Chart, Document, Facts, Flow, Part, Prose, Section, Step, Table, Verbatim

_ESCAPES = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "`": r"\textasciigrave{}",
    "±": r"$\pm$",
    "−": r"$-$",
    "×": r"$\times$",
    "≤": r"$\leq$",
    "≥": r"$\geq$",
    "→": r"$\rightarrow$",
    "·": r"\textperiodcentered{}",
    "–": "--",
    "—": "---",
    "…": r"\ldots{}",
    "’": "'",
    "“": "``",
    "”": "''",
    "²": r"\textsuperscript{2}",
    "\u00a0": "~",
    "\n": " ",
}
LONG_TEXT = 36
"""Characters from which a column of text is broken into lines."""
MOST_ROWS = 30
"""Rows of a table that stands on one page."""

PREAMBLE = r"""\documentclass[a4paper,10pt]{article}
\usepackage[T1]{fontenc}
\usepackage[utf8]{inputenc}
\usepackage{textcomp,booktabs,longtable,array,graphicx,adjustbox,upquote}
\usepackage[margin=2cm]{geometry}
\usepackage[hidelinks]{hyperref}
\setlength{\parindent}{0pt}\setlength{\parskip}{4pt}
"""


def escape(text: str) -> str:
    r"""The text with all that LaTeX reads as a command set as it is.

    Examples
    --------
    >>> print(escape("<11 of 40 (27 %) & n_events ± 2"))
    \textless{}11 of 40 (27 \%) \& n\_events $\pm$ 2
    """
    return "".join(_ESCAPES.get(mark, mark) for mark in text)


def table_to_latex(table: Table) -> str:
    r"""A table with booktabs; one of many rows may break over pages.

    Examples
    --------
    >>> import polars as pl
    >>> from ehrtrack.reporting.document import Column
    >>> columns = (Column("model", lambda row: row["m"]), Column("C", lambda row: f"{row['c']:.2f}", is_right=True))
    >>> print(table_to_latex(Table("main", "All.", pl.DataFrame({"m": ["cox"], "c": [0.7]}), columns)).strip())
    \begin{table}[htbp]
    \centering
    \caption{All.}
    \label{tab:main}
    \begin{adjustbox}{max width=\textwidth}
    \begin{tabular}{@{}lr@{}}
    \toprule
    model & C \\
    \midrule
    cox & 0.70 \\
    \bottomrule
    \end{tabular}
    \end{adjustbox}
    \end{table}
    """
    alignment = f"{{@{{}}{''.join(_alignments(table))}@{{}}}}"
    caption, label = rf"\caption{{{escape(table.caption)}}}", rf"\label{{tab:{table.name}}}"
    notes = [rf"\par\smallskip{{\footnotesize {escape(' '.join(table.notes))}}}"] if table.notes else []
    head, body = _head(table), _body(table)
    top = [r"\toprule", *head, *([r"\midrule"] if head else [])]
    if len(body) > MOST_ROWS:
        lines = [
            *(r"{\small", rf"\begin{{longtable}}{alignment}", rf"{caption}{label}\\", *top),
            *(r"\endfirsthead", *top, r"\endhead", *body, r"\bottomrule"),
            *(r"\end{longtable}", *notes, "}"),
        ]
    else:
        lines = [
            *(r"\begin{table}[htbp]", r"\centering", caption, label, r"\begin{adjustbox}{max width=\textwidth}"),
            *(rf"\begin{{tabular}}{alignment}", *top, *body, r"\bottomrule"),
            *(r"\end{tabular}", r"\end{adjustbox}", *notes, r"\end{table}"),
        ]
    return "\n".join(lines) + "\n"


def _alignments(table: Table) -> list[str]:
    cells = table.cells()
    longest = [max((len(line[number]) for line in cells), default=0) for number in range(len(table.columns))]
    n_long = sum(length > LONG_TEXT for length in longest)
    share = 0.72 / max(n_long, 1)
    return [
        "r" if column.is_right else rf"p{{{share:.2f}\textwidth}}" if length > LONG_TEXT else "l"
        for column, length in zip(table.columns, longest, strict=True)
    ]


def _head(table: Table) -> list[str]:
    if not any(column.title for column in table.columns):
        return []
    titles = " & ".join(escape(column.title) for column in table.columns) + r" \\"
    if not any(column.group for column in table.columns):
        return [titles]
    spans, rules, place = [], [], 1
    for group, members in groupby(table.columns, key=lambda column: column.group):
        n = len(list(members))
        spans.append(rf"\multicolumn{{{n}}}{{c}}{{{escape(group)}}}" if group else " & " * (n - 1))
        rules += [rf"\cmidrule(lr){{{place}-{place + n - 1}}}"] if group else []
        place += n
    return [" & ".join(spans) + r" \\", "".join(rules), titles]


def _body(table: Table) -> list[str]:
    lines, before = [], object()
    for row, cells in zip(table.rows(), table.cells(), strict=True):
        if table.rows_by and row[table.rows_by] != before:
            before = row[table.rows_by]
            lines.append(rf"\multicolumn{{{len(table.columns)}}}{{@{{}}l}}{{\textit{{{escape(str(before))}}}}} \\")
        lines.append(" & ".join(map(escape, cells)) + r" \\")
    return lines


def document_to_latex(document: Document) -> str:
    """A document that takes its tables and figures from the folders ``tables`` and ``figures`` beside it."""
    body = [text for section in document.sections for text in (*_heading(section), *map(_part, section.parts))]
    title = [rf"\title{{{escape(document.question)}}}", rf"\author{{{escape(document.study)}}}", r"\date{}"]
    return "\n".join([PREAMBLE, *title, r"\begin{document}", r"\maketitle", *body, r"\end{document}"]) + "\n"


def _heading(section: Section) -> list[str]:
    return [rf"\section{{{escape(section.title)}}}\label{{sec:{section.key}}}"]


def _part(part: Part) -> str:
    match part:
        case Table():
            return rf"\input{{{PurePosixPath('tables') / part.name}.tex}}"
        case Chart():
            return _figure(part)
        case Prose():
            return _items(part.sentences) if part.is_list else "\n\n".join(map(escape, part.sentences)) + "\n"
        case Flow():
            return _items([f"{s.name}: {s.left}{f' ({s.dropped})' if s.dropped else ''}" for s in _steps(part)])
        case Facts():
            return _items([f"{f.name}: {f.value}{f' ({f.detail})' if f.detail else ''}" for f in part.facts])
        case Verbatim():
            return rf"\paragraph{{{escape(part.title)}}}" + "\n\\begin{verbatim}\n" + part.text + "\n\\end{verbatim}\n"


def _steps(flow: Flow) -> Sequence[Step]:
    return (*flow.steps, *flow.parts)


def _items(texts: Sequence[str]) -> str:
    return "\n".join([r"\begin{itemize}", *(rf"\item {escape(text)}" for text in texts), r"\end{itemize}"]) + "\n"


def _figure(chart: Chart) -> str:
    return "\n".join(
        [
            *(r"\begin{figure}[htbp]", r"\centering"),
            rf"\includegraphics[max width=\textwidth]{{figures/{chart.name}.pdf}}",
            rf"\caption{{{escape(chart.caption)}}}\label{{fig:{chart.name}}}",
            r"\end{figure}" + "\n",
        ]
    )
