"""Runs read back from the tracking server: records, metrics, artifacts, and what a reference points at."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mlflow.exceptions import MlflowException

from ehrtrack.errors import TrackingError
from ehrtrack.tracking import names
from ehrtrack.tracking.client import registry
from ehrtrack.tracking.client.connection import client, redacted, tracking_errors, tracking_uri
from ehrtrack.tracking.client.experiments import every_experiment_id, pages

_RUN_ID = re.compile(r"[0-9a-f]{32}")

_log = logging.getLogger(__name__)


class MissingArtifact(TrackingError):
    """The server was reached, and the run has no such file."""


@dataclass(frozen=True)
class RunRecord:
    """A run as the server knows it.

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
    """What a reference such as ``models:/NAME@champion`` points at: a run and a folder of its artifacts.

    Attributes
    ----------
    digest : of a registered version, by which its folder is checked; else empty
    """

    run_id: str
    artifact_path: str
    digest: str = ""


@dataclass(frozen=True)
class FetchedModel:
    """A model folder that was fetched, and the run that made it."""

    run_id: str
    folder: Path


def get_run(run_id: str) -> RunRecord:
    """One run.

    Raises
    ------
    TrackingError
        If the server has no such run; the message says which server was asked.
    """
    try:
        return _record(client().get_run(run_id))
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise TrackingError(
                f"there is no run {run_id!r} on {redacted(tracking_uri())}; needed is the 32-digit id "
                "on a run's page, models:/NAME@champion or runs:/ID. Is MLFLOW_TRACKING_URI the server where "
                "it was made?"
            ) from error
        raise TrackingError(f"could not read run {run_id!r} on {redacted(tracking_uri())}: {error}") from error


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
    clauses = [f"tags.`{key}` = {_quoted(value)}" for key, value in wanted.items()]
    clauses += [f"params.`{names.PARAM_PREFIX}{key}` = {_quoted(value)}" for key, value in (params or {}).items()]
    if status is not None:
        clauses.append(f"attributes.status = {_quoted(status)}")
    return _found(f"search the runs of study {study!r}", clauses, kinds)


def all_runs(kinds: Sequence[str], condition: str) -> list[RunRecord]:
    """Runs of some kinds, or of any and none, that meet a condition in mlflow's filter language, oldest first."""
    return _found("search runs", [condition], kinds)


def _found(what: str, clauses: list[str], kinds: Sequence[str]) -> list[RunRecord]:
    """The runs in all experiments that meet all clauses and are of any of the kinds; of every kind if none is named."""
    # Tags know no IN, so each kind is a search of its own.
    kind_clauses = [[f"tags.`{names.KIND}` = {_quoted(kind)}"] for kind in dict.fromkeys(kinds)] or [[]]
    with tracking_errors(what):
        experiment_ids = every_experiment_id()
        found = [
            _record(run)
            for kind_clause in kind_clauses
            for run in pages(
                client().search_runs,
                experiment_ids=experiment_ids,
                filter_string=" and ".join(clauses + kind_clause),
            )
        ]
    return sorted(found, key=lambda record: (record.started, record.run_id))


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
        return sorted(_files_under(run_id, names.checked_artifact_path(path) if path else ""))


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
        siblings = {entry.path: entry.is_dir for entry in client().list_artifacts(run_id, parent or None)}
        files = [wanted]
        if wanted not in siblings:
            there = ", ".join(sorted(siblings)) or "none"
            raise MissingArtifact(f"run {run_id} has no artifact {wanted!r}; there: {there}")
        if siblings[wanted]:
            files = list(_files_under(run_id, wanted))
    with tracking_errors(f"download {wanted!r} of run {run_id}"):
        for file in files:
            folder = (destination / file).parent
            folder.mkdir(parents=True, exist_ok=True)
            client().download_artifacts(run_id, file, str(folder))
    return destination / wanted


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
    """How often a run was claimed; of runs of earlier versions only the tag knows."""
    numbers = [
        int(key.removeprefix(names.CLAIM_PARAM))
        for key in params
        if key.startswith(names.CLAIM_PARAM) and key[len(names.CLAIM_PARAM) :].isdigit()
    ]
    return max([int(tags.get(names.ATTEMPT, 0)), *numbers])


def _files_under(run_id: str, path: str) -> Iterator[str]:
    for entry in client().list_artifacts(run_id, path or None):
        inside = names.checked_artifact_path(entry.path)
        if path and not inside.startswith(f"{path}/"):
            raise TrackingError(f"the server lists {entry.path!r} under {path!r} of run {run_id}; nothing was fetched")
        if entry.is_dir:
            yield from _files_under(run_id, inside)
        else:
            yield inside


def _quoted(value: str) -> str:
    if "'" in value and '"' in value:
        raise TrackingError(f"{value!r} has both kinds of quotation marks, which the server cannot search for")
    return f'"{value}"' if "'" in value else f"'{value}'"


def _record(run: Any) -> RunRecord:
    prefix = names.PARAM_PREFIX
    tags = dict(run.data.tags)
    return RunRecord(
        run_id=run.info.run_id,
        name=run.info.run_name,
        study=tags.get(names.STUDY, ""),
        kind=tags.get(names.KIND, ""),
        status=run.info.status,
        params={k.removeprefix(prefix): v for k, v in run.data.params.items() if k.startswith(prefix)},
        metrics=names.present_metrics(run.data.metrics),
        tags=tags,
        started=_moment(run.info.start_time),
        ended=_moment(run.info.end_time) if run.info.end_time else None,
        experiment_id=run.info.experiment_id,
        parent_run_id=tags.get("mlflow.parentRunId"),
        attempt=attempt_of(tags, run.data.params),
    )


def _moment(milliseconds: int) -> datetime:
    return datetime.fromtimestamp(milliseconds / 1000, tz=UTC)
