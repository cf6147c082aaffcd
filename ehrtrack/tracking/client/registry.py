"""The model registry: versions of a study's model, and the alias `champion`."""

from __future__ import annotations

import logging
import re
import tempfile
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, DataType, Schema
from mlflow.utils.yaml_utils import read_yaml

from ehrtrack.errors import CheckpointError, TrackingError
from ehrtrack.files import sha256_of
from ehrtrack.tracking import names
from ehrtrack.tracking.client.connection import client, redacted, tracking_errors, tracking_uri

CHAMPION = "champion"
CONTENT = "artifacts"
"""The part of a stored model in which nothing may be added; mlflow itself writes files beside it."""

_REFERENCE = re.compile(r"models:/(?P<name>[^/@]+)(@(?P<alias>[^/@]+)|/(?P<version>\d+))")
_META = "registered_model_meta"  # what mlflow calls the file with a fetched model's name and version
_REQUIREMENTS = ("mlflow", "numpy", "pandas", "peft", "polars", "pyarrow", "pydantic", "safetensors", "torch")

_log = logging.getLogger(__name__)

_SIGNATURE = ModelSignature(
    inputs=Schema(
        [
            ColSpec(DataType.long, "subject_id"),
            ColSpec(DataType.datetime, "prediction_time"),
            ColSpec(DataType.datetime, "time"),  # empty for static facts
            ColSpec(DataType.string, "code"),
            ColSpec(DataType.double, "numeric_value", required=False),
        ]
    ),
    outputs=Schema(
        [
            ColSpec(DataType.long, "subject_id"),
            ColSpec(DataType.datetime, "prediction_time"),
            ColSpec(DataType.string, "cause", required=False),  # of a model that tells causes apart
            ColSpec(DataType.double, "risk", required=False),  # none where there is a reason
            ColSpec(DataType.string, "reason", required=False),
        ]
    ),
)


@dataclass(frozen=True)
class ModelVersion:
    """A version of a registered model, and the run that made it.

    Attributes
    ----------
    source : where its files are; can never change
    """

    name: str
    version: str
    run_id: str
    tags: dict[str, str]
    source: str = ""

    @property
    def uri(self) -> str:
        """``models:/NAME/VERSION``."""
        return f"models:/{self.name}/{self.version}"

    @property
    def artifact_path(self) -> str:
        """The folder of the run's artifacts that is this version; the model's own where it was registered otherwise."""
        prefix = f"runs:/{self.run_id}/"
        return self.source.removeprefix(prefix) if self.source.startswith(prefix) else names.MODEL_ARTIFACTS

    @property
    def digest(self) -> str:
        """SHA-256 of the list of its files' SHA-256; empty for a version from before there were digests."""
        folder, _, digest = self.artifact_path.partition("/")
        return digest if folder == names.REGISTERED_ARTIFACTS else ""


def log_and_register_model(
    run_id: str,
    model_folder: Path,
    name: str,
    *,
    description: str = "",
    tags: Mapping[str, str] | None = None,
) -> ModelVersion:
    """Store the model of a run so that ``mlflow models serve`` can load it, and register it as the next version.

    The folder's files travel as they are (safetensors and JSON) beside the code that reads them; nothing is
    pickled. They lie in a folder of the version's own, named by the digest that `fetch_model` and serving check.
    A run that is already a version of this model stays that one version.

    Parameters
    ----------
    model_folder
        A local folder that ``ehrtrack.recipes.predict.load_predictor`` can read.
    name
        The registered model, made if there is none.
    """
    known = _version_of_run(name, run_id)
    if known is not None:
        return known
    with tempfile.TemporaryDirectory(prefix="ehrtrack-") as folder:
        stored = Path(folder) / names.REGISTERED_ARTIFACTS
        _save_pyfunc(model_folder, stored)
        digest = seal(stored)
        path = f"{names.REGISTERED_ARTIFACTS}/{digest}"
        with tracking_errors(f"register run {run_id} as model {name!r}"):
            client().log_artifacts(run_id, str(stored), path)
            _ensure_model(name)
            made = client().create_model_version(
                name,
                source=f"runs:/{run_id}/{path}",
                run_id=run_id,
                description=description,
                await_creation_for=0,  # a database registers at once; waiting only prints a line
                tags=dict(tags or {}) | {names.VERSION_DIGEST: digest},
            )
    return _version(made)


def set_champion(name: str, version: str) -> None:
    """Point ``models:/NAME@champion`` at a version."""
    with tracking_errors(f"make version {version} the champion of model {name!r}"):
        client().set_registered_model_alias(name, CHAMPION, version)


def move_champion(version: ModelVersion) -> None:
    """Make a version the champion, and note on the model that it was not set by hand."""
    with tracking_errors(f"note the champion of model {version.name!r}"):
        client().set_registered_model_tag(version.name, names.SET_CHAMPION, version.version)
    set_champion(version.name, version.version)


def present_champion(name: str) -> ModelVersion | None:
    """The champion as `champion` finds it; None if there is no champion or no such model."""
    with tracking_errors(f"look up model {name!r}"):
        aliases = [model.aliases for model in client().search_registered_models(f"name = '{name}'")]
    return champion(name) if aliases and CHAMPION in aliases[0] else None


def why_champion_stays(proposed: ModelVersion, present: ModelVersion | None) -> str | None:
    """Why the alias must not be moved to the proposed version, and what would allow it; None if it may be moved.

    It may be moved if nobody pinned the model or its champion, and there is no champion or `move_champion` made it from
    the same cohort.
    """
    name = proposed.name
    by_hand = f"MlflowClient().set_registered_model_alias({name!r}, {CHAMPION!r}, {proposed.version!r})"
    with tracking_errors(f"look up model {name!r}"):
        tags = client().get_registered_model(name).tags
    if _is_pinned(tags) or (present is not None and _is_pinned(present.tags)):
        return f"it is pinned by the tag {names.PINNED}; delete the tag and compare again, or {by_hand}"
    if present is None or present.version == proposed.version:
        return None
    if tags.get(names.SET_CHAMPION) != present.version:
        return (
            "its alias was set by hand, or before comparisons noted what they set; delete the alias and compare again, "
            f"or {by_hand}"
        )
    if cohort_of(present) != cohort_of(proposed):
        return (
            f"it is of another cohort than the proposed version, and their scores do not compare; {by_hand}, or give "
            "each cohort a registry.model of its own"
        )
    return None


def _is_pinned(tags: Mapping[str, str]) -> bool:
    return tags.get(names.PINNED, "false").lower() != "false"


def cohort_of(version: ModelVersion) -> str:
    """Fingerprint of the cohort of the version's run; if the run is gone, the one noted on the version."""
    noted = version.tags.get(names.COHORT, "unknown")
    try:
        return str(client().get_run(version.run_id).data.tags.get(names.COHORT, noted))
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise TrackingError(f"could not read run {version.run_id}, of {version.uri}: {error}") from error
        return noted


def champion(name: str) -> ModelVersion:
    """The version that ``models:/NAME@champion`` points at."""
    return find_version(f"models:/{name}@{CHAMPION}")


def find_version(reference: str) -> ModelVersion:
    """Look up ``models:/NAME@ALIAS`` or ``models:/NAME/VERSION``.

    Raises
    ------
    TrackingError
        If it has neither form, or there is no such model, version or alias; the message lists what there is.
    """
    match = _REFERENCE.fullmatch(reference)
    if match is None:
        raise TrackingError(f"{reference!r} names no model; needed is models:/NAME@champion or models:/NAME/VERSION")
    name, alias, version = match["name"], match["alias"], match["version"]
    try:
        found = client().get_model_version_by_alias(name, alias) if alias else client().get_model_version(name, version)
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise TrackingError(f"could not look up {reference} on {redacted(tracking_uri())}: {error}") from error
        raise TrackingError(
            f"there is no {reference} on {redacted(tracking_uri())}; {_what_there_is(name)}. "
            "`ehrtrack compare` registers a study's best model as champion"
        ) from error
    return _version(found)


def check_served(folder: Path) -> None:
    """Check that a folder that mlflow fetched for serving is the version that was registered.

    mlflow leaves a file in it that names model and version; the registry is then asked for the digest. Where there is
    no such file, or no registry to ask, the files are only compared with the list beside them, with a warning.

    Raises
    ------
    CheckpointError
        If a file is missing, changed or added.
    """
    version = _version_beside(folder)
    name, digest = (version.uri, version.digest) if version else (f"the model in {folder}", "")
    if digest or (folder / names.CHECKSUMS).is_file():
        check_seal(folder, digest, name=name)
    else:
        _log.warning("%s was registered before versions carried a hash: it cannot be checked", name)


def seal(folder: Path) -> str:
    """Write the list of a folder's files, as ``sha256sum -c`` reads it; returns the list's SHA-256."""
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    lines = [f"{sha256_of(file)}  {file.relative_to(folder).as_posix()}\n" for file in files]
    (folder / names.CHECKSUMS).write_text("".join(lines))
    return sha256_of(folder / names.CHECKSUMS)


def check_seal(folder: Path, digest: str, *, name: str) -> None:
    """Check that a folder is the one for which `seal` returned this digest.

    Parameters
    ----------
    digest : empty where it is not known, and the files are only compared with the list beside them
    name : what the folder is called in a message

    Raises
    ------
    CheckpointError
        With the first file that is missing, changed or added.
    """
    sums = folder / names.CHECKSUMS
    if not sums.is_file():
        raise _broken(name, names.CHECKSUMS, "is missing")
    if digest and sha256_of(sums) != digest:
        raise _broken(name, names.CHECKSUMS, "was changed")
    listed = {path: line for line, _, path in (row.partition("  ") for row in sums.read_text().splitlines())}
    for path, wanted in listed.items():
        if not (folder / path).is_file():
            raise _broken(name, path, "is missing")
        if sha256_of(folder / path) != wanted:
            raise _broken(name, path, "was changed")
    for file in sorted((folder / CONTENT).rglob("*")):
        path = file.relative_to(folder).as_posix()
        if not file.is_dir() and path not in listed:
            raise _broken(name, path, "was added")


def _version_beside(folder: Path) -> ModelVersion | None:
    if not (folder / _META).is_file():
        return None
    named = read_yaml(str(folder), _META)  # type: ignore[no-untyped-call]
    try:
        return find_version(f"models:/{named['model_name']}/{named['model_version']}")
    except TrackingError as error:
        _log.warning("the model in %s is compared with its own list of files alone: %s", folder, error)
        return None


def _what_there_is(name: str) -> str:
    with tracking_errors("list the registered models"):
        models = {model.name: model for model in client().search_registered_models()}
    if name not in models:
        return f"models there are: {', '.join(sorted(models)) or 'none'}"
    with tracking_errors(f"list the versions of model {name!r}"):
        mark = '"' if "'" in name else "'"
        versions = [version.version for version in client().search_model_versions(f"name = {mark}{name}{mark}")]
    aliases = ", ".join(sorted(models[name].aliases)) or "none"
    numbers = ", ".join(sorted(map(str, versions), key=int)) or "none"
    return f"model {name!r} has versions {numbers}; aliases: {aliases}"


def _version_of_run(name: str, run_id: str) -> ModelVersion | None:
    with tracking_errors(f"look up model {name!r}"):
        versions = client().search_model_versions(f"run_id = '{run_id}'")
    return next((_version(version) for version in versions if version.name == name), None)


def _ensure_model(name: str) -> None:
    try:
        client().create_registered_model(
            name,
            description="Survival models on event histories, registered by EHRTrack. "
            f"`ehrtrack predict --model models:/{name}@{CHAMPION}` scores a MEDS dataset with the best one.",
        )
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _save_pyfunc(model_folder: Path, target: Path) -> None:
    with warnings.catch_warnings():
        # About type hints: of mlflow's own classes on import, and of ours, which has an explicit signature.
        warnings.filterwarnings("ignore", message=".*[Tt]ype hint")
        warnings.filterwarnings("ignore", message=".*An input example was not provided")
        import mlflow.pyfunc

        mlflow.pyfunc.save_model(
            path=target,
            python_model=str(Path(__file__).with_name("model_code.py")),
            artifacts={names.MODEL_ARTIFACTS: str(model_folder)},
            signature=_SIGNATURE,
            pip_requirements=[f"{package}=={metadata.version(package)}" for package in _REQUIREMENTS],
        )


def _version(found: Any) -> ModelVersion:
    return ModelVersion(found.name, str(found.version), found.run_id, dict(found.tags), found.source)


def _broken(name: str, path: str, what: str) -> CheckpointError:
    return CheckpointError(
        f"{name} is not what was registered: {path} {what} in the store since then. It is not used: bring "
        "the store's files back from a backup, or fit the model again and register that run"
    )
