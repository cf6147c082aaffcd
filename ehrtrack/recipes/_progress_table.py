"""The table that a terminal shows while a study runs: a line a configuration, with a sign for each of its repeats."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.table import Table
from rich.text import Text

from ehrtrack.study.cells import Cell
from ehrtrack.study.progress import SIGNS, Progress, by_configuration, counts_text
from ehrtrack.study.queue import State

STYLES: Mapping[State, str] = {
    "done": "green",
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
    """How far a study is, as large as the terminal.

    Attributes
    ----------
    as_of : when that was so
    trouble : why it could not be read since; empty where it could
    outputs : what is shown below the table
    is_last : whether it stays on the screen: then it has a line for each configuration, however small the terminal
    """

    progress: Progress
    as_of: str
    trouble: str
    outputs: Sequence[Output]
    is_last: bool = False

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        head = self._head()
        below = [line for output in self.outputs for line in _output_lines(output, shows_end=not self.is_last)]
        taken = sum(len(line.wrap(console, options.max_width)) for line in (*head, *below))
        room = console.height - taken - N_OTHER_LINES
        groups = by_configuration(self.progress.study)
        shown = groups if self.is_last else _most_urgent(groups, self.progress.states, max(1, room))
        yield Group(*head, "", self._table(shown, width=options.max_width))
        if len(shown) < len(groups):
            rest = [self.progress.states[cell.key] for name in groups.keys() - shown for cell in groups[name]]
            yield Text(f"and {len(groups) - len(shown)} configurations more: {counts_text(rest)}", "dim")
        yield Group("", *below)

    def _head(self) -> list[Text]:
        progress = self.progress
        told = ", ".join(filter(None, [counts_text(progress.states.values()), progress.left]))
        head = [Text.assemble((progress.study.name, "bold"), f": {told}; at {self.as_of}")]
        if self.trouble:
            head.append(Text(f"since then it could not be read: {self.trouble}", "red"))
        if progress.best:
            head.append(Text(f"best so far: {progress.best}"))
        return head

    def _table(self, groups: Mapping[str, Sequence[Cell]], *, width: int) -> Table:
        progress, scores = self.progress, self.progress.scores
        title = f"validation {progress.metric.title}" if progress.metric is not None else ""
        taken = max(map(len, ("configuration", *groups))) + GAP + len(title) + GAP
        longest = max(len(_signs(cells, progress.states)) for cells in groups.values())
        table = Table(box=None, padding=(0, GAP, 0, 0), pad_edge=False, header_style="dim")
        table.add_column("configuration")
        table.add_column(title, justify="right")
        table.add_column("repeats", overflow="fold")
        best = next(iter(scores), "")
        for name, cells in groups.items():
            score = f"{scores[name]:.3f}" if name in scores else ""
            signs = _signs(cells, progress.states, is_short=taken + longest > width)
            table.add_row(Text(name, "bold" if name == best else ""), score, signs)
        return table


def _signs(cells: Sequence[Cell], states: Mapping[str, State], *, is_short: bool = False) -> Text:
    """A sign for each repeat, which is its first letter where there is no room for words."""
    signs = [(SIGNS[states[cell.key]], STYLES[states[cell.key]]) for cell in cells]
    return Text("" if is_short else " ").join(Text(sign[0] if is_short else sign, style) for sign, style in signs)


def _most_urgent(groups: Mapping[str, list[Cell]], states: Mapping[str, State], most: int) -> dict[str, list[Cell]]:
    """At most so many configurations, in the study's order: those that run or failed, then those that are not done."""

    def urgency(name: str) -> int:
        found = {states[cell.key] for cell in groups[name]}
        return 0 if found & {"running", "failed"} else 1 if found != {"done"} else 2

    kept = set(sorted(groups, key=urgency)[:most])
    return {name: cells for name, cells in groups.items() if name in kept}


def _output_lines(output: Output, *, shows_end: bool) -> list[Text]:
    head = Text(f"{output.title}: {output.file}", overflow="fold")
    if not shows_end:
        return [head]
    return [head, *(Text(f"  {line}", "dim", no_wrap=True, overflow="ellipsis") for line in output.lines)]
