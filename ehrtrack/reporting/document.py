"""What a report consists of, before it is HTML, LaTeX or Markdown: sections of prose, tables and charts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import polars as pl

if TYPE_CHECKING:
    import plotly.graph_objects as go
    from matplotlib.figure import Figure

Row = Mapping[str, Any]
Tone = Literal["good", "bad", "doubt", "plain"]


@dataclass(frozen=True)
class Column:
    """A column as a reader sees it.

    Attributes
    ----------
    title : its head
    text : of a row of the table's frame, the cell
    is_right : whether it holds numbers, which stand to the right
    group : head over this and neighbouring columns; empty for none
    link : of a row, the address that the cell leads to in HTML; empty for none
    tone : of a row, how the cell is coloured in HTML

    Examples
    --------
    >>> Column("events", lambda row: f"{row['n']:,}", is_right=True).text({"n": 1200})
    '1,200'
    """

    title: str
    text: Callable[[Row], str]
    is_right: bool = False
    group: str = ""
    link: Callable[[Row], str] | None = None
    tone: Callable[[Row], Tone] | None = None


@dataclass(frozen=True)
class Table:
    """A table: a frame of numbers for its CSV file, and columns of text for everything that is read.

    Attributes
    ----------
    name : of its files, without a suffix
    caption : what it shows, in a sentence
    frame : at full precision
    columns : what is read of it
    notes : below the table
    rows_by : column of the frame whose values head groups of rows; empty for none

    Examples
    --------
    >>> frame = pl.DataFrame({"model": ["cox"], "c": [0.71234]})
    >>> table = Table(
    ...     "main",
    ...     "Discrimination.",
    ...     frame,
    ...     (Column("model", lambda row: row["model"]), Column("C", lambda row: f"{row['c']:.3f}", is_right=True)),
    ... )
    >>> table.cells()
    [['cox', '0.712']]
    """

    name: str
    caption: str
    frame: pl.DataFrame
    columns: tuple[Column, ...]
    notes: tuple[str, ...] = ()
    rows_by: str = ""

    def rows(self) -> list[dict[str, Any]]:
        """The rows of the frame."""
        return list(self.frame.iter_rows(named=True))

    def cells(self) -> list[list[str]]:
        """The texts, row by row."""
        return [[column.text(row) for column in self.columns] for row in self.rows()]

    def without_empty(self) -> Table:
        """The table without columns that have no text in any row."""
        cells = self.cells()
        kept = [c for number, c in enumerate(self.columns) if any(line[number] for line in cells)]
        return Table(self.name, self.caption, self.frame, tuple(kept), self.notes, self.rows_by)


@dataclass(frozen=True)
class Chart:
    """A chart: a figure for its files, and what is looked at in the page.

    Attributes
    ----------
    name : of its files, without a suffix
    caption : what it shows, in a sentence
    figure : makes the figure of the files
    interactive : the chart of the page; None where the page has none beside `figure`
    height : of the chart in the page, in pixels
    is_file_only : not in the page, which shows the same in another way
    suffixes : of its files
    """

    name: str
    caption: str
    figure: Callable[[], Figure]
    interactive: go.Figure | None = None
    height: int = 420
    is_file_only: bool = False
    suffixes: tuple[str, ...] = ("png", "svg", "pdf")


@dataclass(frozen=True)
class Prose:
    """Sentences: a paragraph each, or the points of a list. `is_lead` sets them large."""

    sentences: tuple[str, ...]
    is_list: bool = False
    is_lead: bool = False


@dataclass(frozen=True)
class Step:
    """A step of the flow of subjects: who is left, and who was left out by it, as text that hides small counts."""

    name: str
    left: str
    dropped: str = ""


@dataclass(frozen=True)
class Flow:
    """The flow of subjects.

    Attributes
    ----------
    steps : from all subjects of the data to the cohort
    parts : of the cohort, such as its splits
    """

    steps: tuple[Step, ...]
    parts: tuple[Step, ...]


@dataclass(frozen=True)
class Fact:
    """A number of the first screen: `value` in large, `name` above and `detail` below it."""

    name: str
    value: str
    detail: str = ""


@dataclass(frozen=True)
class Facts:
    """The numbers of the first screen."""

    facts: tuple[Fact, ...]


@dataclass(frozen=True)
class Verbatim:
    """Text as it stands, such as a command or a file. `is_folded` shows its title alone until it is opened."""

    title: str
    text: str
    is_folded: bool = False


Part = Prose | Table | Chart | Flow | Facts | Verbatim


@dataclass(frozen=True)
class Section:
    """A section of the report.

    Attributes
    ----------
    key : by which links find it
    title : its head
    parts : what it consists of

    Examples
    --------
    >>> [table.name for table in Section("cost", "Cost", (Prose(("Nothing.",)),)).tables()]
    []
    """

    key: str
    title: str
    parts: tuple[Part, ...]

    def tables(self) -> list[Table]:
        """Its tables."""
        return [part for part in self.parts if isinstance(part, Table)]

    def charts(self) -> list[Chart]:
        """Its charts."""
        return [part for part in self.parts if isinstance(part, Chart)]


@dataclass(frozen=True)
class Document:
    """A report.

    Attributes
    ----------
    study : the name of the study
    question : that it answers
    sections : the first of which is the first screen
    """

    study: str
    question: str
    sections: tuple[Section, ...]

    def tables(self) -> list[Table]:
        """The tables of all sections."""
        return [table for section in self.sections for table in section.tables()]

    def charts(self) -> list[Chart]:
        """The charts of all sections."""
        return [chart for section in self.sections for chart in section.charts()]
