"""A worker's time and its task: when it ends well, and by which key a scheduler's task is known."""

from __future__ import annotations

import signal
import threading

import pytest

from ehrtrack.recipes.work import at_most, task_key
from ehrtrack.signals import TerminatedBySignal, signals_end_the_command


def test_a_worker_whose_time_is_over_ends_well(capsys: pytest.CaptureFixture[str]) -> None:
    with signals_end_the_command():
        at_most(1e-9, lambda: threading.Event().wait(60))
    assert "hours are over: the next worker continues what was begun" in capsys.readouterr().out


def test_a_worker_that_is_told_to_stop_before_its_time_says_so() -> None:
    with pytest.raises(TerminatedBySignal), signals_end_the_command():
        at_most(10.0, lambda: signal.raise_signal(signal.SIGTERM))


@pytest.mark.parametrize(
    ("environment", "key"),
    [
        ({}, ""),
        ({"SLURM_ARRAY_TASK_ID": "3"}, ""),
        (
            {"SLURM_ARRAY_JOB_ID": "417", "SLURM_ARRAY_TASK_ID": "3", "SLURM_JOB_ID": "420", "SLURM_PROCID": "0"},
            "417 3",
        ),
        ({"SLURM_JOB_ID": "420", "SLURM_PROCID": "1"}, "420 1"),
        ({"HOSTNAME": "study-5", "JOB_COMPLETION_INDEX": "5"}, "study-5 5"),
        ({"SKYPILOT_TASK_ID": "sky-2026", "SKYPILOT_NODE_RANK": "0"}, "sky-2026 0"),
    ],
)
def test_the_key_is_what_stays_the_same_when_a_scheduler_starts_the_task_again(
    environment: dict[str, str], key: str
) -> None:
    assert task_key(environment) == key
