"""Numbers that no run could be made of: refused before anything is opened, with the setting's name."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from ehrtrack import plugins
from ehrtrack.config import load_config, parse_config, to_toml
from ehrtrack.errors import ConfigError

CONFIG = 'study = "s"\n[data]\npath = "data"\n'


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "c.toml").write_text(CONFIG)
    return tmp_path / "c.toml"


WHOLE = ("runtime.seed", "runtime.threads", "runtime.workers", "data.max_tokens", "strategy.alpha", "train.epochs")


@pytest.mark.parametrize("value", ["inf", "-inf", "nan", "1e300"])
@pytest.mark.parametrize(
    "path",
    [
        "train.lr",
        "train.weight_decay",
        "objective.lambda_rank",
        "objective.sigma",
        "objective.lasso",
        "runtime.snapshot_minutes",
        "cohort.landmark_days",
        *WHOLE,
    ],
)
def test_a_number_that_no_run_could_use_is_refused_by_its_name(file: Path, path: str, value: str) -> None:
    with pytest.raises(ConfigError, match=f"config key '{path}' is "):
        load_config(file, [("strategy.name", "lora"), (path, value)])


@pytest.mark.parametrize("path", WHOLE)
def test_a_whole_number_that_32_bits_do_not_hold_is_refused_by_its_name(file: Path, path: str) -> None:
    with pytest.raises(ConfigError, match=f"config key '{path}' is 9223372036854775808"):
        load_config(file, [("strategy.name", "lora"), (path, str(2**63))])


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("model.readout_days", "[1.0, inf]"),
        ("model.readout_days", "[1e-300]"),
        ("runtime.seed", "-1"),
        ("runtime.seed", str(2**40)),
        ("runtime.seed", "9" * 5000),
        ("runtime.seed", f"0x{'f' * 5000}"),
        ("runtime.threads", "1000000"),
        ("train.lr", "1e39"),
        ("train.clip_norm", "nan"),
        ("train.clip_norm", "-inf"),
        ("train.clip_norm", "0"),
        ("search.parameters", '{"train.lr" = {low = 0.1, high = 1e300}}'),
        ("sensitivity.values", "[0.0, 1e300]"),
        ("baseline.seed", "-1"),
    ],
)
def test_other_values_that_are_refused(file: Path, path: str, value: str) -> None:
    with pytest.raises(ConfigError, match=f"config key '{path}"):
        load_config(file, [(path, value)])


@pytest.mark.parametrize("baseline", plugins.names("baselines"))
def test_a_baseline_refuses_settings_that_none_of_its_fits_could_have(file: Path, baseline: str) -> None:
    fields = plugins.settings("baselines", baseline).model_fields
    tuples = [
        name for name in fields if isinstance(fields[name].default, tuple) and name not in ("trains_embeddings", "sex")
    ]
    for name in tuples:
        for value in ("[-1]", "[1e300]"):
            with pytest.raises(ConfigError, match=f"baseline.{name}"):
                load_config(file, [("baseline.name", baseline), (f"baseline.{name}", value)])


def test_no_limit_of_the_gradient_is_a_limit_of_inf_and_comes_back_from_json_and_toml(file: Path) -> None:
    config = load_config(file, [("train.clip_norm", "inf")])
    assert config.train.clip_norm == math.inf
    assert parse_config(json.loads(json.dumps(config.to_json()))) == config
    (file.parent / "again.toml").write_text(to_toml(config))
    assert load_config(file.parent / "again.toml") == config


def test_usual_numbers_are_left_alone(file: Path) -> None:
    config = load_config(file, [("study", str(10**15)), ("runtime.seed", str(2**31 - 1))])
    assert (config.study, config.runtime.seed) == (str(10**15), 2**31 - 1)
