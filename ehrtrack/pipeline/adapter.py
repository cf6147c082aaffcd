"""Rebuild the model that an adapter is loaded on: `peft` knows neither our classes nor the base it was trained on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ehrtrack.errors import CheckpointError
from ehrtrack.models.behrt import EhrModel, load_encoder_weights
from ehrtrack.models.record_columns import Levels
from ehrtrack.pipeline.adapted import plain_model
from ehrtrack.pipeline.model_files import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from ehrtrack.pipeline.model_folder import read_model_folder
from ehrtrack.training.checkpoint import load_tensors, weights_fingerprint


def adapter_base(base: Path | str, adapter: Path | str) -> EhrModel:
    """The base of an adapter, with a head of the adapter's parts and shapes, for ``peft.PeftModel.from_pretrained``.

    Parameters
    ----------
    base : folder ``model`` of the pretrain run that ``base_model_name_or_path`` of the adapter's configuration names
    adapter : folder ``adapter`` of a finetune run with strategy lora

    Raises
    ------
    CheckpointError
        If a file is missing or damaged, or the adapter was trained on another base.
    """
    said = said_of_base(Path(adapter))
    if said.get("kind") == "random":
        raise CheckpointError(
            f"the adapter in {adapter} was trained on random weights, which no run keeps: load the whole model of its "
            "run, from its folder `model`"
        )
    folder = read_model_folder(Path(base))
    found = weights_fingerprint(folder.encoder_weights())
    if said and found != said["fingerprint"]:
        raise CheckpointError(
            f"the adapter in {adapter} was trained on a base with the fingerprint {said['fingerprint']}, and the "
            f"encoder in {base} has {found}: fetch the folder `model` of the run that adapter_config.json names"
        )
    if not said:
        print(f"the adapter in {adapter} is from before adapters named their base: whether {base} is it is not checked")
    weights = load_tensors(Path(adapter) / ADAPTER_WEIGHTS)
    try:
        objective = said.get("objective", "survival")
        model = plain_model(folder.config, Levels.of(folder.vocabulary), weights, objective=objective)
        load_encoder_weights(model, folder.encoder_weights())
    except (RuntimeError, KeyError, ValueError, TypeError) as error:
        raise CheckpointError(f"the adapter in {adapter} and the base in {base} do not fit: {error}") from error
    return model.eval()


def said_of_base(adapter: Path) -> dict[str, Any]:
    """What the adapter's configuration records about its base; configurations of earlier versions record nothing.

    Raises
    ------
    CheckpointError
        If it is none.
    """
    file = adapter / ADAPTER_CONFIG
    try:
        said = json.loads(file.read_text())["auto_mapping"].get("base", {})
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{file} is no configuration of an adapter: {error!r}") from error
    if said and not {"kind", "fingerprint"} <= set(said):
        raise CheckpointError(f"{file} says of its base only {said}; needed are its kind and fingerprint")
    return dict(said)
