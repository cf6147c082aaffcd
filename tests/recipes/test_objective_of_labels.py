"""Which objective goes with labels that tell when, and with labels that tell only whether."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from simulated import study

from ehrtrack.config import RunConfig, load_config, override, to_toml
from ehrtrack.errors import ConfigError
from ehrtrack.pipeline.prepare import settle

LABELS = pl.DataFrame({"subject_id": [1], "prediction_time": [datetime(2020, 1, 1)], "boolean_value": [True]})


def config_of(folder: Path, labels: pl.DataFrame = LABELS, **sections: Any) -> RunConfig:
    labels.write_parquet(folder / "labels.parquet")
    return study(folder / "no data", folder / "cache", cohort={"labels": str(folder / "labels.parquet")}, **sections)


def test_classes_settle_for_classification_where_no_objective_was_asked_for(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    assert config.objective.name == "survival"
    assert settle(config).objective.name == "classification"
    assert settle(settle(config)) == settle(config)


def test_that_none_was_asked_for_outlives_overrides_and_files(tmp_path: Path) -> None:
    config = override(config_of(tmp_path), {"train.lr": 0.01})
    assert settle(config).objective.name == "classification"
    (tmp_path / "written.toml").write_text(to_toml(config))
    assert settle(load_config(tmp_path / "written.toml")).objective.name == "classification"


@pytest.mark.parametrize(
    "objective",
    [{"name": "survival"}, {"lambda_rank": 0.1}, {"name": "competing-risks"}, {"name": "survival", "lasso": 0.1}],
)
def test_an_objective_that_needs_days_is_refused_for_classes(tmp_path: Path, objective: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"tells whether it does and not when: set objective.name=classification"):
        settle(config_of(tmp_path, objective=objective))


@pytest.mark.parametrize("objective", [{"name": "classification", "threshold": 0.2}, {"name": "mlm"}])
def test_an_objective_that_needs_none_is_kept(tmp_path: Path, objective: dict[str, Any]) -> None:
    config = config_of(tmp_path, objective=objective)
    assert settle(config).objective == config.objective


@pytest.mark.parametrize("columns", [{"follow_up_days": [1.0]}, {"censor_time": [datetime(2020, 2, 1)]}])
def test_labels_with_a_follow_up_keep_the_survival_objective(tmp_path: Path, columns: dict[str, Any]) -> None:
    config = config_of(tmp_path, LABELS.with_columns(**{name: pl.Series(values) for name, values in columns.items()}))
    assert settle(config).objective == config.objective


def test_a_cohort_by_rules_keeps_the_survival_objective(tmp_path: Path) -> None:
    config = study(tmp_path / "no data", tmp_path / "cache")
    assert settle(config).objective == config.objective
