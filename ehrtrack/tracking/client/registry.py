"""The model registry: versions of a study's model, and the alias `champion`."""

from __future__ import annotations

import logging
import re
import tempfile
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, DataType, Schema
from mlflow.utils.yaml_utils import read_yaml

from ehrtrack.errors import CheckpointError, TrackingError
from ehrtrack.files import sha256_of
from ehrtrack.tracking import names
from ehrtrack.tracking.client.connection import client, redacted, tracking_errors, tracking_uri
from ehrtrack.tracking.client.experiments import pages
from ehrtrack.tracking.client.wheel import pinned_requirements, write_wheel

if TYPE_CHECKING:
    import pandas as pd

CHAMPION = "champion"
CONTENT = "artifacts"
"""The part of a stored model in which nothing may be added; mlflow itself writes files beside it."""

_REFERENCE = re.compile(r"models:/(?P<name>[^/@]+)(@(?P<alias>[^/@]+)|/(?P<version>\d+))")
_META = "registered_model_meta"  # what mlflow calls the file with a fetched model's name and version
_CODE = "code"  # what mlflow calls the folder of code beside a model, which it puts on Python's path

MOST_DESCRIPTION = 5000
"""Characters of a version's description that the registry's column holds."""
_MORE = "\nThe rest is in model_card.md, among the files of this version.\n"

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
    def is_adapter(self) -> bool:
        """Whether it is an adapter alone, which is loaded on a base."""
        return names.BASE in self.tags

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
    texts: Mapping[str, str] | None = None,
    input_example: pd.DataFrame | None = None,
) -> ModelVersion:
    """Store the model of a run so that ``mlflow models serve`` can load it, and register it as the next version.

    The folder's files travel as they are (safetensors and JSON) beside the code that reads them, the package itself as
    a wheel, and the requirements, so that the server's address is all that a machine needs; nothing is pickled. They
    lie in a folder of the version's own, named by the digest that `fetch_model` and serving check.
    A run that is already a version of this model stays that one; an adapter alone may have one beside it that stands
    alone.

    Parameters
    ----------
    model_folder
        A local folder that ``ehrtrack.pipeline.predictor.load_predictor`` can read.
    name
        The registered model, made if there is none.
    description
        In Markdown; what is longer than the registry holds is cut at a line.
    texts
        Files to keep beside the model, by name, such as its card.
    input_example
        Rows as `model_code.SurvivalModel.predict` takes them.
    """
    for known in versions_of_run(name, run_id):
        if known.is_adapter == (names.BASE in (tags or {})):
            return known
    with tempfile.TemporaryDirectory(prefix="ehrtrack-") as folder:
        stored = Path(folder) / names.REGISTERED_ARTIFACTS
        _save_pyfunc(model_folder, stored, input_example)
        for file, text in (texts or {}).items():
            (stored / file).write_text(text, encoding="utf-8")
        digest = seal(stored)
        path = f"{names.REGISTERED_ARTIFACTS}/{digest}"
        with tracking_errors(f"register run {run_id} as model {name!r}"):
            client().log_artifacts(run_id, str(stored), path)
            _ensure_model(name)
            made = client().create_model_version(
                name,
                source=f"runs:/{run_id}/{path}",
                run_id=run_id,
                description=_cut(description),
                await_creation_for=0,  # a database registers at once; waiting only prints a line
                tags=dict(tags or {}) | {names.VERSION_DIGEST: digest},
            )
    return _version(made)


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
            "`ehrtrack compare` registers a study's best model as champion, `ehrtrack promote RUN` a run's"
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


def registered_models() -> dict[str, dict[str, str]]:
    """Name of each registered model -> alias -> version."""
    with tracking_errors("list the registered models"):
        found = pages(client().search_registered_models)
        return {model.name: {alias: str(of) for alias, of in model.aliases.items()} for model in found}


def versions_of(name: str) -> list[ModelVersion]:
    """All versions of a registered model, in no order."""
    with tracking_errors(f"list the versions of model {name!r}"):
        mark = '"' if "'" in name else "'"
        found = pages(client().search_model_versions, filter_string=f"name = {mark}{name}{mark}")
        return [_version(version) for version in found if version.name == name]


def _what_there_is(name: str) -> str:
    models = registered_models()
    if name not in models:
        return f"models there are: {', '.join(sorted(models)) or 'none'}"
    aliases = ", ".join(sorted(models[name])) or "none"
    numbers = ", ".join(sorted((version.version for version in versions_of(name)), key=int)) or "none"
    return f"model {name!r} has versions {numbers}; aliases: {aliases}"


def versions_of_run(name: str, run_id: str) -> list[ModelVersion]:
    """The versions of model `name` that a run is, the last first."""
    with tracking_errors(f"look up model {name!r}"):
        found = client().search_model_versions(f"run_id = '{run_id}'")
    versions = [_version(version) for version in found if version.name == name]
    return sorted(versions, key=lambda version: -int(version.version))


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


def _save_pyfunc(model_folder: Path, target: Path, input_example: pd.DataFrame | None) -> None:
    with warnings.catch_warnings(), tempfile.TemporaryDirectory(prefix="ehrtrack-") as folder:
        # About type hints: of mlflow's own classes on import, and of ours, which has an explicit signature.
        warnings.filterwarnings("ignore", message=".*[Tt]ype hint")
        warnings.filterwarnings("ignore", message=".*An input example was not provided")
        import mlflow.pyfunc

        wheel = write_wheel(Path(folder))
        mlflow.pyfunc.save_model(
            path=target,
            python_model=str(Path(__file__).with_name("model_code.py")),
            artifacts={names.MODEL_ARTIFACTS: str(model_folder)},
            signature=_SIGNATURE,
            input_example=input_example,
            code_paths=[str(wheel)],
            pip_requirements=[*pinned_requirements(), f"{_CODE}/{wheel.name}"],
        )


def _cut(description: str) -> str:
    """As much as the registry holds, in whole lines."""
    if len(description) <= MOST_DESCRIPTION:
        return description
    kept = description[: MOST_DESCRIPTION - len(_MORE)]
    return kept[: kept.rfind("\n") + 1] + _MORE


def _version(found: Any) -> ModelVersion:
    return ModelVersion(found.name, str(found.version), found.run_id, dict(found.tags), found.source)


def _broken(name: str, path: str, what: str) -> CheckpointError:
    return CheckpointError(
        f"{name} is not what was registered: {path} {what} in the store since then. It is not used: bring "
        "the store's files back from a backup, or fit the model again and register that run"
    )
