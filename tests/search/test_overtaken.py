"""A worker that is taken for dead and lives on: wherever it slept, each trial counts once, and it goes on in peace."""

from __future__ import annotations

import multiprocessing
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import psutil
import pytest
from optuna.storages import RDBStorage

from ehrtrack.errors import TrackingError, TrainingError
from ehrtrack.search.drawing import suggest
from ehrtrack.search.outcome import ENDED, SLOT
from ehrtrack.search.storage import study_storage
from ehrtrack.search.worker import Worker, report
from ehrtrack.search_space import SearchConfig

N_TRIALS = 2
SECONDS = 120
"""After which something that should happen is not waited for any more."""
Ends = Callable[[optuna.Trial], float]


@pytest.fixture(autouse=True)
def quiet_optuna() -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)


def worker_of(path: Path) -> Worker:
    return Worker(SearchConfig(n_trials=N_TRIALS, pruner="none"), name="s", storage=study_storage(path), seed=1)


def let_die(path: Path) -> None:
    """Have all leases lapse, as if their workers' machines were no more; the clock is moved, not waited for."""
    with study_storage(path).engine.begin() as connection:
        connection.exec_driver_sql("update ehrtrack_claims set beat = datetime(beat, '-1 hour')")


def scored(worker: Worker, value: float) -> Ends:
    """A trial that draws its settings and has this score."""
    return lambda trial: value + 0 * len(suggest(trial, worker.config.parameters))


def is_done_once(path: Path) -> bool:
    """Whether each slot has one trial that counts, and no other is left open."""
    worker = worker_of(path)
    ended = [trial for trial in worker.trials() if trial.state in ENDED]
    unended = [trial for trial in worker.study.trials if not trial.state.is_finished()]
    slots = sorted(trial.user_attrs[SLOT] for trial in ended)
    return (slots, worker.n_done, unended) == (list(range(N_TRIALS)), N_TRIALS, [])


def before_a_call(owner: Any, name: str, number: int, happens: Callable[[], object], patch: pytest.MonkeyPatch) -> None:
    """Have something happen right before the n-th call of a method."""
    method, n_calls = getattr(owner, name), 0

    def called(*arguments: Any, **named: Any) -> Any:
        nonlocal n_calls
        n_calls += 1
        if n_calls == number:
            happens()
        return method(*arguments, **named)

    patch.setattr(owner, name, called)


def fails(trial: optuna.Trial) -> float:
    raise TrainingError("the loss is not finite at step 3")


def breaks(trial: optuna.Trial) -> float:
    raise TrackingError("run 1 was claimed by another process")


def reports(trial: optuna.Trial) -> float:
    report(trial, 0.4, 3)
    return 0.9


def is_pruned(trial: optuna.Trial) -> float:
    raise optuna.TrialPruned


def is_interrupted(trial: optuna.Trial) -> float:
    raise KeyboardInterrupt


def overtaken(sleeper: Worker, other: Worker, path: Path, how: Ends) -> Ends:
    """A trial that another worker takes over, with all that is left, while its own sleeps, before it ends."""

    def sleeps(trial: optuna.Trial) -> float:
        suggest(trial, sleeper.config.parameters)
        let_die(path)
        other.run(scored(other, 0.7))
        return how(trial)

    return sleeps


@pytest.mark.parametrize("how", [fails, breaks, reports, is_pruned])
def test_whatever_a_trial_comes_to_that_was_taken_over_while_it_ran_does_not_count(
    how: Ends, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "trials.db"
    sleeper, other = worker_of(path), worker_of(path)

    sleeper.run(overtaken(sleeper, other, path, how))
    assert "trial 0 of s was taken over by another worker; what came out here does not count" in capsys.readouterr().out
    assert is_done_once(path)
    assert [trial.value for trial in other.trials() if trial.state in ENDED] == [0.7, 0.7]


def test_a_trial_that_was_taken_over_and_is_interrupted_then_is_not_queued_a_second_time(tmp_path: Path) -> None:
    path = tmp_path / "trials.db"
    sleeper, other = worker_of(path), worker_of(path)

    with pytest.raises(KeyboardInterrupt):
        sleeper.run(overtaken(sleeper, other, path, is_interrupted))
    assert is_done_once(path)


WINDOWS = {
    "before it begins the trial": (Worker, "_begin"),
    "before it tells the score": (optuna.Study, "tell"),
    "before the score is written": (RDBStorage, "_set_trial_value_without_commit"),
}


@pytest.mark.parametrize("window", WINDOWS)
def test_a_worker_that_sleeps_where_it_has_just_seen_that_it_holds_its_trial_spoils_nothing(
    window: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "trials.db"
    sleeper, other = worker_of(path), worker_of(path)

    def sleep() -> None:
        let_die(path)
        other.run(scored(other, 0.7))

    before_a_call(*WINDOWS[window], 1, sleep, monkeypatch)
    sleeper.run(scored(sleeper, 0.9))
    assert "; what came out here does not count" in capsys.readouterr().out
    assert is_done_once(path)


def test_a_trial_that_its_worker_tells_right_before_another_would_end_it_is_not_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "trials.db"
    sleeper, other = worker_of(path), worker_of(path)
    assert sleeper.claims.take("trial 0")
    trial = sleeper._begin(0)
    assert trial is not None
    let_die(path)
    before_a_call(other, "_queue_again", 1, lambda: sleeper.study.tell(trial, 0.9), monkeypatch)
    other.run(scored(other, 0.7))
    assert is_done_once(path)
    assert [trial.value for trial in other.study.trials] == [0.9, 0.7]


def test_a_trial_of_a_slot_that_was_lost_before_it_began_is_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "trials.db"
    sleeper, other = worker_of(path), worker_of(path)
    ran = []

    def takes_over() -> None:
        let_die(path)
        assert other.claims.take("trial 0")

    def objective(trial: optuna.Trial) -> float:
        ran.append(trial.user_attrs[SLOT])
        return scored(sleeper, 0.9)(trial)

    before_a_call(sleeper, "_begin", 1, takes_over, monkeypatch)
    sleeper.run(objective)
    assert ran == [1]
    other.claims.release("trial 0")
    other.run(scored(other, 0.7))
    assert is_done_once(path)


def sleeps_before(path: Path, owner: type, name: str) -> None:
    """A worker that stops itself before its first call of a method."""
    with pytest.MonkeyPatch.context() as patch:
        before_a_call(owner, name, 1, lambda: signal.raise_signal(signal.SIGSTOP), patch)
        worker = worker_of(path)
        with worker.claims.renewed():
            worker.run(scored(worker, 0.9), waits=True)


@pytest.mark.parametrize("window", WINDOWS)
def test_a_process_that_was_stopped_and_goes_on_while_another_runs_its_trial_ends_well(
    window: str, tmp_path: Path
) -> None:
    path = tmp_path / "trials.db"
    process = multiprocessing.get_context("spawn").Process(target=sleeps_before, args=(path, *WINDOWS[window]))
    process.start()
    try:
        sleeper = psutil.Process(process.pid)
        wait_until(lambda: sleeper.status() == psutil.STATUS_STOPPED)
        let_die(path)
        other = worker_of(path)
        has_met: list[bool] = []

        def meets(trial: optuna.Trial) -> float:
            if not has_met:
                sleeper.resume()
                wait_until(lambda: other.claims.look("trial 1").is_done or not process.is_alive())
                has_met.append(True)
            return scored(other, 0.7)(trial)

        other.run(meets)
        process.join(SECONDS)
        assert process.exitcode == 0
    finally:
        process.kill()
    assert is_done_once(path)
    assert {trial.user_attrs[SLOT]: trial.value for trial in other.trials() if trial.state in ENDED} == {0: 0.7, 1: 0.9}


def wait_until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.05)
