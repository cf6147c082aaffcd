"""An adapter and the base that it is loaded on: where the base is, whether it is the one, and the model of both.

A registered version of a run with an adapter keeps the adapter alone, and of its base the address and the SHA-256. The
base is fetched once to a machine, and is in memory once for all adapters that are read with one `Bases`.
"""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from weakref import WeakValueDictionary

from torch import Tensor, nn

from ehrtrack import plugins
from ehrtrack.config import RunConfig
from ehrtrack.errors import CheckpointError, ConfigError, TrackingError
from ehrtrack.files import BROKEN, parse_json, sha256_of, written_aside
from ehrtrack.home import VARIABLE, home
from ehrtrack.models.behrt import EhrModel
from ehrtrack.models.encoders import new_encoder
from ehrtrack.models.record_columns import Levels
from ehrtrack.objectives.base import OutcomeObjective
from ehrtrack.pipeline.model_files import ADAPTER_WEIGHTS, BASE, WEIGHTS
from ehrtrack.strategies.base import strategy_of
from ehrtrack.tracking.client.queries import MissingArtifact, download, get_run, is_deleted
from ehrtrack.training.checkpoint import check_tensors, load_tensors, weights_fingerprint

ENCODER = "encoder."
HEAD = "base_model.model.head."  # what peft calls it in an adapter's file

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class BaseRecord:
    """What an adapter is loaded on, as the file `BASE` of its model folder says.

    Attributes
    ----------
    model : address of the base's model folder, ``runs:/ID/model``
    fingerprint : of the tensors of its encoder (`weights_fingerprint`)
    sha256 : of its file of weights
    n_bytes : of that file
    adapter_run : the run whose adapter this is
    """

    model: str
    fingerprint: str
    sha256: str
    n_bytes: int
    adapter_run: str

    @property
    def run_id(self) -> str:
        """The run that the base is the model of."""
        return self.model.removeprefix("runs:/").partition("/")[0]

    @property
    def artifact(self) -> str:
        """The path of the file of weights among that run's artifacts."""
        return f"{self.model.removeprefix('runs:/').partition('/')[2]}/{WEIGHTS}"

    def write(self, folder: Path) -> None:
        """Write it into a model folder."""
        (folder / BASE).write_text(json.dumps(asdict(self), indent=2))

    @classmethod
    def read(cls, folder: Path) -> BaseRecord:
        """That of a model folder.

        Raises
        ------
        CheckpointError
            If the file is none.
        """
        file = folder / BASE
        try:
            found = cls(**parse_json(file.read_bytes()))
            if len(found.sha256) != 64 or not set(found.sha256) <= set("0123456789abcdef"):
                raise ValueError(f"{found.sha256!r} is no SHA-256")
        except (OSError, *BROKEN) as error:
            raise CheckpointError(f"{file} does not say what the adapter's base is: {error}") from error
        return found


class EncoderWeights(dict[str, Tensor]):
    """The tensors of a base's encoder by name; a class of its own, as nothing refers weakly to a plain dict."""


@dataclass
class Bases:
    """Bases of adapters, each held once: on this machine's disk, named by its SHA-256, and in memory.

    In memory a base stays for as long as somebody holds what `encoder_weights` gave: so a champion that moves from
    base to base leaves none behind.

    Attributes
    ----------
    folder : on disk; by default ``bases`` in the folder that all of a user's working folders share (`home`)
    """

    folder: Path | None = None
    _encoders: WeakValueDictionary[str, EncoderWeights] = field(default_factory=WeakValueDictionary, repr=False)
    _reading: threading.Lock = field(default_factory=threading.Lock, repr=False)  # two that move at once, to one base

    def encoder_weights(self, base: BaseRecord) -> EncoderWeights:
        """The tensors of a base's encoder: the same objects for the same base while somebody holds them.

        Raises
        ------
        TrackingError
            If it is neither here nor on the tracking server.
        CheckpointError
            If it is not the base that the adapter was trained on.
        """
        with self._reading:
            held = self._encoders.get(base.sha256)
            if held is None:
                held = self._encoders[base.sha256] = self._read(base)
            return held

    def _read(self, base: BaseRecord) -> EncoderWeights:
        weights = load_tensors(self.fetch(base))
        encoder = {name.removeprefix(ENCODER): of for name, of in weights.items() if name.startswith(ENCODER)}
        found = weights_fingerprint(encoder)
        if found != base.fingerprint:
            raise CheckpointError(
                f"the adapter of run {base.adapter_run} was trained on an encoder with the fingerprint "
                f"{base.fingerprint}, and that of {base.model} has {found}; {_merge(base)}"
            )
        return EncoderWeights(_checked(encoder, base.model))

    def fetch(self, base: BaseRecord) -> Path:
        """The base's file of weights on this machine; it is fetched if it is not there, or is no longer what it was."""
        folder = self.folder or home() / "bases"
        file = folder / f"{base.sha256}.safetensors"
        if file.is_file():
            if sha256_of(file) == base.sha256:
                return file
            _log.warning("%s was changed since it was fetched: it is fetched again", file)
        with tempfile.TemporaryDirectory(prefix="ehrtrack-") as aside:
            fetched = _download(base, Path(aside))
            try:
                folder.mkdir(parents=True, exist_ok=True)
                with written_aside(file) as target:
                    shutil.copyfile(fetched, target)
            except OSError as error:
                raise ConfigError(
                    f"the base of an adapter is kept in {folder}, where nothing can be written ({error.strerror}); set "
                    f"{VARIABLE} to a folder that you may write to"
                ) from error
        return file


def is_adapter(folder: Path) -> bool:
    """Whether a model folder holds an adapter alone, and not whole weights."""
    return (folder / BASE).is_file()


def on_base(folder: Path, config: RunConfig, levels: Levels, encoder_weights: Mapping[str, Tensor]) -> nn.Module:
    """The model of an adapter and its base, with the base's tensors themselves and not copies of them.

    Parameters
    ----------
    folder : model folder with an adapter
    config : of the adapter's run
    levels : of the vocabulary's values
    encoder_weights : of the base, as `Bases` gives them

    Raises
    ------
    CheckpointError
        If the adapter does not fit the base.
    """
    tensors = adapter_weights(folder)
    try:
        model = plain_model(config, levels, tensors, objective=config.objective.name)
        model.encoder.load_state_dict(encoder_weights, assign=True)
        return strategy_of(config.strategy).load_adapter(model, tensors).eval()
    except (RuntimeError, KeyError, ValueError, TypeError) as error:
        raise CheckpointError(f"the adapter in {folder} and its base do not fit: {error}") from error


def merged_weights(folder: Path, config: RunConfig, levels: Levels, bases: Bases) -> dict[str, Tensor]:
    """The tensors of a plain model that predicts as `on_base`.

    Raises
    ------
    TrackingError
        If the base is nowhere to be had.
    CheckpointError
        If it is another one, or the adapter does not fit it.
    """
    of_base = bases.encoder_weights(BaseRecord.read(folder))
    return dict(strategy_of(config.strategy).merge(on_base(folder, config, levels, of_base)).state_dict())


def plain_model(config: RunConfig, levels: Levels, adapter: Mapping[str, Tensor], *, objective: str) -> EhrModel:
    """An encoder of random weights, and a head of the adapter's parts and shapes."""
    encoder = new_encoder(config.model, levels, may_lack_age=config.data.may_lack_age)
    rebuild = plugins.plugin("objectives", objective, OutcomeObjective).rebuild
    return EhrModel(encoder, rebuild(head_weights(adapter), width=encoder.width).head)


def adapter_weights(folder: Path) -> dict[str, Tensor]:
    """The tensors of an adapter, by peft's names."""
    return _checked(load_tensors(folder / ADAPTER_WEIGHTS), str(folder / ADAPTER_WEIGHTS))


def head_weights(adapter: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of the head among those of an adapter, by the head's own names."""
    return {name.removeprefix(HEAD): tensor for name, tensor in adapter.items() if name.startswith(HEAD)}


def _download(base: BaseRecord, folder: Path) -> Path:
    """The base's file of weights from the tracking server, after looking at its hash."""
    try:
        get_run(base.run_id)
        file = download(base.run_id, base.artifact, folder)
    except TrackingError as error:
        gone = "has no such file any more" if isinstance(error, MissingArtifact) else "cannot be read"
        raise TrackingError(
            f"the model of run {base.adapter_run} is an adapter, and its base {base.model} {gone} ({error}). Was that "
            f"run deleted? {_merge(base)}"
        ) from error
    if is_deleted(base.run_id):
        _log.warning(
            "run %s, the base of the adapter of run %s, is marked as deleted: the next `mlflow gc` removes it. "
            "`mlflow runs restore --run-id %s` keeps it",
            *(base.run_id, base.adapter_run, base.run_id),
        )
    if sha256_of(file) != base.sha256:
        raise CheckpointError(
            f"{base.artifact} of run {base.run_id}, the base of the adapter of run {base.adapter_run}, was changed "
            f"since that was registered. It is not used; {_merge(base)}"
        )
    return file


def _merge(base: BaseRecord) -> str:
    return (
        f"`ehrtrack promote {base.adapter_run} --merge` makes a version that needs no base, from the whole model that "
        "the adapter's own run keeps"
    )


def _checked(tensors: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    try:
        check_tensors(tensors)
    except ValueError as error:
        raise CheckpointError(f"{name}: {error}; fetch the model again, or train it anew") from error
    return tensors
