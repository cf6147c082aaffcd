"""Write and read the folder of a model: weights as safetensors, everything else as JSON."""

from __future__ import annotations

import json
import stat
from dataclasses import asdict, dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from torch import Tensor, nn

from ehrtrack import plugins
from ehrtrack.config import RunConfig, parse_run_config
from ehrtrack.data.drift import Seen
from ehrtrack.data.vocabulary import Vocabulary
from ehrtrack.errors import CheckpointError, ConfigError
from ehrtrack.files import BROKEN, parse_json, sha256_of
from ehrtrack.models.behrt import SIZES, EhrModel, encoder_weights
from ehrtrack.models.code_effects import CodeEffects
from ehrtrack.models.encoders import new_encoder
from ehrtrack.models.record_columns import Levels
from ehrtrack.objectives.base import OutcomeObjective, Rebuilt
from ehrtrack.pipeline.adapted import (
    BaseRecord,
    Bases,
    EncoderWeights,
    adapter_weights,
    head_weights,
    is_adapter,
    merged_weights,
    on_base,
)
from ehrtrack.pipeline.model_files import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    BASE,
    BASELINE,
    CHECKSUMS,
    CONFIG,
    FINGERPRINTS,
    READING,
    TIME_GRID,
    VOCABULARY,
    WEIGHTS,
)
from ehrtrack.survival.time_grid import TimeGrid
from ehrtrack.tracking.outbox.masking import without_secrets
from ehrtrack.training.checkpoint import check_tensors, load_tensors, save_tensors, weights_fingerprint

MOST_TOKENS = 2**31 - 1
MAX_FILE_BYTES = 64 * 2**30
MAX_JSON_BYTES = 2 * 2**30
"""What a file from elsewhere may take of memory before it is known to be whole."""


@dataclass(frozen=True)
class ModelFolder:
    """A model that was read from its folder.

    Attributes
    ----------
    weights : tensors by name, empty for a baseline
    grid : of a survival model, else None
    baseline : the fitted baseline's JSON, else None
    fingerprints : of the data, cohort, vocabulary and base weights it was made from
    max_tokens : tokens of a record that the model reads, [CLS] included, in training as in prediction
    seen : codes and values of the training subjects; None where it was not kept
    failed_checks : of the sanity of the run that made it, where it was asked for them
    has_classes : its risks are probabilities of a class, and of no horizon
    network : an adapter on a base that others use too; `weights` are then those of its head alone
    base : what `network` shares with these others; `Bases` has it for as long as one of their folders does
    """

    config: RunConfig
    vocabulary: Vocabulary
    weights: dict[str, Tensor]
    grid: TimeGrid | None
    baseline: str | None
    fingerprints: dict[str, str]
    max_tokens: int
    seen: Seen | None
    failed_checks: tuple[str, ...] = ()
    has_classes: bool = False
    network: nn.Module | None = None
    base: EncoderWeights | None = None

    @property
    def n_causes(self) -> int:
        """Number of causes whose incidence the model predicts; 1 if it has one outcome, or any of several together."""
        return self.rebuilt().n_causes if self.weights and self.grid else 1

    def encoder_weights(self) -> dict[str, Tensor]:
        """The tensors of the encoder."""
        return _below(self.weights, "encoder.")

    def onset_effects(self) -> CodeEffects | None:
        """The effects of single codes and values on the onsets of codes, if pretraining fitted them.

        Raises
        ------
        CheckpointError
            If its tensors do not fit each other, or the vocabulary and the scales of times beside them.
        """
        prefixes = [name.removesuffix("effect") for name in self.weights if name.endswith(".effects.effect")]
        if not prefixes:
            return None
        try:
            effects = CodeEffects.from_weights(self.weights, prefixes[0])
        except (KeyError, ValueError, TypeError) as error:
            raise CheckpointError(f"the effects on onsets do not fit each other: {error}") from error
        assert effects is not None
        found = len(effects.code), len(effects.scales_days)
        if found != (len(self.vocabulary), len(self.config.model.readout_days)):
            raise CheckpointError(
                f"the effects on onsets are of {found[0]} tokens and {found[1]} scales of times, and the model has "
                f"{len(self.vocabulary)} and {len(self.config.model.readout_days)}; they come from two runs"
            )
        return effects

    def rebuilt(self) -> Rebuilt:
        """The head as its objective builds it, without weights, and how predictions are made from it.

        Raises
        ------
        CheckpointError
            If the folder holds no survival model, or the weights are of no such head.
        """
        if self.grid is None or not self.weights:
            raise CheckpointError("this model predicts no survival: it is not from a finetune run")
        of_head = plugins.plugin("objectives", self.config.objective.name, OutcomeObjective).rebuild
        width = SIZES[self.config.model.size].width
        try:
            return of_head(_below(self.weights, "head."), width=width, n_intervals=self.grid.n_intervals)
        except (RuntimeError, KeyError, ValueError, TypeError) as error:
            raise CheckpointError(f"the weights do not fit the configuration beside them: {error}") from error

    def survival_model(self) -> nn.Module:
        """The fine-tuned model, ready to predict: hazard logits (B, K), or of R causes (B, K R).

        Raises
        ------
        CheckpointError
            If the folder holds no survival model, or its weights do not fit.
        """
        if self.network is not None:
            return self.network
        head = self.rebuilt().head
        encoder = new_encoder(self.config.model, Levels.of(self.vocabulary), may_lack_age=self.config.data.may_lack_age)
        model = EhrModel(encoder, head)
        try:
            model.load_state_dict(self.weights)
        except (RuntimeError, KeyError, ValueError, TypeError) as error:
            raise CheckpointError(f"the weights do not fit the configuration beside them: {error}") from error
        return model.eval()


def _below(weights: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin with a prefix, by the rest of their names."""
    return {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}


def write_model_folder(
    folder: Path,
    *,
    config: RunConfig,
    vocabulary: Vocabulary,
    fingerprints: dict[str, str],
    model: nn.Module | None = None,
    grid: TimeGrid | None = None,
    baseline: str | None = None,
    seen: Seen | None = None,
    has_classes: bool = False,
) -> None:
    """Write a plain model (or a fitted baseline) with everything that is needed to predict from events."""
    folder.mkdir(parents=True, exist_ok=True)
    if model is not None:
        save_tensors(folder / WEIGHTS, model.state_dict())
        fingerprints = fingerprints | {"encoder": weights_fingerprint(encoder_weights(model))}
    if grid is not None:
        (folder / TIME_GRID).write_text(grid.to_json())
    if baseline is not None:
        (folder / BASELINE).write_text(baseline)
    # counts of a rare token reveal the few subjects that have it, and predicting does not need them
    replace(vocabulary, counts=()).save(folder / VOCABULARY)
    (folder / CONFIG).write_text(without_secrets(json.dumps(config.to_json(), indent=2)))
    (folder / FINGERPRINTS).write_text(json.dumps(fingerprints, indent=2))
    reading = {"max_tokens": config.data.max_tokens, "seen": None if seen is None else asdict(seen)}
    reading |= {"has_classes": True} if has_classes else {}
    (folder / READING).write_text(json.dumps(reading, indent=2))
    write_checksums(folder)


def write_checksums(folder: Path) -> None:
    """Write the checksums of all files in a folder."""
    lines = [f"{sha256_of(file)}  {file.name}\n" for file in sorted(folder.iterdir()) if file.name != CHECKSUMS]
    (folder / CHECKSUMS).write_text("".join(lines))


def read_model_folder(folder: Path, *, shared: Bases | None = None) -> ModelFolder:
    """Read a model folder; nothing is unpickled.

    Of a folder with an adapter alone the base is found on this machine or fetched, and the adapter merged into it.

    Parameters
    ----------
    shared : bases in memory, which an adapter is put on and not merged into: each more of one base takes the memory of
        the adapter. Such a model predicts, and no training starts from it

    Raises
    ------
    CheckpointError
        If a file is missing or damaged, is no regular file, or is larger than any model's.
    TrackingError
        If the base of an adapter is nowhere to be had.
    """
    _check_files(folder)
    vocabulary = Vocabulary.load(folder / VOCABULARY)
    config = _read_config(folder / CONFIG)
    grid_file, baseline_file = folder / TIME_GRID, folder / BASELINE
    is_baseline = baseline_file.is_file()
    network: nn.Module | None = None
    base: EncoderWeights | None = None
    weights: dict[str, Tensor] = {}
    if is_adapter(folder) and shared is not None:
        base = shared.encoder_weights(BaseRecord.read(folder))
        network = on_base(folder, config, Levels.of(vocabulary), base)
        weights = {f"head.{name}": tensor for name, tensor in head_weights(adapter_weights(folder)).items()}
    elif is_adapter(folder):
        weights = merged_weights(folder, config, Levels.of(vocabulary), Bases())
    elif not is_baseline:
        weights = _read_weights(folder / WEIGHTS, n_codes=len(vocabulary))
    max_tokens, seen, has_classes = _read_reading(folder, config, is_baseline=is_baseline)
    return ModelFolder(
        config=config,
        vocabulary=vocabulary,
        weights=weights,
        grid=TimeGrid.from_json(_read_text(grid_file)) if grid_file.is_file() else None,
        baseline=_read_text(baseline_file) if is_baseline else None,
        fingerprints={name: str(value) for name, value in _read_json(folder / FINGERPRINTS).items()},
        max_tokens=max_tokens,
        seen=seen,
        has_classes=has_classes,
        network=network,
        base=base,
    )


def make_whole(folder: Path) -> None:
    """Merge the adapter in a model folder into its base, so that whoever reads the folder next needs no base."""
    if is_adapter(folder):
        save_tensors(folder / WEIGHTS, read_model_folder(folder).weights)
        for name in (ADAPTER_WEIGHTS, ADAPTER_CONFIG, BASE):
            (folder / name).unlink()
        write_checksums(folder)


def _read_reading(folder: Path, config: RunConfig, *, is_baseline: bool) -> tuple[int, Seen | None, bool]:
    """How many tokens of a record the model reads, what it saw in training, and whether its labels were classes.

    A network whose folder does not say was trained by a version that cut records to `train.batch_tokens` where that was
    the smaller number, and so it reads them still.
    """
    if not (folder / READING).is_file():
        longest, budget = config.data.max_tokens, config.train.batch_tokens
        return (longest if is_baseline or budget == "auto" else min(longest, budget)), None, False
    reading = _read_json(folder / READING)
    max_tokens, seen = reading.get("max_tokens"), reading.get("seen")
    if not isinstance(max_tokens, int) or not 1 <= max_tokens <= MOST_TOKENS:
        raise CheckpointError(
            f"{folder / READING} says max_tokens = {max_tokens!r}; a record has a whole number of them, from 1 to "
            f"{MOST_TOKENS:,}"
        )
    return max_tokens, None if seen is None else Seen.from_json(seen), reading.get("has_classes") is True


def _check_files(folder: Path) -> None:
    """Check all files before any is read: a link may lead out of the folder, and a pipe may never end."""
    for file in folder.iterdir() if folder.is_dir() else ():
        status = file.lstat()
        most = MAX_FILE_BYTES if file.name in (WEIGHTS, ADAPTER_WEIGHTS) else MAX_JSON_BYTES
        if not stat.S_ISREG(status.st_mode) or status.st_size > most:
            raise CheckpointError(f"{file} is no regular file of at most {most:,} bytes; it is not read")
    digests = _read_checksums(folder / CHECKSUMS)
    for name, digest in digests.items():
        file = folder / name
        if not file.is_file():
            raise CheckpointError(f"{file} is missing; fetch the model again")
        if sha256_of(file) != digest:
            raise CheckpointError(
                f"{file} is damaged: its SHA-256 is not the one it was written with; fetch the model again"
            )
    for unknown in {file.name for file in folder.iterdir()} - {CHECKSUMS, *digests}:
        raise CheckpointError(
            f"{folder / unknown} is not in {CHECKSUMS}, and was put there later; fetch the model again"
        )


def _read_checksums(sums: Path) -> dict[str, str]:
    """SHA-256 of each file by name; only files in the folder itself count."""
    if not sums.is_file():
        raise CheckpointError(
            f"{sums} is missing, so it is not known whether the model is complete; fetch it again. If you trust the "
            f"folder as it is: cd {sums.parent} && sha256sum * > {CHECKSUMS}"
        )
    parts = [line.partition("  ") for line in sums.read_text(errors="replace").splitlines()]
    return {PurePosixPath(name).name: digest for digest, _, name in parts}


def _read_config(path: Path) -> RunConfig:
    try:
        return parse_run_config(_read_json(path))
    except (ConfigError, *BROKEN) as error:
        raise CheckpointError(f"{path} is no configuration of a run: {error}") from error


def _read_weights(path: Path, *, n_codes: int) -> dict[str, Tensor]:
    weights = load_tensors(path)
    found = len(weights.get("encoder.embeddings.code.weight", ()))
    if found != n_codes:
        raise CheckpointError(
            f"{path.parent}: weights for {found} tokens beside a vocabulary of {n_codes}; they come from two runs"
        )
    try:
        check_tensors(weights)
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}; fetch the model again, or train it anew") from error
    return weights


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"cannot read {path.name} of the model in {path.parent}: {error}") from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = parse_json(_read_text(path))
    except ValueError as error:
        raise CheckpointError(f"cannot read {path.name} of the model in {path.parent}: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds no table")
    return value
