"""A sweep in a terminal: one table of its trials that is kept up to date, and a log for each of them."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from optuna.distributions import FloatDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial
from terminals import Terminal

from ehrtrack.recipes._sweep_screen import how_far
from ehrtrack.search.drawing import DEFAULTS
from ehrtrack.search.outcome import FAILURE, SLOT
from ehrtrack.search.stored import Searched
from ehrtrack.search_space import SearchConfig

WriteStudy = Callable[..., Path]
SWEEP = """
extends = "finetune.toml"
strategy = { name = "scratch" }
[search]
n_trials = 3
refits = 1
pruner = "none"
[search.parameters]
"train.lr" = { low = 1e-4, high = 1e-2, log = true }
"""


def test_a_sweep_has_one_table_of_its_trials_and_then_one_of_its_refits(
    local_store: Path, write_study: WriteStudy
) -> None:
    write_study("", sweep=SWEEP)
    words = ["-m", "ehrtrack", "sweep", "--config", "sweep.toml"]
    terminal = Terminal(words, {"NO_COLOR": "1", "OMP_NUM_THREADS": "1"}, columns=150)
    assert terminal.end() == 0, terminal.written
    screen = terminal.screen
    (begins,) = [n for n, line in enumerate(screen) if re.fullmatch(r"sweep of sim: 3 done; at \d\d:\d\d:\d\d", line)]
    best = re.fullmatch(r"best so far: trial (\d), validation C-index \.\d{3} \(.+\)", screen[begins + 1])
    assert best is not None
    assert screen[begins + 3].split() == ["trial", "validation", "C-index", "settings"]
    lines = [line.split(maxsplit=3) for line in screen[begins + 4 : begins + 7]]
    assert [(line[0], line[2]) for line in lines] == [("1", "done"), ("2", "done"), ("3", "done")]
    assert max(lines, key=lambda line: float(line[1]))[0] == best[1]
    assert all(re.fullmatch(r"lr [\d.e-]+", line[3]) for line in lines)
    assert "Best by validation is" not in screen[begins]
    assert any(re.search(r"1 done; at|2 done; at", line) for line in screen[begins + 7 :]), "the refits have theirs"
    assert "running, " in terminal.written
    (folder,) = (local_store / ".ehrtrack" / "logs").glob("sim-*")
    logs = {file.name: file.read_text() for file in folder.glob("trial-*.log")}
    assert [re.sub(r"-lr.*", "", name) for name in sorted(logs)] == ["trial-1", "trial-2", "trial-3"]
    for name, text in logs.items():
        assert text.startswith(f"\ntrial {name[6]} of 3: lr ")
        assert len(re.findall(r"^epoch +1/1", text, re.MULTILINE)) == 1


def trial(place: int, state: TrialState, *values: float, told: dict[int, float] | None = None, **facts: Any) -> Any:
    """One of a sweep, that took a minute."""
    begun = datetime(2026, 11, 30, 12)
    made = create_trial(
        state=state,
        values=list(values) or None,
        params={"train.lr": 0.001 * place},
        distributions={"train.lr": FloatDistribution(1e-4, 1e-1)},
        intermediate_values=told or {},
        user_attrs={SLOT: place - 1, **facts},
    )
    made.datetime_start, made.datetime_complete = begun, None if not state.is_finished() else begun + MINUTE
    return made


MINUTE = timedelta(minutes=1)
COMPLETE, PRUNED, FAIL, RUNNING = TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL, TrialState.RUNNING


def searched(trials: list[FrozenTrial], *, metric: str = "c_index", why_over: str = "", **settings: Any) -> Searched:
    for number, one in enumerate(trials):
        one.number = number
    space = {"train.lr": {"low": 1e-4, "high": 1e-1}}
    config = SearchConfig.model_validate({"parameters": space, "n_trials": 8} | settings)
    return Searched(config, (metric,), trials, why_over)


def test_each_trial_has_a_line_with_its_score_so_far_and_those_not_begun_wait() -> None:
    far = how_far(
        "sim",
        searched(
            [
                trial(1, COMPLETE, 0.7, **{DEFAULTS: {"train.epochs": 3}}),
                trial(2, FAIL, told={0: 0.9}),  # cut off, and begun anew
                trial(3, PRUNED, told={0: 0.5, 1: 0.52}),
                trial(2, RUNNING, told={0: 0.6}),
                trial(4, FAIL, **{FAILURE: "the loss is not a number"}),
                trial(5, RUNNING),
                trial(6, COMPLETE, 0.8),
            ]
        ),
    )
    assert [(line.name, *line.states, line.score, line.note) for line in far.lines] == [
        ("1", "done", 0.7, "epochs 3 · lr 0.001"),
        ("2", "running", 0.6, "lr 0.002"),
        ("3", "pruned", 0.52, "lr 0.003"),
        ("4", "failed", None, "the loss is not a number"),
        ("5", "running", None, "lr 0.005"),
        ("6", "done", 0.8, "lr 0.006"),
    ]
    assert far.states == ("done", "running", "pruned", "failed", "running", "done", "waiting", "waiting")
    assert (far.best, far.ahead) == ("trial 6, validation C-index .800 (lr 0.006)", "6")
    assert far.left == "2 min left"  # four of a minute, two at a time
    assert [line.name for line in sorted(far.lines, key=lambda line: line.urgency)] == ["2", "4", "5", "6", "1", "3"]


def test_where_less_is_better_the_least_is_ahead() -> None:
    far = how_far("sim", searched([trial(1, COMPLETE, 0.2), trial(2, COMPLETE, 0.1)], metric="ibs"))
    assert (far.ahead, [line.urgency for line in far.lines]) == ("2", [1, 0])


@pytest.mark.parametrize(
    ("settings", "why_over", "left", "n_waiting"),
    [
        ({}, "", "7 min left", 7),
        ({"max_hours": 0.05}, "", "2 min left", 7),
        ({"max_hours": 0.01}, "trials have taken 0.02 hours", "trials have taken 0.02 hours", 0),
        ({"n_trials": 1}, "", "", 0),
    ],
    ids=["trials", "hours", "over", "done"],
)
def test_what_is_left_is_told(settings: dict[str, Any], why_over: str, left: str, n_waiting: int) -> None:
    far = how_far("sim", searched([trial(1, COMPLETE, 0.7)], why_over=why_over, **settings))
    assert (far.left, far.states.count("waiting")) == (left, n_waiting)


def test_before_the_first_score_nothing_is_ahead() -> None:
    far = how_far("sim", searched([]))
    assert (far.best, far.ahead, far.left, far.lines) == ("", "", "", ())
    assert far.states == ("waiting",) * 8
