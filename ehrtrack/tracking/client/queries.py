"""Read runs from the tracking server: records, metrics and artifacts; resolve references to models."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit

from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repo import ArtifactRepository
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.utils.file_utils import local_file_uri_to_path
from requests import RequestException

from ehrtrack.errors import TrackingError
from ehrtrack.tracking import names
from ehrtrack.tracking.client import registry
from ehrtrack.tracking.client.connection import client, is_remote, redacted, tracking_errors, tracking_uri
from ehrtrack.tracking.client.experiments import every_experiment_id, pages
from ehrtrack.tracking.client.listing import Found, Wanted, from_database, from_server, of_entity, quoted

_RUN_ID = re.compile(r"[0-9a-f]{32}")

_log = logging.getLogger(__name__)


class MissingArtifact(TrackingError):
    """The server answered that the run has no such file."""


class MissingRun(TrackingError):
    """The server answered that it has no such run."""


@dataclass(frozen=True)
class RunRecord:
    """A run as the server holds it.

    `params` are the resolved configuration, by dotted names without the ``cfg.`` prefix; the raw strings that
    ``mlflow run`` logs beside them are left out. `metrics` hold the last value of each. `attempt` counts the
    claims to the run, by processes that resumed it.
    """

    run_id: str
    name: str
    study: str
    kind: str
    status: str
    params: dict[str, str]
    metrics: dict[str, float]
    tags: dict[str, str]
    started: datetime
    ended: datetime | None
    experiment_id: str
    parent_run_id: str | None
    attempt: int = 0

    @property
    def duration_seconds(self) -> float | None:
        """Seconds from start to end, or None for a run that has not ended."""
        return (self.ended - self.started).total_seconds() if self.ended else None


@dataclass(frozen=True)
class ModelReference:
    """The run and the folder of its artifacts that a reference such as ``models:/NAME@champion`` stands for.

    Attributes
    ----------
    digest : of a registered version, by which its folder is checked; otherwise empty
    """

    run_id: str
    artifact_path: str
    digest: str = ""


@dataclass(frozen=True)
class FetchedModel:
    """A model folder that was fetched, and the run that made it."""

    run_id: str
    folder: Path


@dataclass(frozen=True)
class Place:
    """Where the files of a run lie, which never changes.

    Attributes
    ----------
    predictions_digest : SHA-256 of its test predictions; empty of runs from before it was a tag
    """

    artifact_uri: str
    predictions_digest: str


_places: dict[str, Place] = {}
"""Of the runs that this process has read."""


def get_run(run_id: str) -> RunRecord:
    """One run.

    Raises
    ------
    MissingRun
        If the server has no such run; the message says which server was asked.
    TrackingError
        If it does not answer.
    """
    try:
        return _record(of_entity(client().get_run(run_id)))
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise MissingRun(
                f"there is no run {run_id!r} on {redacted(tracking_uri())}; needed is the 32-digit id "
                "on a run's page, models:/NAME@champion or runs:/ID. Is MLFLOW_TRACKING_URI the server where "
                "it was made?"
            ) from error
        raise TrackingError(f"could not read run {run_id!r} on {redacted(tracking_uri())}: {error}") from error


def is_deleted(run_id: str) -> bool:
    """Whether a run is marked as deleted, so that ``mlflow gc`` removes it with its files."""
    with tracking_errors(f"read run {run_id}"):
        return str(client().get_run(run_id).info.lifecycle_stage) == "deleted"


def search_runs(
    study: str,
    *,
    kinds: Sequence[str] = (),
    status: str | None = "FINISHED",
    tags: Mapping[str, str] | None = None,
    params: Mapping[str, str] | None = None,
    parent_run_id: str | None = None,
) -> list[RunRecord]:
    """The runs of a study in all experiments, oldest first; all conditions are applied by the server.

    Parameters
    ----------
    kinds
        Any of these kinds; every kind if empty.
    status
        FINISHED, FAILED, KILLED, RUNNING, or None for all.
    params
        By dotted name, without the ``cfg.`` prefix.
    """
    wanted = {names.STUDY: study} | dict(tags or {})
    if parent_run_id is not None:
        wanted["mlflow.parentRunId"] = parent_run_id
    prefixed = {f"{names.PARAM_PREFIX}{key}": value for key, value in (params or {}).items()}
    conditions = Wanted(wanted, prefixed, kinds, status)
    filters = conditions.filters()  # a name that cannot be searched for is refused, whatever the store
    with tracking_errors(f"search the runs of study {study!r}"):
        if is_remote():
            found = from_server(tracking_uri(), every_experiment_id(), filters)
        else:
            found = from_database(client(), conditions)
    return _oldest_first(found)


def all_runs(kinds: Sequence[str], condition: str) -> list[RunRecord]:
    """Runs of some kinds, or all runs, that meet a condition in mlflow's filter language, oldest first."""
    filters = [f"{condition} and {of_kind}" if of_kind else condition for of_kind in Wanted({}, kinds=kinds).filters()]
    with tracking_errors("search runs"):
        experiment_ids = every_experiment_id()
        if is_remote():
            return _oldest_first(from_server(tracking_uri(), experiment_ids, filters))
        searches = (pages(client().search_runs, experiment_ids=experiment_ids, filter_string=each) for each in filters)
        return _oldest_first([of_entity(run) for search in searches for run in search])


def experiment_of_study(study: str = "") -> str | None:
    """The experiment with the last run of a study, or of any study if none is named; None if there is no run at all.

    Raises
    ------
    TrackingError
        If there is no run of the study that is named.
    """
    condition = f"tags.`{names.STUDY}` = {quoted(study)}" if study else f"tags.`{names.STUDY}` != ''"
    with tracking_errors("look for the last run"):
        order = ["attributes.start_time DESC"]
        last = client().search_runs(every_experiment_id(), condition, order_by=order, max_results=1)
    if study and not last:
        raise TrackingError(
            f"there is no run of study {study!r} on {redacted(tracking_uri())}; is MLFLOW_TRACKING_URI the server "
            "where it was run, or is this another folder?"
        )
    return str(last[0].info.experiment_id) if last else None


def _oldest_first(found: list[Found]) -> list[RunRecord]:
    return sorted(map(_record, found), key=lambda record: (record.started, record.run_id))


def metric_history(run_id: str, key: str) -> dict[int, float]:
    """All values of one metric by step (epoch), in order; empty if it was never logged."""
    with tracking_errors(f"read metric {key!r} of run {run_id}"):
        history = client().get_metric_history(run_id, key)
    return {row.step: row.value for row in sorted(history, key=lambda row: (row.step, row.timestamp))}


def list_artifacts(run_id: str, path: str = "") -> list[str]:
    """The paths of all files under a run's artifact folder, sorted.

    Raises
    ------
    TrackingError
        If the server names a path outside that folder.
    """
    with tracking_errors(f"list the artifacts of run {run_id}"):
        return sorted(_files_under(artifact_store(run_id), run_id, names.checked_artifact_path(path) if path else ""))


def download(run_id: str, path: str, destination: Path) -> Path:
    """Fetch an artifact file or folder; returns where it now lies, ``destination / path``.

    Neither `path` nor a name that the server lists may lead out of `destination`.

    Raises
    ------
    MissingArtifact
        If there is no such artifact; the message lists those there are.
    TrackingError
        If a path would escape, or the server does not answer.
    """
    wanted = names.checked_artifact_path(path)
    parent, _, _ = wanted.rpartition("/")
    with tracking_errors(f"list the artifacts of run {run_id}"):
        store = artifact_store(run_id)
        siblings = {entry.path: entry.is_dir for entry in store.list_artifacts(parent or None)}
        files = [wanted]
        if wanted not in siblings:
            there = ", ".join(sorted(siblings)) or "none"
            raise MissingArtifact(f"run {run_id} has no artifact {wanted!r}; there: {there}")
        if siblings[wanted]:
            files = list(_files_under(store, run_id, wanted))
    with tracking_errors(f"download {wanted!r} of run {run_id}"):
        for file in files:
            (destination / file).parent.mkdir(parents=True, exist_ok=True)
            store._download_file(file, str(destination / file))  # type: ignore[no-untyped-call]
    return destination / wanted


def fetch_file(run_id: str, path: str, destination: Path) -> Path:
    """Fetch one file of a run with a single request, or find it on this machine; otherwise as `download`.

    Returns
    -------
    Where it lies: under `destination`, or in a store of this machine, where it is not to be written to.

    Raises
    ------
    MissingArtifact
        If there is no such file; the message lists those there are.
    TrackingError
        If the path would escape, or the server does not answer.
    """
    wanted = names.checked_artifact_path(path)
    root = place_of(run_id).artifact_uri
    if not urlsplit(root).scheme or root.startswith("file:"):
        there = Path(local_file_uri_to_path(root)) / wanted  # type: ignore[no-untyped-call]
        return there if there.is_file() else download(run_id, path, destination)
    file = destination / wanted
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        artifact_store(run_id)._download_file(wanted, str(file))  # type: ignore[no-untyped-call]
    except (MlflowException, RequestException, OSError) as error:
        _log.debug("%s of run %s: %s", wanted, run_id, error)  # the long way says what is wrong with it
        return download(run_id, path, destination)
    return file


def artifact_store(run_id: str) -> ArtifactRepository:
    """The folder of a run's artifacts; the server is asked where it is if this process has not read the run before.

    mlflow's client reads the run up to four times for each file.
    """
    if run_id not in _places:
        _record(of_entity(client().get_run(run_id)))
    return get_artifact_repository(_places[run_id].artifact_uri, tracking_uri=tracking_uri())


def place_of(run_id: str) -> Place:
    """Where the files of a run lie; the server is asked if this process has not read the run before."""
    if run_id not in _places:
        get_run(run_id)
    return _places[run_id]


def resolve_run(reference: str) -> ModelReference:
    """The run and model folder behind a reference.

    It is a run id, ``runs:/ID[/FOLDER]``, ``models:/NAME@ALIAS`` or ``models:/NAME/3``.

    Raises
    ------
    TrackingError
        If it has none of these forms, or the server knows no such run, model, version or alias.
    """
    if reference.startswith("models:/"):
        version = registry.find_version(reference)
        return ModelReference(version.run_id, version.artifact_path, version.digest)
    run_id, _, folder = reference.removeprefix("runs:/").strip("/").partition("/")
    if not _RUN_ID.fullmatch(run_id):
        raise TrackingError(
            f"{reference!r} names no run; needed is a run id (32 hexadecimal digits), runs:/ID, "
            "models:/NAME@champion or models:/NAME/VERSION"
        )
    get_run(run_id)
    return ModelReference(run_id, names.checked_artifact_path(folder) if folder else names.MODEL_ARTIFACTS)


def fetch_model(reference: str, destination: Path) -> FetchedModel:
    """Fetch the model folder behind a reference, as `resolve_run` reads it.

    A registered version is read from its own files, and only if they are those that were registered; whatever became
    of its run's folder since does not matter.

    Raises
    ------
    TrackingError
        If there is no such model.
    CheckpointError
        If a file of a registered version is missing, changed or added.
    """
    found = resolve_run(reference)
    folder = download(found.run_id, found.artifact_path, destination)
    if not reference.startswith("models:/"):
        return FetchedModel(found.run_id, folder)
    if found.digest:
        registry.check_seal(folder, found.digest, name=reference)
    else:
        _log.warning("%s was registered before versions carried a hash: its files cannot be checked", reference)
    stored = folder / registry.CONTENT
    return FetchedModel(found.run_id, next(stored.iterdir()) if stored.is_dir() else folder)


def attempt_of(tags: Mapping[str, str], params: Mapping[str, str]) -> int:
    """How often a run was claimed; runs of earlier versions record it in the tag alone."""
    numbers = [
        int(key.removeprefix(names.CLAIM_PARAM))
        for key in params
        if key.startswith(names.CLAIM_PARAM) and key[len(names.CLAIM_PARAM) :].isdigit()
    ]
    return max([int(tags.get(names.ATTEMPT, 0)), *numbers])


def _files_under(store: ArtifactRepository, run_id: str, path: str) -> Iterator[str]:
    for entry in store.list_artifacts(path or None):
        inside = names.checked_artifact_path(entry.path)
        if path and not inside.startswith(f"{path}/"):
            raise TrackingError(f"the server lists {entry.path!r} under {path!r} of run {run_id}; nothing was fetched")
        if entry.is_dir:
            yield from _files_under(store, run_id, inside)
        else:
            yield inside


def _record(run: Found) -> RunRecord:
    prefix, tags = names.PARAM_PREFIX, run.tags
    _places[run.run_id] = Place(run.artifact_uri, tags.get(names.PREDICTIONS_DIGEST, ""))
    return RunRecord(
        run_id=run.run_id,
        name=run.name,
        study=tags.get(names.STUDY, ""),
        kind=names.present_kind(tags.get(names.KIND, "")),
        status=run.status,
        params={sys.intern(k.removeprefix(prefix)): v for k, v in run.params.items() if k.startswith(prefix)},
        metrics=names.present_metrics(run.metrics),
        tags=tags,
        started=_moment(run.start_ms),
        ended=_moment(run.end_ms) if run.end_ms else None,
        experiment_id=run.experiment_id,
        parent_run_id=tags.get("mlflow.parentRunId"),
        attempt=attempt_of(tags, run.params),
    )


def _moment(milliseconds: int) -> datetime:
    return datetime.fromtimestamp(milliseconds / 1000, tz=UTC)
