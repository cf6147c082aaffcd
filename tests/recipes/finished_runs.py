"""Finished runs as recipes log them, without training: what comparisons and promotions are tested on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from mlflow import MlflowClient
from simulated import study

from ehrtrack.config import RunConfig
from ehrtrack.tracking.run import tracked_run

N_SUBJECTS = 120


def config(folder: Path, horizon_days: float = 365, **sections: Any) -> RunConfig:
    cohort = {
        "horizon_days": horizon_days,
        "index": {"rule": "first_code", "codes": ["INDEX$"]},
        "outcome": {"codes": ["OUTCOME$"]},
    }
    return study(folder / "no data are read", folder / "cache", **({"cohort": cohort} | sections))


def predictions(noise: float, n_events: int = 60) -> pl.DataFrame:
    rng = np.random.default_rng(0)
    risk = rng.normal(size=N_SUBJECTS)
    days = rng.exponential(np.exp(-risk))
    return pl.DataFrame(
        {
            "subject_id": [f"{number:032x}" for number in range(N_SUBJECTS)],
            "follow_up_days": days,
            "is_event": np.argsort(np.argsort(days)) < n_events,
            "risk": risk + np.random.default_rng(1).normal(scale=noise, size=N_SUBJECTS),
        }
    )


def made(
    told: RunConfig,
    val_c_index: float,
    *,
    table: pl.DataFrame | None = None,
    validation: pl.DataFrame | None = None,
    files: tuple[str, ...] = ("predictions", "model", "config"),
    key: str = "1111",
    is_judged: bool = True,
    **tags: str,
) -> str:
    """A finished Cox run as `baseline` logs it, with a file for a model; its cohort goes by the horizon."""
    assert told.cohort is not None
    name = told.baseline.name
    with tracked_run(
        experiment="simulated", name=name, kind="baseline", params=told.to_params(("study", "cohort", "baseline"))
    ) as run:
        horizon = f"{told.cohort.horizon_days:g}"
        cohort = {"fingerprint.cohort": f"cohort-{horizon}", "ehrtrack.horizon_days": horizon}
        run.set_tags(cohort | {"ehrtrack.subject_key": key} | tags)
        bounds = {"test/c_index_lower": 0.5, "test/c_index_upper": 0.7} if is_judged else {}
        run.log_metrics({"kept/c_index": val_c_index, "test/c_index": 0.6, "test/ibs": 0.1} | bounds, step=0)
        if "predictions" in files:
            said = predictions(1 - val_c_index) if table is None else table
            run.log_table(said, "predictions/test.parquet")
            run.log_table(said if validation is None else validation, "predictions/validation.parquet")
        if "model" in files:
            run.log_text("{}", "model/baseline.json")
        if "config" in files:
            run.log_json(told.to_json(), "run_config.json")
    return run.server_run_id


def champion_run() -> str | None:
    models = MlflowClient().search_registered_models("name = 'simulated'")
    if not models or "champion" not in models[0].aliases:
        return None
    return str(MlflowClient().get_model_version_by_alias("simulated", "champion").run_id)
