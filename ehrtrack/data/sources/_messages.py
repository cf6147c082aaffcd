"""What may be told of a fault in a source: where it is and of what kind, without a cell of a patient's record."""

from __future__ import annotations

import re
from collections.abc import Iterable

# What DuckDB finds in a row of a CSV file. It quotes the row before and, in places, after it.
_FAULTS_OF_ROWS = {
    r"Expected Number of Columns: (\d+) Found: (\d+)": "it has {1} cells; needed: {0}, as the header has",
    r"unterminated quote": "a quotation mark is not closed, or text follows the closing one",
    r"not utf-8 encoded": "it is not UTF-8; save the file in that encoding",
    r"Maximum line size of (\d+) bytes exceeded": "it is longer than {0} bytes; cut its longest texts",
}
_MIXED_LINE_ENDS = "its lines end in different ways (CRLF, LF), or it has stray quotation marks; mend the file"
_LOOKS_LIKE_DATA = re.compile(r"[+-]?\d[\d.,:/ -]*([TtZz][\d:.+-]*)?")


def masked(value: str) -> str:
    """The shape of a value: what is shown of a patient's record.

    >>> masked("31.12.1950")
    '99.99.9999'
    """
    return re.sub(r"[^\W\d_]", "a", re.sub(r"\d", "9", value))


def what_is_wrong(error: Exception) -> str:
    """What a DuckDB error says is wrong, without its advice on settings and without the values that it quotes.

    >>> what_is_wrong(ValueError("CSV Error on Line: 2 Original Line: 1,x Expected Number of Columns: 3 Found: 2"))
    'CSV Error on Line: 2, it has 2 cells; needed: 3, as the header has'
    """
    text = str(error)
    file = re.search(r"^ *file = (.*)$", text, re.MULTILINE)
    where = f"{file[1]}: " if file else ""
    if line := re.search(r"CSV Error on Line: (\d+)", text):
        return f"{where}CSV Error on Line: {line[1]}, {_fault_of_row(text)}"
    if "CSV Parser state machine" in text:
        return where + _MIXED_LINE_ENDS
    text = re.split(r"Possible fixes:|Possible Solution:|LINE 1:|Detail: Python exception:", text)[0]
    text = re.sub(r"""\b(value:?|string) ("[^"]*"|'[^']*')|(with value) \S+""", r"\1\3 (not shown)", text)
    return " ".join(text.split())


def _fault_of_row(text: str) -> str:
    for pattern, words in _FAULTS_OF_ROWS.items():
        if found := re.search(pattern, text):
            return words.format(*found.groups())
    return "it cannot be read"


def told_columns(names: Iterable[str]) -> str:
    """The names of a table's columns; masked where the first line holds data instead of names.

    >>> told_columns(["person_id", "year_of_birth"])
    'person_id, year_of_birth'
    >>> told_columns(["4711", "john", "1950-01-02"])
    'a first line of data instead of names (masked: 9999, aaaa, 9999-99-99)'
    """
    names = list(names)
    if any(_LOOKS_LIKE_DATA.fullmatch(name) for name in names):
        return f"a first line of data instead of names (masked: {', '.join(map(masked, names))})"
    return ", ".join(names) or "no column"
