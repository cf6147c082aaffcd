"""A study in a terminal: one table that is kept up to date, and nothing of what runs print is lost."""

from __future__ import annotations

import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console
from terminals import Terminal

from ehrtrack.recipes._progress_table import Output, ProgressTable
from ehrtrack.recipes._study_screen import StudyScreen, how_far
from ehrtrack.recipes._terminal import log_name, watched
from ehrtrack.study.cells import Study, read_study
from ehrtrack.study.progress import progress
from ehrtrack.study.queue import Queue, State

WriteStudy = Callable[..., Path]
TRAINED = """
question = "Is a transformer better than Cox?"
finetune = "finetune.toml"
baseline = "baseline.toml"
reference = { baseline = "cox" }
price_per_hour = 2.0
[repeats]
"runtime.seed" = [0, 1]
[matrix]
strategy = ["scratch"]
"""
PRETENDED = """
question = "Is an elastic net enough?"
baseline = "baseline.toml"
reference = { baseline = "cox" }
[matrix]
baseline = ["cox", "lasso"]
"""
FAILS = """
import os, subprocess, sys
from ehrtrack.cli import main
from ehrtrack.errors import DataError
from ehrtrack.recipes import _cell

def fails(config, *, place):
    print("by python", flush=True)
    subprocess.run(["echo", "by a command"], check=True)
    os.write(2, b"by a library\\n")
    raise DataError(f"{config.baseline.name} has no events")

_cell.baseline = fails
main(sys.argv[1:])
"""
WAITS = """
import signal, sys
from ehrtrack.cli import main
from ehrtrack.recipes import _cell

def waits(config, *, place):
    print("it begins to wait", flush=True)
    signal.pause()

_cell.baseline = waits
main(sys.argv[1:])
"""
RUN = ("study", "run", "study.toml")
COLOUR = re.compile(r"\x1b\[[\d;]*3[0-7]")


def logs(cache: Path) -> dict[str, str]:
    """What was printed beside the terminal, by the file's name."""
    return {file.name: file.read_text() for file in [*cache.glob("logs/sim/*.log"), *cache.glob("worker-*.log")]}


def test_two_workers_have_one_table_and_end_as_without_a_terminal(local_store: Path, write_study: WriteStudy) -> None:
    cells = read_study(write_study(TRAINED)).cells
    terminal = Terminal(["-m", "ehrtrack", *RUN, "--workers", "2"], {"NO_COLOR": "1", "OMP_NUM_THREADS": "1"})
    assert terminal.end() == 0, terminal.written
    screen = terminal.screen
    assert [line for line in screen if line.startswith("sim: ")] == ["sim: 3 cells, 0 of them are done", screen[4]]
    assert re.fullmatch(r"sim: 3 done; at \d\d:\d\d:\d\d", screen[4])
    assert re.fullmatch(r"best so far: \w+, validation C-index \.\d{3} \([12] of [12] done\)", screen[5])
    assert [re.sub(r" +[\d.]* +", " ", line) for line in screen[7:10]] == [
        "configuration validation C-index repeats",
        *("cox done", "scratch done done"),
    ]
    assert screen[11] == "printed beside the runs: .ehrtrack/logs/sim/study.log"
    assert "Best by validation is" in (after := "\n".join(screen[12:]))
    assert re.search(r"^\| scratch +\| +2 \|.*study done in", after, re.DOTALL | re.MULTILINE)
    assert "running" in terminal.written
    assert "EUR left; at " in terminal.written
    assert not COLOUR.search(terminal.written)
    assert " begins" not in after
    found = logs(local_store / ".ehrtrack")
    printed = "".join(found.values())
    for cell in cells:
        assert printed.count(f"{cell.label}: done, run ") == 1
        assert printed.count(f"{cell.label}: {cell.recipe} begins") == 1
    assert len(re.findall(r"^epoch +1/1", printed, re.MULTILINE)) == 2
    own = {cell.label for cell in cells if f"{cell.label}: done" in found["study.log"]}
    assert {cell.label for cell in cells if log_name(cell.label, cell.key) in found} == own
    assert all(f"{cell.recipe} done in" in found[log_name(cell.label, cell.key)] for cell in cells if cell.label in own)


def test_what_fails_is_in_the_table_and_told_in_the_end_and_what_it_printed_is_in_its_log(
    local_store: Path, write_study: WriteStudy
) -> None:
    cells = read_study(write_study(PRETENDED)).cells
    terminal = Terminal(["-c", FAILS, *RUN])
    assert terminal.end() == 2
    assert re.search(r"^sim: 2 failed; at ", "\n".join(terminal.screen), re.MULTILINE)
    assert [line.split() for line in terminal.screen if line.endswith("FAILED")] == [
        [cell.label, "FAILED"] for cell in cells
    ]
    assert COLOUR.search(terminal.written)
    found = logs(local_store / ".ehrtrack")
    for cell in cells:
        assert found[log_name(cell.label, cell.key)] == "by python\nby a command\nby a library\n" * 2
    assert "failed, for good: DataError: lasso has no events" in found["study.log"]


def test_without_a_terminal_all_is_printed_as_it_comes(local_store: Path, write_study: WriteStudy) -> None:
    write_study(PRETENDED)
    ended = subprocess.run(
        [sys.executable, "-c", FAILS, *RUN], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    assert ended.returncode == 2
    tries = ("failed, and is tried once more", "failed, for good")
    lines = re.sub(r"study run \S+ .*", "study run ID", ended.stdout).splitlines()
    assert [line for line in lines if not re.match("20|by a library", line)] == [
        "Is an elastic net enough?",
        "sim: 2 cells, 0 of them are done",
        "study run ID",
        *(
            line
            for n, name in enumerate(("cox", "lasso"))
            for told in tries
            for line in (
                *(f"[{far(n)}] {name}: baseline begins", "by python", "by a command"),
                f"[{far(n + (told == tries[1]))}] {name}: {told}: DataError: {name} has no events",
            )
        ),
        *("", "No run that can be compared is finished.", ""),
        "ehrtrack: 2 of 2 cells have no result; start the study again to try them once more, or leave them out by "
        "`exclude`:",
        *(f"- {name}: it failed 2 times: DataError: {name} has no events" for name in ("cox", "lasso")),
    ]
    assert ended.stdout.count("by a library\n") == 4
    assert not (local_store / ".ehrtrack" / "logs").exists()


def far(n_failed: int) -> str:
    return f"0 of 2 done, {n_failed} failed" if n_failed else "0 of 2 done"


@pytest.mark.parametrize(
    ("end", "code", "told"),
    [
        (lambda terminal: terminal.press(b"\x03"), 130, ["ehrtrack: ended by Ctrl-C"]),
        (lambda terminal: terminal.process.send_signal(signal.SIGTERM), 143, []),
    ],
    ids=["ctrl-c", "sigterm"],
)
def test_a_study_that_is_told_to_stop_says_how_to_go_on_below_the_table(
    local_store: Path, write_study: WriteStudy, end: Callable[[Terminal], None], code: int, told: list[str]
) -> None:
    write_study(PRETENDED)
    terminal = Terminal(["-c", WAITS, *RUN])
    terminal.read_until("it begins to wait")
    end(terminal)
    assert terminal.end() == code
    table = terminal.screen.index("printed beside the runs: .ehrtrack/logs/sim/study.log")
    assert [line for line in terminal.screen[table + 1 :] if line not in ("", "^C")] == [
        "to continue: start the same study again; what is finished is not repeated",
        *told,
    ]
    assert terminal.written.rindex("\x1b[?25h") > terminal.written.rindex("\x1b[?25l")  # the cursor is there again


class Unasked(Queue):
    """A queue that must not be asked."""

    def __init__(self, study: Study) -> None:
        self.study = study


def test_a_terminal_that_cannot_be_written_over_has_lines(
    monkeypatch: pytest.MonkeyPatch, write_study: WriteStudy
) -> None:
    made = read_study(write_study(PRETENDED))
    cell = made.cells[0]
    ours, theirs = pty.openpty()
    with open(theirs, "w") as stdout, monkeypatch.context() as patch:
        patch.setenv("TERM", "dumb")
        patch.setattr(sys, "stdout", stdout)
        with watched(StudyScreen(Unasked(made))) as log_of, log_of(cell.label, cell.key):
            print("as it comes", flush=True)
        assert os.read(ours, 100) == b"as it comes\r\n"
    os.close(ours)


@dataclass
class Drawn:
    """A study's table as a terminal of some size shows it, given how its cells stand."""

    study: Study

    def lines(self, states: Sequence[State], *, columns: int = 80, lines: int = 24, is_last: bool = False) -> list[str]:
        """What is drawn, without the lines above and below the table."""
        of_cells = {cell.key: state for cell, state in zip(self.study.cells, states, strict=True)}
        far = replace(progress(self.study, {}, {}), states=of_cells)
        console = Console(file=StringIO(), width=columns, height=lines)
        outputs = [Output("here", Path("cell.log"), ["epoch 1", "epoch 2"])]
        console.print(ProgressTable(how_far(far), "12:00:00", "", outputs, is_last))
        assert isinstance(console.file, StringIO)
        head, table, below = console.file.getvalue().split("\n\n")
        assert head.startswith("sim: ")
        assert below == "here: cell.log\n" + ("" if is_last else "  epoch 1\n  epoch 2\n")
        return [line.rstrip() for line in table.split("\n")]


WIDE = """
question = "Is an elastic net enough?"
baseline = "baseline.toml"
reference = { baseline = "gru" }
[matrix]
baseline = ["gru", "lstm", "mean-pool"]
[repeats]
"runtime.seed" = [0, 1, 2, 3]
"""


@pytest.fixture
def drawn(write_study: WriteStudy) -> Drawn:
    return Drawn(read_study(write_study(WIDE)))


STANDING: list[State] = [  # of the three configurations, seed by seed
    *("done", "done", "waiting"),
    *("done", "running", "waiting"),
    *("done", "failed", "waiting"),
    *("done", "waiting", "waiting"),
]


def test_each_repeat_has_its_sign_and_its_first_letter_where_words_have_no_room(drawn: Drawn) -> None:
    words = [
        "gru              done done done done",
        "lstm             done runs FAILED ·",
        "mean-pool        · · · ·",
    ]
    assert drawn.lines(STANDING)[1:] == words
    assert drawn.lines(STANDING, columns=36)[1:] == words
    assert drawn.lines(STANDING, columns=35)[1:] == [
        "gru              dddd",
        "lstm             drF·",
        "mean-pool        ····",
    ]


def test_a_low_terminal_shows_what_runs_or_failed_first_and_counts_the_rest_and_in_the_end_all(drawn: Drawn) -> None:
    assert drawn.lines(STANDING, lines=10)[1:] == [
        "lstm             done runs FAILED ·",
        "and 2 configurations more: 4 done, 4 waiting",
    ]
    assert len(drawn.lines(STANDING, lines=10, is_last=True)) == 4
