"""The folder that a model is kept in: weights as safetensors, everything else as JSON."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ehrtrack.config import RunConfig, parse_config
from ehrtrack.data.vocabulary import Vocabulary
from ehrtrack.errors import CheckpointError
from ehrtrack.models.behrt import Behrt, EhrModel, encoder_weights
from ehrtrack.models.heads import HazardHead
from ehrtrack.survival.time_grid import TimeGrid
from ehrtrack.training.checkpoint import load_tensors, save_tensors, weights_fingerprint

WEIGHTS = "model.safetensors"
CONFIG = "run_config.json"
VOCABULARY = "vocabulary.json"
TIME_GRID = "time_grid.json"
BASELINE = "baseline.json"
FINGERPRINTS = "fingerprints.json"


@dataclass(frozen=True)
class ModelFolder:
    """A model that was read back.

    Attributes
    ----------
    weights : tensors by name, empty for a baseline
    grid : of a survival model, else None
    baseline : the fitted baseline's JSON, else None
    fingerprints : of the data, cohort, vocabulary and base weights it was made from
    """

    config: RunConfig
    vocabulary: Vocabulary
    weights: dict[str, Tensor]
    grid: TimeGrid | None
    baseline: str | None
    fingerprints: dict[str, str]

    def encoder_weights(self) -> dict[str, Tensor]:
        """The encoder's tensors."""
        prefix = "encoder."
        return {k.removeprefix(prefix): v for k, v in self.weights.items() if k.startswith(prefix)}

    def survival_model(self) -> EhrModel:
        """The fine-tuned model, ready to predict.

        Raises
        ------
        CheckpointError
            If the folder holds no survival model, or its weights do not fit.
        """
        if self.grid is None or not self.weights:
            raise CheckpointError("this model predicts no survival: it is not from a finetune run")
        encoder = Behrt(self.config.model, len(self.vocabulary))
        model = EhrModel(encoder, HazardHead(encoder.width, torch.zeros(self.grid.n_intervals)))
        try:
            model.load_state_dict(self.weights)
        except RuntimeError as error:
            raise CheckpointError(f"the weights do not fit the configuration beside them: {error}") from error
        return model.eval()


def write_model_folder(
    folder: Path,
    *,
    config: RunConfig,
    vocabulary: Vocabulary,
    fingerprints: dict[str, str],
    model: nn.Module | None = None,
    grid: TimeGrid | None = None,
    baseline: str | None = None,
) -> None:
    """Write a plain model (or a fitted baseline) with all that is needed to predict from events."""
    folder.mkdir(parents=True, exist_ok=True)
    if model is not None:
        save_tensors(folder / WEIGHTS, model.state_dict())
        fingerprints = fingerprints | {"encoder": weights_fingerprint(encoder_weights(model))}
    if grid is not None:
        (folder / TIME_GRID).write_text(grid.to_json())
    if baseline is not None:
        (folder / BASELINE).write_text(baseline)
    vocabulary.save(folder / VOCABULARY)
    (folder / CONFIG).write_text(json.dumps(config.to_json(), indent=2))
    (folder / FINGERPRINTS).write_text(json.dumps(fingerprints, indent=2))


def read_model_folder(folder: Path) -> ModelFolder:
    """Read a model folder back; nothing is unpickled.

    Raises
    ------
    CheckpointError
        If a file is missing or damaged.
    """
    vocabulary = Vocabulary.load(folder / VOCABULARY)
    config = parse_config(_read_json(folder / CONFIG))
    grid_file, baseline_file = folder / TIME_GRID, folder / BASELINE
    is_baseline = baseline_file.is_file()
    weights = {} if is_baseline else load_tensors(folder / WEIGHTS)
    n_codes = 0 if is_baseline else len(weights.get("encoder.embeddings.code.weight", ()))
    if not is_baseline and n_codes != len(vocabulary):
        raise CheckpointError(
            f"{folder}: weights for {n_codes} tokens beside a vocabulary of {len(vocabulary)}; they are of two runs"
        )
    return ModelFolder(
        config=config,
        vocabulary=vocabulary,
        weights=weights,
        grid=TimeGrid.from_json(grid_file.read_text()) if grid_file.is_file() else None,
        baseline=baseline_file.read_text() if is_baseline else None,
        fingerprints=_read_json(folder / FINGERPRINTS),
    )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise CheckpointError(f"cannot read {path.name} of the model in {path.parent}: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds no table")
    return value
