"""Register the run of a journal on the server: found by its key or by mlflow's id, and created at most once."""

from __future__ import annotations

import logging
import os
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlflow.entities import RunTag, ViewType
from mlflow.exceptions import MlflowException
from mlflow.utils.name_utils import _GENERATOR_NOUNS, _GENERATOR_PREDICATES

from ehrtrack.errors import JoinRefused, TrackingError
from ehrtrack.tracking import names
from ehrtrack.tracking.client.connection import (
    CallRefused,
    ServerUnavailable,
    client,
    redacted,
    tracking_errors,
    tracking_uri,
)
from ehrtrack.tracking.client.experiments import active_experiment, every_experiment_id, experiment_named, set_up
from ehrtrack.tracking.client.queries import artifact_store
from ehrtrack.tracking.outbox.journal import LOG, Progress, Record, read_log, read_progress
from ehrtrack.tracking.outbox.masking import without_secrets
from ehrtrack.tracking.recovery.lease import check_claim, heartbeat_tags

RUN_ID = "MLFLOW_RUN_ID"
NOTE = "mlflow.note.content"
_MOST_GENERATED_CHARACTERS = 20
_NOT_FOUND = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Registered:
    """A run that exists on the server.

    Attributes
    ----------
    is_new : whether this call created it
    users_tags : tags that its user gave it before it was joined
    """

    run_id: str
    experiment_id: str
    is_new: bool
    users_tags: dict[str, str] = field(default_factory=dict)


class Registration:
    """The first record of a journal: the run's name, where it belongs, and its tags.

    They stand at the head of the journal twice, so that one damaged byte cannot leave the rest without a run.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        found = (entry.record for entry in read_log(folder) if entry.record and entry.record["do"] == "open")
        record: Record | None = next(found, None)
        if record is None:
            raise TrackingError(
                f"{folder} does not say which run it is of: both lines at its head are damaged; nothing was sent"
            )
        self.record = record

    @property
    def key(self) -> str:
        """The run's key, by which it is found on the server."""
        return str(self.record["key"])

    @property
    def attempt(self) -> int:
        """The number of the claim under which this journal writes; 0 if its process began the run."""
        return int(self.record.get("attempt", 0))

    def find_or_make(self, progress: Progress, *, is_begun: bool) -> Registered:
        """Find the run on the server, or create it in the experiment of its parent or its study.

        Parameters
        ----------
        is_begun
            The run's work has begun or is done, so that a run that may not be joined cannot stop it any more: the
            journal is then sent as a run of its own.

        Raises
        ------
        JoinRefused
            If the run of MLFLOW_RUN_ID is another's.
        """
        if progress.run_id:
            return self._found_again(progress)
        if not self.record["joined"]:
            return self._find_or_make_own({})
        try:
            return self._join(self.record["joined"])
        except JoinRefused as refusal:
            if not is_begun:
                raise
            _log.warning("%s. This run is logged as a run of its own", refusal)
            return self._find_or_make_own({names.JOIN_REFUSED: str(refusal)})

    def _find_or_make_own(self, more_tags: dict[str, str]) -> Registered:
        parent_id, experiment_id = self._place()
        with tracking_errors(f"look for run {self.record['name']!r}"):
            found = self._with_key(experiment_id)
            if found:
                return Registered(self._first_active(found), experiment_id, is_new=False)
            tags = self.record["tags"] | self.record.get("source", {}) | more_tags
            tags |= {"mlflow.parentRunId": parent_id} if parent_id else {}
            client().create_run(
                experiment_id,
                start_time=self.record["time"],
                tags=tags | {names.RUN_KEY: self.key} | heartbeat_tags(),
                run_name=self.record["name"],
            )
            # mlflow sends a call again when its answer is lost, so there may be two by now.
            run_id = self._first_active(self._with_key(experiment_id))
        return Registered(run_id, experiment_id, is_new=True)

    def remove_doubles(self, progress: Progress) -> None:
        """Delete any other run of this key: one whose creation was thought to have failed, and arrived late."""
        if progress.run_id == self.record["joined"]:
            return
        with tracking_errors("look for doubles"):
            for run in self._with_key(progress.experiment_id):
                if run.info.run_id != progress.run_id and run.info.lifecycle_stage == "active":
                    client().delete_run(run.info.run_id)

    def _found_again(self, progress: Progress) -> Registered:
        try:
            with tracking_errors(f"read run {progress.run_id}"):
                info = client().get_run(progress.run_id).info
        except (CallRefused, TrackingError) as error:
            if isinstance(error, ServerUnavailable) or not _says_not_found(error):
                raise
            raise TrackingError(
                f"run {progress.run_id} is not on {redacted(tracking_uri())}; {progress.position} bytes of its journal "
                f"{self.folder} are on {progress.server}: set MLFLOW_TRACKING_URI to that server, or remove "
                f"{self.folder / 'progress'} to send everything to this one"
            ) from error
        if info.lifecycle_stage != "active":
            raise self._deleted(progress.run_id)
        return Registered(info.run_id, info.experiment_id, is_new=False)

    def _join(self, run_id: str) -> Registered:
        """Join the run that ``mlflow run`` made, or resume a run of EHRTrack; other runs are never written to."""
        with tracking_errors(f"join run {run_id} of MLFLOW_RUN_ID"):
            there = client().get_run(run_id)
            if self.attempt:  # a resumed run keeps the key that it is found by
                check_claim(run_id, self.attempt)
            else:
                check_is_unclaimed(there, self.key)
                claim_joined(run_id, self.key)
            is_ours = self.attempt or there.data.tags.get(names.RUN_KEY) == self.key
            given = {} if is_ours else users_tags(there)
            # `mlflow run` tags the address of the git remote, in which there may be a token
            masked = {key: without_secrets(value) for key, value in there.data.tags.items()}
            tags = {key: value for key, value in masked.items() if value != there.data.tags[key]}
            kept = given | ({names.COLOUR: ""} if names.COLOUR in there.data.tags else {})
            tags |= {key: value for key, value in self.record["tags"].items() if key not in kept} | heartbeat_tags()
            if not self.attempt:
                tags[names.RUN_KEY] = self.key
            name = self.record["name"] if is_generated(there.info.run_name) else there.info.run_name
            tags["mlflow.runName"] = name
            client().update_run(run_id, status="RUNNING", name=name)
            client().log_batch(run_id, tags=[RunTag(key, value) for key, value in tags.items()])
        experiment_id = there.info.experiment_id
        self._set_up(experiment_id)
        return Registered(run_id, experiment_id, is_new=False, users_tags=given)

    def _place(self) -> tuple[str | None, str]:
        """The server's ids of the parent, if there is one, and of the experiment."""
        parent = self.record["parent"]
        with tracking_errors(f"find the place of run {self.record['name']!r}"):
            if parent is None:
                experiment_id = self._experiment()
                self._set_up(experiment_id)
                return None, experiment_id
            info = self._find_parent(parent)
            return info.run_id, info.experiment_id

    def _set_up(self, experiment_id: str) -> None:
        tags = self.record["tags"]
        set_up(experiment_id, study=tags.get(names.STUDY, ""), task=tags.get(names.TASK))

    def _experiment(self) -> str:
        chosen = self.record.get("experiment_id")
        if chosen:
            return active_experiment(chosen)
        return experiment_named(self.record["experiment"], study=self.record["tags"].get(names.STUDY, ""))

    def _find_parent(self, parent: str) -> Any:
        """Find the parent by its server id, or by its key if it was not on the server when this run began."""
        beside = self.folder.parent / parent
        run_id = read_progress(beside).run_id if (beside / LOG).exists() else ""
        try:
            return client().get_run(run_id or parent).info
        except MlflowException as error:
            if error.error_code not in _NOT_FOUND:
                raise
            found = client().search_runs(every_experiment_id(), f"tags.`{names.RUN_KEY}` = '{parent}'", max_results=1)
            if found:
                return found[0].info
            if beside.exists():
                raise ServerUnavailable(f"the parent of run {self.key}, {parent}, is not on the server yet") from error
            raise

    def _with_key(self, experiment_id: str) -> list[Any]:
        query = f"tags.`{names.RUN_KEY}` = '{self.key}'"
        return list(client().search_runs([experiment_id], query, run_view_type=ViewType.ALL))

    def _first_active(self, runs: list[Any]) -> str:
        active = sorted(run.info.run_id for run in runs if run.info.lifecycle_stage == "active")
        if not active:
            raise self._deleted(runs[0].info.run_id)
        return str(active[0])

    def _deleted(self, run_id: str) -> TrackingError:
        return TrackingError(
            f"run {run_id} was deleted on {redacted(tracking_uri())}; bring it back with `mlflow runs restore "
            f"--run-id {run_id}`, or remove {self.folder}"
        )


def check_join() -> None:
    """Check before any work that the run of MLFLOW_RUN_ID can be joined, if that is set.

    Raises
    ------
    JoinRefused
        If it is a run that was begun or has ended well.
    TrackingError
        If there is no such run.
    """
    run_id = os.environ.get(RUN_ID)
    if run_id:
        with tracking_errors(f"join run {run_id} of {RUN_ID}"):
            run = client().get_run(run_id)
        check_is_unclaimed(run)


def check_is_unclaimed(run: Any, key: str = "") -> None:
    """Refuse a run of the server that belongs to another key.

    Raises
    ------
    JoinRefused
        If it does; the message says to whom it belongs, and what to do.
    """
    tags, info = run.data.tags, run.info
    kind = tags.get(names.KIND)
    if kind and tags.get(names.RUN_KEY) == key:
        return
    if kind:
        raise _refusal(
            info.run_id, f"it is the {kind} run {info.run_name!r} of study {tags.get(names.STUDY)!r}, {info.status}"
        )
    if info.status == "FINISHED" or info.lifecycle_stage != "active":
        state = "ended well" if info.lifecycle_stage == "active" else "was deleted"
        raise _refusal(info.run_id, f"{info.run_name!r} is none that was made for this, and {state}")


def claim_joined(run_id: str, key: str) -> None:
    """Claim a run for this key; of several processes that do so at the same time, one succeeds.

    MLflow has no test-and-set for tags, but a param can never change.

    Raises
    ------
    JoinRefused
        If another process was first.
    """
    try:
        client().log_param(run_id, names.RUN_KEY, key)
    except MlflowException as error:
        if error.error_code != "INVALID_PARAMETER_VALUE" or "Changing param values" not in str(error):
            raise
        raise _refusal(run_id, "another process has just joined it") from error


def is_generated(name: str) -> bool:
    """Whether a run's name was made up by mlflow because its user gave none, such as upbeat-crow-1."""
    predicate, _, rest = name.partition("-")
    noun, _, number = rest.partition("-")
    is_whole = noun in _GENERATOR_NOUNS and number.isdigit()
    return predicate in _GENERATOR_PREDICATES and (is_whole or len(name) == _MOST_GENERATED_CHARACTERS)


def users_tags(run: Any) -> dict[str, str]:
    """The tags that a user gave a run before it was joined: the description, and all tags that no tool sets."""
    return {
        key: value
        for key, value in run.data.tags.items()
        if key == NOTE or not key.startswith(("mlflow.", "ehrtrack."))
    }


def under_users_tags(tags: dict[str, str], given: dict[str, str]) -> dict[str, str]:
    """The tags of a run without those that its user set before; the description is put below the user's."""
    shown = {key: value for key, value in tags.items() if key not in given}
    if NOTE in tags and NOTE in given:
        both = f"{given[NOTE]}\n\n{tags[NOTE]}"
        most = names.MAX_TAG_CHARACTERS
        if len(both) > most:
            _log.warning("the description, with that which was there, has %d characters, %d are kept", len(both), most)
        shown[NOTE] = both[:most]
    return shown


def fetch_checksums(run_id: str) -> dict[str, str]:
    """The SHA-256 of the artifacts of a run by path, as far as checksums are stored beside them."""
    with tracking_errors(f"read the checksums of run {run_id}"):
        store = artifact_store(run_id)
        if names.CHECKSUMS not in {entry.path for entry in store.list_artifacts()}:
            return {}
        with tempfile.TemporaryDirectory(prefix="ehrtrack-") as folder:
            text = Path(store.download_artifacts(names.CHECKSUMS, folder)).read_text()  # type: ignore[no-untyped-call]
    pairs = (line.split("  ", 1) for line in text.splitlines())
    return {path: digest for digest, path in pairs}


def _says_not_found(error: TrackingError) -> bool:
    return getattr(error.__cause__, "error_code", "") in _NOT_FOUND


def _refusal(run_id: str, reason: str) -> JoinRefused:
    return JoinRefused(
        f"run {run_id} of {RUN_ID} (--run-id) cannot be joined: {reason}. A run is never written over: unset {RUN_ID}, "
        f"or leave out --run-id, and a new run is made; `ehrtrack resume {run_id}` continues one that was cut off"
    )
