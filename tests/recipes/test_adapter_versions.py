"""Registered versions that are an adapter alone: what they hold, what they are loaded on, and when they stand alone."""

from __future__ import annotations

import json
import shutil
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import polars as pl
import pytest
import torch
from mlflow import MlflowClient
from safetensors.torch import load_file, save_file
from simulated import Population, study, write_dataset

from ehrtrack.data.events import MedsDataset
from ehrtrack.errors import CheckpointError, TrackingError
from ehrtrack.home import home
from ehrtrack.pipeline.adapted import Bases
from ehrtrack.pipeline.model_folder import write_checksums
from ehrtrack.pipeline.predictor import load_predictor
from ehrtrack.recipes.finetune import finetune
from ehrtrack.recipes.predict import predict
from ehrtrack.recipes.pretrain import pretrain
from ehrtrack.recipes.promote import promote
from ehrtrack.recipes.registry import list_versions
from ehrtrack.tracking.client.queries import download, fetch_model
from ehrtrack.tracking.client.registry import find_version

pytestmark = [
    pytest.mark.usefixtures("undrawn_figures"),
    pytest.mark.filterwarnings("ignore:.*[Tt]ype hint:UserWarning"),  # of mlflow's own classes
]


@dataclass(frozen=True)
class Trained:
    """A base and two runs on it, in a store of their own."""

    folder: Path
    dataset: MedsDataset
    base: str
    lora: str
    dora: str


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory, empty_database: Path, undrawn_figures: None) -> Iterator[Trained]:
    folder = tmp_path_factory.mktemp("trained")
    shutil.copy(empty_database, folder / "mlflow.db")
    dataset = write_dataset(folder / "meds", Population(n_subjects=200))
    told = {
        "train": {"epochs": 1, "batch_tokens": 512, "lr": 1e-2},
        "runtime": {"cache": str(folder / "cache"), "device": "cpu", "log_raw_subjects": True},
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder / 'mlflow.db'}")
        patch.delenv("MLFLOW_RUN_ID", raising=False)
        patch.chdir(folder)
        base = pretrain(study(dataset.path, folder / "cache", objective={"name": "mlm"}, **told)).run_id
        runs = [
            finetune(
                study(
                    dataset.path,
                    folder / "cache",
                    objective={"name": "survival", "lasso": lasso},
                    strategy={"name": "lora", "rank": 2} | strategy,
                    init={"run": base},
                    **told,
                )
            ).run_id
            for strategy, lasso in (({}, 0.3), ({"dora": True, "embeddings": True}, 0.0))
        ]
        yield Trained(folder, dataset, base, *runs)


@pytest.fixture
def trained(kept: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Trained:
    """The same in a registry without versions; files of runs may be changed where `changed` brings them back."""
    shutil.copy(kept.folder / "mlflow.db", tmp_path / "mlflow.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    monkeypatch.chdir(kept.folder)
    return kept


@pytest.fixture
def base_file(trained: Trained) -> Iterator[Path]:
    """Where the store keeps the weights of the base, which are as they were after the test."""
    artifacts = Path(MlflowClient().get_run(trained.base).info.artifact_uri.removeprefix("file://"))
    file = artifacts / "model" / "model.safetensors"
    content = file.read_bytes()
    yield file
    file.write_bytes(content)


def risks(trained: Trained, reference: str, folder: Path) -> pl.DataFrame:
    """Those that were logged by the run, and those of a model now."""
    run_id = find_version(reference).run_id
    logged = pl.read_parquet(download(run_id, "predictions/test.parquet", folder / run_id))
    logged.select("subject_id", "prediction_time").write_parquet(folder / "times.parquet")
    now = predict(reference, trained.dataset.path, folder / "times.parquet", folder / "now.parquet").collect()
    return logged.join(now, on=["subject_id", "prediction_time"], suffix="_now")


def assert_as_logged(trained: Trained, reference: str, folder: Path) -> None:
    both = risks(trained, reference, folder)
    assert both.height > 20
    assert both["risk"].std() > 0.005
    assert (both["risk"] - both["risk_now"]).abs().max() < 1e-6


@pytest.mark.parametrize("which", ["lora", "dora"])
def test_a_version_holds_the_adapter_alone_and_predicts_as_its_run_did(
    which: str, trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_id = getattr(trained, which)
    version = promote(run_id, name="a").version
    assert version.tags["ehrtrack.base"] == f"runs:/{trained.base}/model"
    stored = download(run_id, version.artifact_path, tmp_path / "stored")
    adapter = stored / "artifacts" / "model" / "adapter_model.safetensors"
    files = {file.name for file in adapter.parent.iterdir()}
    needed = {"adapter_model.safetensors", "adapter_config.json", "base.json", "vocabulary.json", "run_config.json"}
    assert needed <= files
    assert "model.safetensors" not in files
    said = capsys.readouterr().out
    card = (stored / "model_card.md").read_text()
    assert f"adapter alone: {adapter.stat().st_size / 1e6:.2f} MB of weights" in card
    (line,) = (line for line in card.splitlines() if "adapter alone" in line)
    assert line.removeprefix("- this version ") in said
    assert f"on runs:/{trained.base}/model (0." in line
    assert_as_logged(trained, version.uri, tmp_path)


def test_merged_it_is_another_version_that_needs_no_base(
    trained: Trained, base_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    promote(trained.lora, name="a")
    merged = promote(trained.lora, name="a", merges=True)
    assert (merged.version.uri, merged.before and merged.before.version) == ("models:/a/2", "1")
    assert "ehrtrack.base" not in merged.version.tags
    assert "models:/a/2 stands alone: 0." in capsys.readouterr().out
    assert promote(trained.lora, name="a", merges=True).move is None
    assert promote(trained.lora, name="a").version.version == "2"  # the run is champion, in whatever form
    assert promote("models:/a/1", is_forced=True).version.version == "1"
    assert promote("models:/a/1", is_forced=True, merges=True).version.version == "2"
    listed = list_versions("a")
    assert "| 2       | champion " in listed
    assert "| 1       | previous, adapter " in listed
    base_file.unlink()
    shutil.rmtree(home() / "bases", ignore_errors=True)
    assert_as_logged(trained, "models:/a@champion", tmp_path)


def test_a_base_that_is_gone_or_was_changed_is_told_with_what_to_do(
    trained: Trained, base_file: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    content = base_file.read_bytes()
    promote(trained.lora, name="a")
    folder = fetch_model("models:/a/1", tmp_path / "got").folder
    changed = bytearray(content)
    changed[-1] ^= 1
    base_file.write_bytes(changed)
    merge = rf"`ehrtrack promote {trained.lora} --merge` makes a version that needs no base"
    with pytest.raises(CheckpointError, match=rf"model/model.safetensors of run {trained.base}, .* changed .*{merge}"):
        load_predictor(folder)
    base_file.unlink()
    with pytest.raises(TrackingError, match=rf"its base runs:/{trained.base}/model has no such file .*{merge}"):
        load_predictor(folder)
    base_file.write_bytes(content)
    MlflowClient().delete_run(trained.base)
    load_predictor(folder)
    assert f"mlflow runs restore --run-id {trained.base}` keeps it" in caplog.text
    base_file.unlink()
    load_predictor(folder)  # from this machine's own copy
    (copy,) = (home() / "bases").iterdir()
    copy.write_bytes(changed)
    with pytest.raises(TrackingError, match="has no such file"):
        load_predictor(folder)
    assert "was changed since it was fetched: it is fetched again" in caplog.text
    (folder / "base.json").write_text('{"sha256": "../../x"}')
    write_checksums(folder)
    with pytest.raises(CheckpointError, match=r"base\.json does not say what the adapter's base is"):
        load_predictor(folder)


def test_where_the_base_is_not_on_the_server_or_another_by_now_the_version_stands_alone(
    trained: Trained, base_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = base_file.read_bytes()
    tensors = load_file(base_file)
    tensors["encoder.norm.weight"] += 0.1
    save_file(tensors, base_file)
    promote(trained.lora, name="changed")
    assert f"merged, as runs:/{trained.base}/model is no longer the base that it was" in capsys.readouterr().out
    base_file.write_bytes(whole)
    MlflowClient().delete_run(trained.base)
    promote(trained.lora, name="deleted")
    assert f"merged, as run {trained.base}, its base, is marked as deleted" in capsys.readouterr().out
    base_file.unlink()
    promote(trained.lora, name="gone")
    assert f"merged, as its base runs:/{trained.base}/model is not on this server" in capsys.readouterr().out
    for name in ("changed", "deleted", "gone"):
        assert "ehrtrack.base" not in find_version(f"models:/{name}@champion").tags
    assert_as_logged(trained, "models:/gone@champion", tmp_path)


def test_an_adapter_that_is_not_of_the_logged_model_is_no_version(trained: Trained, tmp_path: Path) -> None:
    artifacts = Path(MlflowClient().get_run(trained.lora).info.artifact_uri.removeprefix("file://"))
    file = artifacts / "adapter" / "adapter_model.safetensors"
    content = file.read_bytes()
    other = bytearray(content)
    other[-2] ^= 64  # an exponent
    file.write_bytes(other)
    try:
        with pytest.raises(CheckpointError, match=r"is not the model that the run logged|not finite"):
            promote(trained.lora, name="a")
        assert not MlflowClient().search_registered_models("name = 'a'")
    finally:
        file.write_bytes(content)


def test_several_adapters_share_the_memory_of_their_base(trained: Trained, tmp_path: Path) -> None:
    shared = Bases()
    models = {}
    for name, run_id in (("lora", trained.lora), ("dora", trained.dora)):
        promote(run_id, name=name)
        folder = fetch_model(f"models:/{name}@champion", tmp_path / name).folder
        models[name] = load_predictor(folder, shared=shared), load_predictor(folder)
    networks = [shared_one.network for shared_one, _ in models.values()]
    own = [storages(network) for network in networks if network is not None]
    base = set(own[0]) & set(own[1])
    sizes = [sum(n_bytes for at, n_bytes in storage.items() if at not in base) for storage in own]
    file = json.loads((folder / "base.json").read_text())
    assert sum(own[0][at] for at in base) > 0.5 * file["n_bytes"]
    adapters = [(tmp_path / name).rglob("adapter_model.safetensors") for name in models]
    for n_bytes, (path,) in zip(sizes, adapters, strict=True):
        assert n_bytes < 2.5 * path.stat().st_size + 20_000
    events = trained.dataset.scan().collect()
    times = pl.read_parquet(download(trained.lora, "predictions/test.parquet", tmp_path / "l"))
    for on_base, merged in models.values():
        asked = times.select("subject_id", "prediction_time")
        found, wanted = (one.predict_events(events, asked)["risk"] for one in (on_base, merged))
        assert (found - wanted).abs().max() < 1e-6


def test_a_base_is_in_memory_as_long_as_a_model_of_it(trained: Trained, tmp_path: Path) -> None:
    """So a champion that moves from base to base does not gather them."""
    promote(trained.lora, name="moving")
    folder = fetch_model("models:/moving@champion", tmp_path).folder
    shared = Bases()
    first, second = (load_predictor(folder, shared=shared) for _ in range(2))
    assert first.network is not second.network
    assert first.folder.base is second.folder.base
    assert first.folder.base is not None
    held = weakref.ref(first.folder.base)
    del first
    assert held() is second.folder.base
    del second
    assert held() is None


def storages(network: torch.nn.Module) -> dict[int, int]:
    """Address of each block of memory of a network's tensors -> its bytes."""
    tensors = [*network.parameters(), *network.buffers()]
    return {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
