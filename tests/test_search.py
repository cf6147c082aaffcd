"""The search space, the study's database, and the TOML of the best trial."""

from __future__ import annotations

import doctest
import math
import tomllib
from pathlib import Path

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from ehrtrack import search, study_file
from ehrtrack.errors import ConfigError, TrackingError, TrainingError
from ehrtrack.search import best_overrides, open_study, suggest
from ehrtrack.search_space import Choices, Range, SearchConfig
from ehrtrack.study_file import to_toml


@pytest.fixture(autouse=True)
def quiet_optuna() -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)


def run_one_trial(path: Path) -> dict[str, object]:
    """What a new worker of the study in this file draws for its first trial."""
    config = SearchConfig()
    study = open_study(config, name="s", storage=search.study_storage(path), seed=1)
    drawn: dict[str, object] = {}

    def objective(trial: optuna.Trial) -> float:
        drawn.update(suggest(trial, config.parameters))
        return 0.5

    search.run_trials(study, objective, n_trials=search.n_done(study) + 1)
    return drawn


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
    study = open_study(SearchConfig(), name="s", storage=search.study_storage(path), seed=1)
    assert [trial.number for trial in study.trials] == [0, 1]
    assert one["strategy.dropout"] != two["strategy.dropout"]


def test_the_same_seed_draws_the_same_trials(tmp_path: Path) -> None:
    assert run_one_trial(tmp_path / "a.db") == run_one_trial(tmp_path / "b.db")


def test_trials_go_on_until_the_study_has_enough(tmp_path: Path) -> None:
    study = open_study(SearchConfig(), name="s", storage=search.study_storage(tmp_path / "trials.db"), seed=1)

    def objective(trial: optuna.Trial) -> float:
        if trial.number == 1:
            raise TrainingError("the loss is not finite at step 3")
        if trial.number == 2:
            raise optuna.TrialPruned
        return 0.5

    search.run_trials(study, objective, n_trials=4)
    assert [trial.state.name for trial in study.trials] == ["COMPLETE", "FAIL", "PRUNED", "COMPLETE"]
    search.run_trials(study, objective, n_trials=4)
    assert search.n_done(study) == 4
    search.run_trials(study, objective, n_trials=4)
    assert len(study.trials) == 5


def test_an_error_that_is_not_a_trial_s_own_stops_the_search(tmp_path: Path) -> None:
    study = open_study(SearchConfig(), name="s", storage=search.study_storage(tmp_path / "trials.db"), seed=1)

    def objective(trial: optuna.Trial) -> float:
        raise TrackingError("the server is gone")

    with pytest.raises(TrackingError, match="the server is gone"):
        search.run_trials(study, objective, n_trials=4)
    assert len(study.trials) == 1


def test_a_trial_of_a_dead_worker_is_queued_again_with_its_values(tmp_path: Path) -> None:
    config = SearchConfig()
    storage = search.study_storage(tmp_path / "trials.db", heartbeat_seconds=1, max_retries=1)
    study = open_study(config, name="s", storage=storage, seed=0)
    with pytest.warns(UserWarning, match="Heartbeat of storage"):
        dead = study.ask()  # as if inside a worker that is then killed
    values = suggest(dead, config.parameters)
    storage.record_heartbeat(dead._trial_id)
    with storage.engine.begin() as connection:  # the clock is moved, not waited for
        connection.exec_driver_sql("update trial_heartbeats set heartbeat = datetime(heartbeat, '-1 hour')")
    retried = {}

    def objective(trial: optuna.Trial) -> float:
        retried.update(suggest(trial, config.parameters))
        return 0.5

    search.run_trials(study, objective, n_trials=1)
    assert [trial.state.name for trial in study.trials] == ["FAIL", "COMPLETE"]
    assert retried == values


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
        best_overrides(study)
    best = {}
    for value, state in ((0.6, None), (0.7, None), (None, optuna.trial.TrialState.PRUNED)):
        trial = study.ask()
        values = suggest(trial, space)
        trial.report(0.65, 4)
        study.tell(trial, value, state=state)
        if value == 0.7:
            best = values
    study.ask()
    table = search.trials_table(study)
    assert table["state"].to_list() == ["complete", "complete", "pruned", "running"]
    assert table["value"].to_list() == [0.6, 0.7, None, None]
    assert table["last_epoch"].to_list() == [4, 4, 4, None]
    assert table.columns == [
        "number",
        "state",
        "value",
        "last_epoch",
        "seconds",
        "strategy.dropout",
        "strategy.rank",
    ]
    assert best_overrides(study) == best
    assert search.n_done(study) == 3


def test_an_empty_study_has_an_empty_table() -> None:
    study = open_study(SearchConfig(), name="s", storage=optuna.storages.InMemoryStorage(), seed=0)
    assert search.trials_table(study).height == 0


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "trials.db").write_text("not a database, " * 100)
    with pytest.raises(ConfigError, match=r"trials\.db is no database of trials"):
        search.study_storage(tmp_path / "trials.db")


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
    with pytest.raises(ConfigError, match="NoneType has no form in TOML"):
        to_toml({"a": None})
