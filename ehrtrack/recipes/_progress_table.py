"""The table that a terminal shows while something of many parts runs: a line each, with a sign for how it stands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.table import Table
from rich.text import Text

from ehrtrack.study.progress import SIGNS, counts_text

STYLES: Mapping[str, str] = {
    "done": "green",
    "pruned": "yellow",
    "running": "bold cyan",
    "waiting": "dim",
    "failed": "bold red",
    "blocked": "red",
}
GAP = 2
"""Columns of the terminal between two of the table."""
N_OTHER_LINES = 5
"""Two that are empty, the titles, what is not shown, and the cursor's."""


@dataclass(frozen=True)
class Line:
    """One line of the table.

    Attributes
    ----------
    states : of its repeats, or of the one thing that it is
    urgency : lines of the lowest are shown where there is no room for all
    note : what else there is to know, cut where there is no room
    """

    name: str
    states: tuple[str, ...]
    urgency: int
    score: float | None = None
    note: str = ""


@dataclass(frozen=True)
class HowFar:
    """How far something is.

    Attributes
    ----------
    states : of all its parts, those without a line too
    left : about how much time, and money, the rest takes; empty where nothing is known
    best : which line is ahead, in words; empty where none has a score
    ahead : the name of that line
    parts : what a line is of, in the plural
    titles : of the columns
    """

    name: str
    states: tuple[str, ...] = ()
    left: str = ""
    best: str = ""
    ahead: str = ""
    parts: str = ""
    titles: tuple[str, ...] = ("", "", "")
    lines: tuple[Line, ...] = ()


@dataclass(frozen=True)
class Output:
    """What a file has got, of which a screen shows the end.

    Attributes
    ----------
    title : what the file is of
    lines : its last ones
    """

    title: str
    file: Path
    lines: Sequence[str]


@dataclass(frozen=True)
class ProgressTable:
    """How far something is, as large as the terminal.

    Attributes
    ----------
    as_of : when that was so
    trouble : why it could not be read since; empty where it could
    outputs : what is shown below the table
    is_last : whether it stays on the screen: then it has all lines, however small the terminal
    """

    far: HowFar
    as_of: str
    trouble: str
    outputs: Sequence[Output]
    is_last: bool = False

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        head = self._head()
        below = [line for output in self.outputs for line in _output_lines(output, shows_end=not self.is_last)]
        taken = sum(len(line.wrap(console, options.max_width)) for line in (*head, *below))
        room = console.height - taken - N_OTHER_LINES
        lines = self.far.lines
        shown = lines if self.is_last else _most_urgent(lines, max(1, room))
        yield Group(*head, "", self._table(shown, width=options.max_width))
        if len(shown) < len(lines):
            rest = [state for line in lines if line not in shown for state in line.states]
            yield Text(f"and {len(lines) - len(shown)} {self.far.parts} more: {counts_text(rest)}", "dim")
        yield Group("", *below)

    def _head(self) -> list[Text]:
        far = self.far
        told = ", ".join(filter(None, [counts_text(far.states), far.left]))
        head = [Text.assemble((far.name, "bold"), f": {told}; at {self.as_of}")]
        if self.trouble:
            head.append(Text(f"since then it could not be read: {self.trouble}", "red"))
        if far.best:
            head.append(Text(f"best so far: {far.best}"))
        return head

    def _table(self, lines: Sequence[Line], *, width: int) -> Table:
        first, score, signs, *note = self.far.titles
        taken = max(map(len, (first, *(line.name for line in lines)))) + GAP + len(score) + GAP
        longest = max((len(_signs(line)) for line in lines), default=0)
        table = Table(box=None, padding=(0, GAP, 0, 0), pad_edge=False, header_style="dim")
        table.add_column(first)
        table.add_column(score, justify="right")
        table.add_column(signs, overflow="fold")
        for title in note:
            table.add_column(title, no_wrap=True, overflow="ellipsis")
        for line in lines:
            table.add_row(
                Text(line.name, "bold" if line.name == self.far.ahead else ""),
                "" if line.score is None else f"{line.score:.3f}",
                _signs(line, is_short=taken + longest > width),
                *([line.note] if note else []),
            )
        return table


def _signs(line: Line, *, is_short: bool = False) -> Text:
    """A sign for each repeat, which is its first letter where there is no room for words."""
    signs = [(SIGNS[state], STYLES[state]) for state in line.states]
    return Text("" if is_short else " ").join(Text(sign[0] if is_short else sign, style) for sign, style in signs)


def _most_urgent(lines: Sequence[Line], most: int) -> list[Line]:
    """At most so many lines, in their order."""
    kept = sorted(range(len(lines)), key=lambda n: lines[n].urgency)[:most]
    return [lines[n] for n in sorted(kept)]


def _output_lines(output: Output, *, shows_end: bool) -> list[Text]:
    head = Text(f"{output.title}: {output.file}", overflow="fold")
    if not shows_end:
        return [head]
    return [head, *(Text(f"  {line}", "dim", no_wrap=True, overflow="ellipsis") for line in output.lines)]
