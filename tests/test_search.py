"""The search space, the study's database, and the TOML of the best trial."""

from __future__ import annotations

import doctest
import math
import multiprocessing
import os
import signal
import tomllib
from pathlib import Path
from typing import Any

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from ehrtrack import study_file
from ehrtrack.errors import ConfigError, TrackingError, TrainingError
from ehrtrack.search.drawing import open_study, suggest
from ehrtrack.search.outcome import SLOT, Best, best_of, trials_of, trials_table
from ehrtrack.search.storage import study_storage
from ehrtrack.search.worker import Worker
from ehrtrack.search_space import Choices, Range, SearchConfig
from ehrtrack.signals import TerminatedBySignal
from ehrtrack.study_file import to_toml


@pytest.fixture(autouse=True)
def quiet_optuna() -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)


def worker_of(path: Path, *, n_trials: int = 4, seed: int = 1, heartbeat_seconds: int = 30, **settings: Any) -> Worker:
    """A worker of the study in this file."""
    config = SearchConfig(n_trials=n_trials, heartbeat_seconds=heartbeat_seconds, **settings)
    return Worker(config, name="s", storage=study_storage(path), seed=seed)


def run_one_trial(path: Path) -> dict[str, object]:
    """What a new worker of the study in this file draws for its first trial."""
    worker = worker_of(path)
    drawn: dict[str, object] = {}

    def objective(trial: optuna.Trial) -> float:
        drawn.update(suggest(trial, worker.config.parameters))
        return 0.5

    worker.config = worker.config.model_copy(update={"n_trials": worker.n_done + 1})
    worker.run(objective)
    return drawn


def states(worker: Worker) -> list[str]:
    return [trial.state.name for trial in worker.study.trials]


def let_die(worker: Worker) -> None:
    """Have the leases of a worker lapse, as if its machine was no more; the clock is moved, not waited for."""
    with worker.claims._engine.begin() as connection:
        connection.exec_driver_sql(
            "update ehrtrack_claims set beat = datetime(beat, '-1 hour') where holder = ?", (worker.claims.worker,)
        )


def test_the_defaults_vary_rank_dropout_and_ranking_weight() -> None:
    trial = optuna.trial.FixedTrial({"strategy.rank": 16, "strategy.dropout": 0.3, "objective.lambda_rank": 0.01})
    assert suggest(trial, SearchConfig().parameters) == {
        "strategy.rank": 16,
        "strategy.dropout": 0.3,
        "objective.lambda_rank": 0.01,
    }
    assert SearchConfig().parameters["strategy.rank"] == Choices(choices=(2, 4, 8, 16, 32))


def test_parameters_from_toml_keep_their_types() -> None:
    config = SearchConfig.model_validate(
        tomllib.loads("""
        n_trials = 3
        [parameters."train.epochs"]
        low = 1
        high = 3
        [parameters."train.lr"]
        low = 1e-4
        high = 1e-2
        log = true
        [parameters."strategy.embeddings"]
        choices = [true, false]
        """)
    )
    assert set(config.parameters) == {"train.epochs", "train.lr", "strategy.embeddings"}
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    drawn = [suggest(study.ask(), config.parameters) for _ in range(30)]
    assert {values["train.epochs"] for values in drawn} == {1, 2, 3}
    assert {type(values["train.epochs"]) for values in drawn} == {int}
    assert {values["strategy.embeddings"] for values in drawn} == {True, False}
    assert all(1e-4 <= float(values["train.lr"]) <= 1e-2 for values in drawn)
    # Evenly over orders of magnitude: about half below the geometric middle of 1e-3, not a tenth.
    assert 8 <= sum(float(values["train.lr"]) < 1e-3 for values in drawn) <= 22


def test_whole_bounds_draw_whole_numbers_and_a_step_is_kept() -> None:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    space = {
        "a": Range(low=0, high=10, step=5),
        "b": Range(low=0, high=1.0, step=0.5),
        "c": Range(low=0.0, high=1),
    }
    drawn = [suggest(study.ask(), space) for _ in range(30)]
    assert {values["a"] for values in drawn} == {0, 5, 10}
    assert {values["b"] for values in drawn} == {0.0, 0.5, 1.0}
    assert all(isinstance(values["c"], float) for values in drawn)


@pytest.mark.parametrize(
    ("parameter", "message"),
    [
        ({"low": 2, "high": 1}, "low must be below high"),
        ({"low": 0.0, "high": 1.0, "log": True}, "must be above 0"),
        ({"low": 1, "high": 9, "log": True, "step": 2}, "exclude each other"),
        ({"low": 1, "high": 9, "step": 0}, "step is 0"),
        ({"choices": []}, "at least 1 item"),
        ({"low": 1}, "high"),
        ({"low": 1, "high": 2, "lgo": True}, "Extra inputs"),
    ],
)
def test_a_space_that_cannot_be_drawn_from_is_refused(parameter: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        SearchConfig.model_validate({"parameters": {"x": parameter}})


def test_a_second_worker_joins_the_same_study_and_draws_otherwise(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "trials.db"
    one = run_one_trial(path)
    two = run_one_trial(path)
    assert [trial.number for trial in worker_of(path).study.trials] == [0, 1]
    assert one["strategy.dropout"] != two["strategy.dropout"]


def test_the_same_seed_draws_the_same_trials(tmp_path: Path) -> None:
    assert run_one_trial(tmp_path / "a.db") == run_one_trial(tmp_path / "b.db")


def test_two_workers_that_begin_at_the_same_moment_draw_different_first_trials(tmp_path: Path) -> None:
    one, two = worker_of(tmp_path / "trials.db", n_trials=2), worker_of(tmp_path / "trials.db", n_trials=2)
    drawn = []

    def second(trial: optuna.Trial) -> float:
        drawn.append(suggest(trial, two.config.parameters))
        return 0.5

    def first(trial: optuna.Trial) -> float:
        drawn.append(suggest(trial, one.config.parameters))
        two.run(second)  # before the first trial has ended
        return 0.5

    one.run(first)
    assert len(drawn) == 2
    assert drawn[0] != drawn[1]


def test_what_is_drawn_does_not_depend_on_who_runs_which_trial(tmp_path: Path) -> None:
    def values(path: Path, n_workers: int) -> list[dict[str, object]]:
        workers = [worker_of(path, n_trials=6, n_startup_trials=2) for _ in range(n_workers)]
        for number in range(6):
            worker = workers[number % n_workers]
            worker.config = worker.config.model_copy(update={"n_trials": number + 1})
            worker.run(lambda trial, of=worker: float(suggest(trial, of.config.parameters)["strategy.dropout"]))
        return [trial.params for trial in workers[0].study.trials]

    assert values(tmp_path / "alone.db", 1) == values(tmp_path / "three.db", 3)


def test_of_many_workers_at_once_no_budget_is_exceeded_and_no_trial_is_run_twice(tmp_path: Path) -> None:
    """Each is a process, and all begin at the same moment with a database that is not there yet."""
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(4)
    workers = [context.Process(target=work, args=(tmp_path, barrier, number)) for number in range(4)]
    for process in workers:
        process.start()
    for process in workers:
        process.join(120)
    assert [process.exitcode for process in workers] == [0] * 4
    study = worker_of(tmp_path / "trials.db", n_trials=6).study
    assert [trial.state.name for trial in study.trials] == ["COMPLETE"] * 6
    assert sorted(trial.user_attrs[SLOT] for trial in study.trials) == list(range(6))
    ran = [file.read_text().split() for file in tmp_path.glob("worker-*")]
    assert sorted(slot for slots in ran for slot in slots) == [str(slot) for slot in range(6)]
    assert len({trial.params["strategy.dropout"] for trial in study.trials}) == 6


def work(folder: Path, barrier: Any, number: int) -> None:
    """A worker of six trials, that notes which it ran."""
    barrier.wait()
    worker = worker_of(folder / "trials.db", n_trials=6)

    def objective(trial: optuna.Trial) -> float:
        with (folder / f"worker-{number}").open("a") as file:
            file.write(f"{trial.user_attrs[SLOT]} ")
        return float(suggest(trial, worker.config.parameters)["strategy.dropout"])

    with worker.claims.renewed():
        worker.run(objective, waits=True)


def test_trials_go_on_until_the_study_has_enough(tmp_path: Path) -> None:
    worker = worker_of(tmp_path / "trials.db")

    def objective(trial: optuna.Trial) -> float:
        if trial.number == 1:
            raise TrainingError("the loss is not finite at step 3")
        if trial.number == 2:
            raise optuna.TrialPruned
        return 0.5

    worker.run(objective)
    assert states(worker) == ["COMPLETE", "FAIL", "PRUNED", "COMPLETE"]
    worker.run(objective)
    assert worker.n_done == 4
    worker.run(objective)
    assert len(worker.study.trials) == 5


def test_an_error_that_is_not_a_trial_s_own_stops_the_search(tmp_path: Path) -> None:
    worker = worker_of(tmp_path / "trials.db")

    def objective(trial: optuna.Trial) -> float:
        raise TrackingError("the server is gone")

    with pytest.raises(TrackingError, match="the server is gone"):
        worker.run(objective)
    assert len(worker.study.trials) == 1


def test_a_trial_of_a_dead_worker_is_queued_again_with_its_values(tmp_path: Path) -> None:
    dead = worker_of(tmp_path / "trials.db", n_trials=1)
    assert dead.claims.take("trial 0")
    values = suggest(dead._begin(0), dead.config.parameters)
    worker = worker_of(tmp_path / "trials.db", n_trials=1)
    retried = {}

    def objective(trial: optuna.Trial) -> float:
        retried.update(suggest(trial, worker.config.parameters))
        return 0.5

    worker.run(objective)
    assert states(worker) == ["RUNNING"]  # as far as anybody knows, the other one lives
    let_die(dead)
    worker.run(objective)
    assert states(worker) == ["FAIL", "COMPLETE"]
    assert retried == values


def test_a_trial_of_a_process_of_this_machine_that_was_killed_is_taken_at_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=die_in_a_trial, args=(tmp_path / "trials.db",))
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL
    worker = worker_of(tmp_path / "trials.db", n_trials=1)
    worker.run(lambda trial: float(suggest(trial, worker.config.parameters)["strategy.dropout"]))
    first, second = worker.study.trials
    assert (first.state.name, second.state.name) == ("FAIL", "COMPLETE")
    assert first.params == second.params


def die_in_a_trial(path: Path) -> None:
    worker = worker_of(path, n_trials=1)

    def objective(trial: optuna.Trial) -> float:
        suggest(trial, worker.config.parameters)
        os.kill(os.getpid(), signal.SIGKILL)
        return 0.0

    worker.run(objective)


def test_settings_that_kill_their_workers_are_given_up_and_others_are_drawn(tmp_path: Path) -> None:
    seen = []
    for _ in range(3):
        dead = worker_of(tmp_path / "trials.db", n_trials=1, max_retries=1)
        assert dead.claims.take("trial 0")
        seen.append(suggest(dead._begin(0), dead.config.parameters))
        let_die(dead)
    assert seen[0] == seen[1] != seen[2]


@pytest.mark.parametrize("interruption", [KeyboardInterrupt(), TerminatedBySignal()])
def test_a_trial_that_is_interrupted_is_queued_again_with_its_values(
    tmp_path: Path, interruption: BaseException
) -> None:
    worker = worker_of(tmp_path / "trials.db", n_trials=2)
    values = []

    def interrupted(trial: optuna.Trial) -> float:
        values.append(suggest(trial, worker.config.parameters))
        raise interruption

    with pytest.raises(type(interruption)):
        worker.run(interrupted)
    assert states(worker) == ["FAIL", "WAITING"]

    def objective(trial: optuna.Trial) -> float:
        values.append(suggest(trial, worker.config.parameters))
        return 0.5

    worker.run(objective)
    assert states(worker) == ["FAIL", "COMPLETE", "COMPLETE"]
    assert values[0] == values[1]


def test_a_worker_that_slept_through_its_lease_spoils_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sleeper, other = worker_of(tmp_path / "trials.db", n_trials=1), worker_of(tmp_path / "trials.db", n_trials=1)

    def sleeps(trial: optuna.Trial) -> float:
        suggest(trial, sleeper.config.parameters)
        let_die(sleeper)
        other.run(lambda trial: 0.7)
        return 0.9

    sleeper.run(sleeps)
    assert "was taken over by another worker" in capsys.readouterr().out
    assert [trial.value for trial in other.study.trials] == [None, 0.7]
    assert best_of(other.study.trials).value == 0.7


def test_the_median_pruner_stops_a_trial_that_lags() -> None:
    config = SearchConfig(n_startup_trials=2, n_warmup_epochs=1)
    study = open_study(config, name="s", storage=optuna.storages.InMemoryStorage(), seed=0)
    for value in (0.7, 0.8):
        trial = study.ask()
        for epoch in range(3):
            trial.report(value, epoch)
        study.tell(trial, value)
    lagging = study.ask()
    stops = []
    for epoch in range(3):
        lagging.report(0.5, epoch)
        stops.append(lagging.should_prune())
    assert stops == [False, True, True]


def test_the_table_has_every_trial_and_the_best_is_the_highest() -> None:
    study = open_study(SearchConfig(), name="s", storage=optuna.storages.InMemoryStorage(), seed=0)
    space = {"strategy.rank": Choices(choices=(2, 4)), "strategy.dropout": Range(low=0.0, high=0.3)}
    with pytest.raises(ConfigError, match="none of the 0 trials"):
        best_of(study.trials)
    best = {}
    for value, state in ((0.6, None), (0.7, None), (None, optuna.trial.TrialState.PRUNED)):
        trial = study.ask()
        values = suggest(trial, space)
        trial.report(0.65, 4)
        study.tell(trial, value, state=state)
        if value == 0.7:
            best = values
    study.ask()
    table = trials_table(study.trials)
    assert table["state"].to_list() == ["complete", "complete", "pruned", "running"]
    assert table["value"].to_list() == [0.6, 0.7, None, None]
    assert table["last_epoch"].to_list() == [4, 4, 4, None]
    assert table.columns == [
        "number",
        "trial",
        "state",
        "value",
        "last_epoch",
        "seconds",
        "is_default",
        "runs",
        "strategy.dropout",
        "strategy.rank",
    ]
    assert best_of(study.trials) == Best(0.7, best, (0.7,), slot=1)


def test_an_empty_study_has_an_empty_table() -> None:
    study = open_study(SearchConfig(), name="s", storage=optuna.storages.InMemoryStorage(), seed=0)
    assert trials_table(study.trials).height == 0


def test_the_best_and_the_table_are_those_of_the_budget(tmp_path: Path) -> None:
    worker = worker_of(tmp_path / "trials.db", n_trials=3)
    worker.run(lambda trial: 0.1 * trial.number + 0 * len(suggest(trial, worker.config.parameters)))
    assert best_of(trials_of(worker.study, n_trials=2)).value == pytest.approx(0.1)
    assert trials_of(worker.study, n_trials=2) == worker.study.trials[:2]


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "trials.db").write_text("not a database, " * 100)
    with pytest.raises(ConfigError, match=r"trials\.db is no database of trials"):
        study_storage(tmp_path / "trials.db")


def test_toml_doctest() -> None:
    assert doctest.testmod(study_file).failed == 0


def test_toml_is_read_back_with_the_same_types() -> None:
    overrides = {
        "study": 'a "quoted"\\\nname\x01',
        "strategy.rank": 8,
        "strategy.dropout": 1e-05,
        "train.lr": 3.0,
        "cohort.outcome.codes": ["ICD10//K92", "a"],
        "cohort.outcome.death": False,
        "odd.key with space": 1,
    }
    assert tomllib.loads(to_toml(overrides)) == {
        "study": 'a "quoted"\\\nname\x01',
        "strategy": {"rank": 8, "dropout": 1e-05},
        "train": {"lr": 3.0},
        "cohort": {"outcome": {"codes": ["ICD10//K92", "a"], "death": False}},
        "odd": {"key with space": 1},
    }
    assert type(tomllib.loads(to_toml({"train.lr": 3.0}))["train"]["lr"]) is float


@given(st.text() | st.floats() | st.integers(-(2**60), 2**60) | st.booleans())
def test_any_value_survives_toml(value: str | float | int | bool) -> None:
    back = tomllib.loads(to_toml({"a.b": value}))["a"]["b"]
    assert type(back) is type(value)
    assert back == value or (isinstance(value, float) and math.isnan(value) and math.isnan(back))


@pytest.mark.parametrize("overrides", [{"a": 1, "a.b": 2}, {"a.b": 2, "a": 1}])
def test_a_path_that_is_both_value_and_table_is_refused(overrides: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=r"a value of its own|given twice"):
        to_toml(overrides)


def test_a_value_without_a_toml_form_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"NoneType.* has no form in TOML"):
        to_toml({"a": None})
