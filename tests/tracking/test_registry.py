"""Models in the registry: found by alias, served without a pickle."""

from __future__ import annotations

import json
import re
import sys
import types
from pathlib import Path

import pandas as pd
import polars as pl
import pytest

from ehrtrack.errors import TrackingError
from ehrtrack.tracking import queries, registry
from ehrtrack.tracking.run import tracked_run

# mlflow 3.17 warns about the type hints of its own classes when its pyfunc module is first imported.
pytestmark = pytest.mark.filterwarnings("ignore:.*[Tt]ype hint:UserWarning")


class CountingPredictor:
    """Risk = events at or before the prediction time / 10, read through the folder it was given."""

    def __init__(self, folder: Path) -> None:
        self.scale = json.loads((folder / "config.json").read_text())["scale"]

    def predict_events(
        self, events: pl.DataFrame, prediction_times: pl.DataFrame, *, tells_causes: bool
    ) -> pl.DataFrame:
        assert events.columns == ["subject_id", "time", "code", "numeric_value"]
        known = prediction_times.join(events, on="subject_id").filter(
            pl.col("time").is_null() | (pl.col("time") <= pl.col("prediction_time"))
        )
        counts = known.group_by("subject_id", "prediction_time").len("n")
        return counts.select(
            "subject_id", "prediction_time", risk=pl.col("n") / self.scale, survival=pl.lit("unused")
        ).sort("subject_id")


@pytest.fixture(params=["local_store", "http_store"])
def store(request: pytest.FixtureRequest) -> object:
    return request.getfixturevalue(request.param)


@pytest.fixture
def model_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "weights"
    folder.mkdir()
    (folder / "config.json").write_text('{"scale": 10}')
    (folder / "weights.safetensors").write_bytes(b"weights")
    return folder


def make_run(folder: Path) -> str:
    with tracked_run(experiment="s", name="x", kind="finetune") as run:
        run.log_folder(folder, "model")
    return run.run_id


def test_a_champion_is_found_again_by_its_alias(store: object, model_folder: Path, tmp_path: Path) -> None:
    name = f"gi {type(store).__name__}"
    first, second = make_run(model_folder), make_run(model_folder)
    one = registry.log_and_register_model(first, model_folder, name, description="first", tags={"cohort": "c1"})
    two = registry.log_and_register_model(second, model_folder, name)
    assert (one.version, two.version, one.uri) == ("1", "2", f"models:/{name}/1")
    registry.set_champion(name, one.version)
    assert registry.champion(name).run_id == first
    registry.set_champion(name, two.version)
    assert registry.champion(name).run_id == second
    assert registry.find_version(f"models:/{name}/1").tags["cohort"] == "c1"
    assert queries.resolve_run(f"models:/{name}@champion") == queries.RunReference(second, "model")
    assert queries.resolve_run(f"models:/{name}/1") == queries.RunReference(first, "model")
    weights = queries.download(second, "model/weights.safetensors", tmp_path / "got").read_bytes()
    assert weights == b"weights"


def test_registering_a_run_again_makes_no_second_version(local_store: Path, model_folder: Path) -> None:
    run_id = make_run(model_folder)
    versions = [registry.log_and_register_model(run_id, model_folder, "m").version for _ in range(2)]
    other = registry.log_and_register_model(run_id, model_folder, "another").version
    assert (versions, other) == (["1", "1"], "1")


def test_what_is_not_there_lists_what_is(local_store: Path, model_folder: Path) -> None:
    with pytest.raises(TrackingError, match=r"there is no models:/m@champion on .*models there are: none"):
        registry.champion("m")
    registry.log_and_register_model(make_run(model_folder), model_folder, "m")
    with pytest.raises(TrackingError, match=r"models there are: m\."):
        registry.champion("other")
    with pytest.raises(TrackingError, match="model 'm' has versions 1; aliases: none"):
        registry.find_version("models:/m/7")
    registry.set_champion("m", "1")
    with pytest.raises(TrackingError, match="model 'm' has versions 1; aliases: champion"):
        registry.find_version("models:/m@best")
    with pytest.raises(TrackingError, match="could not make version 7 the champion of model 'm'"):
        registry.set_champion("m", "7")


@pytest.mark.parametrize("reference", ["m@champion", "models:/m", "models:/m/latest", "models:/a/b@c"])
def test_what_names_no_model_says_the_forms_there_are(reference: str, local_store: Path) -> None:
    with pytest.raises(TrackingError, match="needed is models:/NAME@champion or models:/NAME/VERSION"):
        registry.find_version(reference)


def test_a_registered_model_predicts_and_holds_no_pickle(
    store: object, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    predict = types.ModuleType("ehrtrack.recipes.predict")
    predict.load_predictor = CountingPredictor  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "ehrtrack.recipes.predict", predict)
    run_id = make_run(model_folder)
    registry.log_and_register_model(run_id, model_folder, f"m {type(store).__name__}")
    names = [path.removeprefix("serving/") for path in queries.list_artifacts(run_id, "serving")]
    assert {"MLmodel", "model_code.py", "artifacts/weights/weights.safetensors"} <= set(names)
    assert [name for name in names if re.search(r"\.(pkl|pickle|pt|bin|joblib)$", name)] == []

    import mlflow.pyfunc

    served = mlflow.pyfunc.load_model(str(queries.download(run_id, "serving", tmp_path / "got")))
    day = pd.Timestamp("2020-01-02 10:00")
    events = pd.DataFrame(
        {
            "subject_id": [1, 1, 1, 2],
            "prediction_time": [day, day, day, pd.Timestamp("2021-01-01")],
            "time": [pd.NaT, day, day + pd.Timedelta("1s"), pd.Timestamp("2020-05-05")],
            "code": ["GENDER//F", "A", "B", "C"],
        }
    )
    scored = served.predict(events)
    assert list(scored.columns) == ["subject_id", "prediction_time", "risk"]
    assert scored["subject_id"].tolist() == [1, 2]
    assert scored["prediction_time"].tolist() == [day, pd.Timestamp("2021-01-01")]
    assert scored["risk"].tolist() == [0.2, 0.1]
    with_values = served.predict(events.assign(numeric_value=[None, 1.5, None, None]))
    assert with_values["risk"].tolist() == [0.2, 0.1]
