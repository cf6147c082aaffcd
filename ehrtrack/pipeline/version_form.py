"""In which form a run's model becomes a version: its adapter alone, or a model that stands alone."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch

from ehrtrack.errors import CheckpointError
from ehrtrack.files import sha256_of
from ehrtrack.models.record_columns import Levels
from ehrtrack.pipeline.adapted import ENCODER, BaseRecord, Bases, merged_weights
from ehrtrack.pipeline.adapter import said_of_base
from ehrtrack.pipeline.model_files import ADAPTER_CONFIG, ADAPTER_WEIGHTS, WEIGHTS
from ehrtrack.pipeline.model_folder import ModelFolder, read_model_folder, write_checksums
from ehrtrack.pipeline.run import ADAPTER_FOLDER
from ehrtrack.strategies.base import strategy_of
from ehrtrack.tracking.client.queries import MissingArtifact, MissingRun, download, get_run, is_deleted
from ehrtrack.training.checkpoint import load_tensors, weights_fingerprint

MOST_APART = 1e-6
"""How far weights may differ that were merged on two machines."""


@dataclass(frozen=True)
class Form:
    """The model folder of a version to be.

    Attributes
    ----------
    base : that an adapter alone is loaded on; None of what stands alone
    text : what it is and how large, for people
    """

    folder: Path
    base: BaseRecord | None
    text: str


class _StandsAlone(Exception):
    """Why an adapter is merged."""


def form_of(run_id: str, model_folder: Path, aside: Path, *, merges: bool = False) -> Form:
    """The form of a run's version: its adapter alone where it has one and the base is on the server, else all of it.

    An adapter alone is read back, put on its base, and compared with the model that the run logged.

    Parameters
    ----------
    model_folder : the run's own, whole
    aside : an empty folder to write to
    merges : an adapter stays merged, whatever its base

    Raises
    ------
    CheckpointError
        If adapter and base are not the model that the run logged.
    """
    weights = model_folder / WEIGHTS
    whole = f"{_mb(weights)} of weights" if weights.is_file() else "no network"
    try:
        adapter = download(run_id, ADAPTER_FOLDER, aside / "run")
    except MissingArtifact:
        return Form(model_folder, None, f"stands alone: {whole}")
    try:
        if merges:
            raise _StandsAlone("as was asked for")
        model = read_model_folder(model_folder)
        if not strategy_of(model.config.strategy).loads_adapter:
            raise _StandsAlone(f"as strategy {model.config.strategy.name} does not say how it is loaded")
        base, file = _base(run_id, adapter, aside)
    except _StandsAlone as reason:
        alone = _mb(adapter / ADAPTER_WEIGHTS)
        return Form(model_folder, None, f"stands alone: {whole}, the adapter ({alone}) merged, {reason}")
    folder = shutil.copytree(
        model_folder, aside / "version" / model_folder.name, ignore=shutil.ignore_patterns(WEIGHTS)
    )
    for name in (ADAPTER_WEIGHTS, ADAPTER_CONFIG):
        shutil.copy(adapter / name, folder / name)
    base.write(folder)
    write_checksums(folder)
    _check_same(folder, model, Bases(file.parent))
    return Form(
        folder,
        base,
        f"adapter alone: {_mb(folder / ADAPTER_WEIGHTS)} of weights, on {base.model} ({_mb(file)}; encoder "
        f"{base.fingerprint}), which is fetched once and checked at loading. Standing alone it would have {whole} "
        "(--merge)",
    )


def _base(run_id: str, adapter: Path, aside: Path) -> tuple[BaseRecord, Path]:
    """The base of an adapter, and its file of weights, named as `Bases` keeps it."""
    said = said_of_base(adapter)
    if said.get("kind") != "pretrained":
        raise _StandsAlone(
            "as its base is not pretrained" if said else "as it is from before adapters named their base"
        )
    model = str(json.loads((adapter / ADAPTER_CONFIG).read_text())["base_model_name_or_path"])
    record = BaseRecord(model, said["fingerprint"], "0" * 64, 0, run_id)
    try:
        get_run(record.run_id)
        file = download(record.run_id, record.artifact, aside / "base")
        if is_deleted(record.run_id):
            raise _StandsAlone(f"as run {record.run_id}, its base, is marked as deleted")
    except (MissingRun, MissingArtifact) as error:
        raise _StandsAlone(f"as its base {model} is not on this server") from error
    encoder = {name.removeprefix(ENCODER): of for name, of in load_tensors(file).items() if name.startswith(ENCODER)}
    if weights_fingerprint(encoder) != record.fingerprint:
        raise _StandsAlone(f"as {model} is no longer the base that it was trained on")
    sha256 = sha256_of(file)
    named = file.rename(file.with_name(f"{sha256}.safetensors"))
    return BaseRecord(model, record.fingerprint, sha256, named.stat().st_size, run_id), named


def _check_same(folder: Path, model: ModelFolder, bases: Bases) -> None:
    """The adapter in a folder, on its base, is the model that the run logged."""
    found = merged_weights(folder, model.config, Levels.of(model.vocabulary), bases)
    differing = [
        name
        for name in found.keys() | model.weights.keys()
        if name not in found
        or name not in model.weights
        or not torch.allclose(found[name].double(), model.weights[name].double(), rtol=MOST_APART, atol=MOST_APART)
    ]
    if differing:
        raise CheckpointError(
            f"the run's adapter on its base is not the model that the run logged: {len(differing)} tensors differ, "
            f"such as {min(differing)}. `--merge` registers the model that it logged"
        )


def _mb(file: Path) -> str:
    return f"{file.stat().st_size / 1e6:.2f} MB"
