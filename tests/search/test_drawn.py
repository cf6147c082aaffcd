"""What a trial draws: the configuration's own settings first, conditions, and budgets that end a search early."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import optuna
import pytest

from ehrtrack.config import parse_config
from ehrtrack.errors import ConfigError
from ehrtrack.search.drawing import suggest
from ehrtrack.search.outcome import trials_table
from ehrtrack.search.storage import study_storage
from ehrtrack.search.worker import Worker, report
from ehrtrack.search_space import Choices, Range, SearchConfig
from ehrtrack.study.search import check_space, own_values
from ehrtrack.study.values import applies

CONFIG = {
    "study": "icu",
    "data": {"path": "meds"},
    "strategy": {"name": "lora", "rank": 8},
    "train": {"lr": 1e-3, "epochs": 4},
}


@pytest.fixture(autouse=True)
def quiet_optuna() -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)


def worker_of(path: Path, **settings: Any) -> Worker:
    """A worker that begins with rank 8, dropout .05 and a ranking weight that is not searched."""
    config = SearchConfig(n_startup_trials=2, **settings)
    defaults = {"strategy.rank": 8, "strategy.dropout": 0.05, "objective.lambda_rank": 0.0}
    return Worker(config, name="s", storage=study_storage(path), seed=1, defaults=defaults)


def test_a_search_of_before_keeps_its_fingerprint() -> None:
    search = SearchConfig(parameters={"train.lr": {"low": 1e-4, "high": 1e-2}})
    assert search.identity() == {
        "n_trials": 20,
        "parameters": {"train.lr": {"low": 1e-4, "high": 1e-2, "log": False, "step": None}},
        "pruner": "median",
        "n_startup_trials": 5,
        "n_warmup_epochs": 1,
        "heartbeat_seconds": 30,
        "max_retries": 2,
    }
    assert "fold" not in parse_config(CONFIG).to_json()["data"]


def test_the_first_trial_has_the_configuration_s_own_settings_also_where_they_are_not_among_the_searched(
    tmp_path: Path,
) -> None:
    worker = worker_of(tmp_path / "trials.db", n_trials=3)
    drawn = []

    def objective(trial: optuna.Trial) -> float:
        drawn.append(suggest(trial, worker.config.parameters))
        return 0.5

    worker.run(objective)
    assert drawn[0] == {"strategy.rank": 8, "strategy.dropout": 0.05}  # 0 is no ranking weight that could be drawn
    assert set(drawn[1]) == set(drawn[2]) == set(worker.config.parameters)
    table = trials_table(worker.trials())
    assert table["is_default"].to_list() == [True, False, False]
    assert table["objective.lambda_rank"][0] == 0.0


@pytest.mark.parametrize("sampler", ["tpe", "independent", "random"])
def test_a_setting_of_one_choice_is_drawn_where_that_one_is_and_a_condition_is_met(sampler: str) -> None:
    config = parse_config(
        CONFIG
        | {
            "search": {
                "sampler": sampler,
                "parameters": {
                    "strategy.rank": {"choices": [2, 4]},
                    "train.lr": {"low": 1e-4, "high": 1e-2, "when": {"strategy.name": ["full", "scratch"]}},
                    "train.warmup": {"low": 0.0, "high": 0.5, "when": {"train.epochs": 4}},
                    "strategy.name": {"choices": ["lora", "full"]},
                },
            }
        }
    )
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    draw = partial(suggest, space=config.search.parameters, fixed={"train.epochs": 4}, applies=partial(applies, config))
    drawn = [draw(study.ask()) for _ in range(12)]
    assert {frozenset(values) for values in drawn} == {
        frozenset({"strategy.name", "strategy.rank", "train.warmup"}),
        frozenset({"strategy.name", "train.lr", "train.warmup"}),
    }
    assert all(("strategy.rank" in values) == (values["strategy.name"] == "lora") for values in drawn)
    assert own_values(config)["strategy.rank"] == 8


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        (
            {"strategy.head_epochs": {"low": 1, "high": 3}},
            "is a setting of no trial: strategy is lora; search stra",
        ),
        ({"trian.lr": {"low": 0.1, "high": 0.2}}, r"is no setting of a finetune \(did you mean 'train'"),
        ({"baseline.l1_ratio": {"low": 0.1, "high": 0.2}}, "is no setting of a finetune"),
        ({"cohort.horizon_days": {"choices": [30, 90]}}, "of other subjects, labels or seeds"),
        ({"runtime.seed": {"low": 0, "high": 9}}, "of other subjects, labels or seeds"),
        ({"strategy.name": {"choices": ["scratch", "full"]}}, "strategy full continues from pretrained weights"),
        ({"train.lr": {"low": -1.0, "high": 0.1}}, "train.lr"),
        (
            {"strategy.rank": {"choices": [2], "when": {"strategy.name": "full"}}},
            "in no trial it is so; there it is l",
        ),
    ],
)
def test_what_no_trial_could_have_is_refused_before_anything_is_fitted(
    parameters: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        check_space(parse_config(CONFIG | {"search": {"parameters": parameters}}))


def test_a_trial_that_was_cut_off_goes_on_with_what_it_had_reported(tmp_path: Path) -> None:
    worker = worker_of(tmp_path / "trials.db", n_trials=1)

    def interrupted(trial: optuna.Trial) -> float:
        suggest(trial, worker.config.parameters)
        assert report(trial, 0.6, 1)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        worker.run(interrupted)

    def objective(trial: optuna.Trial) -> float:
        assert not report(trial, 0.1, 1)  # what an epoch came to is known
        assert report(trial, 0.7, 2)
        return 0.7

    worker.run(objective)
    first, second = worker.study.trials
    assert (first.intermediate_values, second.intermediate_values) == ({1: 0.6}, {1: 0.6, 2: 0.7})
    assert trials_table(worker.trials())["state"].to_list() == ["cut off", "complete"]


def test_a_search_ends_where_its_hours_are_over_and_trials_that_were_begun_are_ended(tmp_path: Path) -> None:
    worker = worker_of(tmp_path / "trials.db", n_trials=9, max_hours=1e-9)

    def interrupted(trial: optuna.Trial) -> float:
        suggest(trial, worker.config.parameters)
        raise KeyboardInterrupt

    for ended in (1, 1):
        with pytest.raises(KeyboardInterrupt):
            worker.run(interrupted)
        assert len(worker.claims.finished()) == ended - 1
    worker.run(lambda trial: 0.5)
    assert (worker.n_done, worker.why_over()[:18]) == (1, "trials have taken ")


def test_a_search_ends_after_so_many_trials_without_a_gain(tmp_path: Path) -> None:
    worker = worker_of(tmp_path / "trials.db", n_trials=20, patience=3)
    values = iter([0.5, 0.6, 0.55, 0.7, 0.7, 0.6, 0.1, 0.9])

    def objective(trial: optuna.Trial) -> float:
        suggest(trial, worker.config.parameters)
        return next(values)

    worker.run(objective)
    assert [trial.value for trial in worker.trials()] == [0.5, 0.6, 0.55, 0.7, 0.7, 0.6, 0.1]
    assert worker.why_over() == "search.patience = 3 trials in a row were no gain"


def test_a_range_and_choices_say_when_they_hold() -> None:
    assert Range(low=1, high=2, when={"a": 1}).is_met({"a": 1})
    assert not Choices(choices=(1,), when={"a": (2, 3)}).is_met({})
