"""Models in the registry: found by alias, served without a pickle."""

from __future__ import annotations

import json
import re
import shutil
import sys
import types
from pathlib import Path

import pandas as pd
import polars as pl
import pytest

from ehrtrack.errors import CheckpointError, TrackingError
from ehrtrack.tracking.client import moves, queries, registry
from ehrtrack.tracking.client.connection import client
from ehrtrack.tracking.client.registry import seal
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
    return run.server_run_id


def test_a_champion_is_found_again_by_its_alias(store: object, model_folder: Path, tmp_path: Path) -> None:
    name = f"gi {type(store).__name__}"
    first, second = make_run(model_folder), make_run(model_folder)
    one = registry.log_and_register_model(first, model_folder, name, description="first", tags={"cohort": "c1"})
    two = registry.log_and_register_model(second, model_folder, name)
    assert (one.version, two.version, one.uri) == ("1", "2", f"models:/{name}/1")
    moves.set_champion(one, how="promote", why="first")
    assert registry.champion(name).run_id == first
    moves.set_champion(two, how="promote", why="second")
    assert registry.champion(name).run_id == second
    assert registry.find_version(f"models:/{name}/1").tags["cohort"] == "c1"
    for reference, run_id, version in ((f"models:/{name}@champion", second, two), (f"models:/{name}/1", first, one)):
        found = queries.resolve_run(reference)
        assert (found.run_id, found.digest) == (run_id, version.tags["ehrtrack.sha256"])
        assert found.artifact_path == f"registered/{found.digest}"
    weights = queries.download(second, "model/weights.safetensors", tmp_path / "got").read_bytes()
    assert weights == b"weights"


def overwrite(run_id: str, path: str, content: bytes, folder: Path) -> None:
    """What another process with access to the store can do."""
    folder.mkdir(exist_ok=True)
    parent, _, file = path.rpartition("/")
    (folder / file).write_bytes(content)
    client().log_artifact(run_id, str(folder / file), parent)


def test_a_version_is_what_was_registered_whatever_becomes_of_its_run(
    store: object, model_folder: Path, tmp_path: Path
) -> None:
    name = f"kept {type(store).__name__}"
    run_id = make_run(model_folder)
    registry.log_and_register_model(run_id, model_folder, name)
    overwrite(run_id, "model/weights.safetensors", b"others", tmp_path / "o")
    fetched = queries.fetch_model(f"models:/{name}/1", tmp_path / "got")
    assert fetched.run_id == run_id
    assert (fetched.folder / "weights.safetensors").read_bytes() == b"weights"
    assert (queries.fetch_model(run_id, tmp_path / "run").folder / "weights.safetensors").read_bytes() == b"others"


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("artifacts/weights/weights.safetensors", "was changed"),
        ("artifacts/weights/baseline.json", "was added"),
        ("model_code.py", "was changed"),
        ("sha256sums.txt", "was changed"),
    ],
)
def test_a_version_whose_files_were_changed_in_the_store_is_refused(
    path: str, told: str, store: object, model_folder: Path, tmp_path: Path
) -> None:
    """By predict, and by mlflow's own way of loading it, which is that of serving."""
    name = f"changed {path.replace('/', ' ')} {type(store).__name__}"
    run_id = make_run(model_folder)
    version = registry.log_and_register_model(run_id, model_folder, name)
    content = b"import ehrtrack.tracking.client.model_code\n" if path.endswith(".py") else b"others"
    overwrite(run_id, f"{version.artifact_path}/{path}", content, tmp_path / "o")
    with pytest.raises(CheckpointError, match=rf"models:/{name}/1 is not what was registered: {path} {told}"):
        queries.fetch_model(f"models:/{name}/1", tmp_path / "got")
    if not path.endswith(".py"):  # code that was replaced runs before it could be checked
        import mlflow.pyfunc

        with pytest.raises(CheckpointError, match=rf"is not what was registered: {path} {told}"):
            mlflow.pyfunc.load_model(version.uri)


def test_a_list_of_files_that_was_changed_with_them_is_refused(
    local_store: Path, model_folder: Path, tmp_path: Path
) -> None:
    run_id = make_run(model_folder)
    version = registry.log_and_register_model(run_id, model_folder, "m")
    folder = queries.download(run_id, version.artifact_path, tmp_path / "got")
    (folder / "artifacts" / "weights" / "weights.safetensors").write_bytes(b"others")
    (folder / "sha256sums.txt").unlink()
    assert seal(folder) != version.digest
    client().log_artifacts(run_id, str(folder), version.artifact_path)
    client().set_model_version_tag("m", "1", "ehrtrack.sha256", seal(folder))  # a tag can be changed, the source not
    with pytest.raises(CheckpointError, match=r"sha256sums\.txt was changed"):
        queries.fetch_model("models:/m/1", tmp_path / "again")


def test_a_version_from_before_there_were_hashes_is_read_with_a_note(
    local_store: Path, model_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run_id = make_run(model_folder)
    for name, path in (("old", "serving"), ("bare", "model")):
        if path == "serving":
            (tmp_path / "old" / "artifacts").mkdir(parents=True)
            shutil.copytree(model_folder, tmp_path / "old" / "artifacts" / "model")
            client().log_artifacts(run_id, str(tmp_path / "old"), "serving")
        client().create_registered_model(name)
        client().create_model_version(name, source=f"runs:/{run_id}/{path}", run_id=run_id)
        fetched = queries.fetch_model(f"models:/{name}/1", tmp_path / f"got {name}")
        assert (fetched.folder / "weights.safetensors").read_bytes() == b"weights"
        assert f"models:/{name}/1 was registered before versions carried a hash" in caplog.text


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
    moves.set_champion(registry.find_version("models:/m/1"), how="promote", why="")
    with pytest.raises(TrackingError, match="model 'm' has versions 1; aliases: champion"):
        registry.find_version("models:/m@best")
    with pytest.raises(TrackingError, match="could not make version 7 the champion of model 'm'"):
        moves.set_champion(registry.ModelVersion("m", "7", "", {}), how="promote", why="")


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
    version = registry.log_and_register_model(run_id, model_folder, f"m {type(store).__name__}")
    stored = queries.list_artifacts(run_id, version.artifact_path)
    names = [path.removeprefix(f"{version.artifact_path}/") for path in stored]
    assert {"MLmodel", "model_code.py", "artifacts/weights/weights.safetensors"} <= set(names)
    assert [name for name in names if re.search(r"\.(pkl|pickle|pt|bin|joblib)$", name)] == []

    import mlflow.pyfunc

    served = mlflow.pyfunc.load_model(str(queries.download(run_id, version.artifact_path, tmp_path / "got")))
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


def test_the_code_stored_with_registered_models_finds_its_check() -> None:
    """Registered versions carry `from ehrtrack.tracking.registry import check_served`."""
    from ehrtrack.tracking.registry import check_served

    assert check_served is registry.check_served
