"""Joining the run of MLFLOW_RUN_ID: one that is nobody's yet, by one process alone, under the name its user gave."""

from __future__ import annotations

import logging
import os
from typing import Any

from mlflow.exceptions import MlflowException
from mlflow.utils.name_utils import _GENERATOR_NOUNS, _GENERATOR_PREDICATES

from ehrtrack.errors import JoinRefused
from ehrtrack.tracking import names
from ehrtrack.tracking.client.connection import client, tracking_errors

RUN_ID = "MLFLOW_RUN_ID"
NOTE = "mlflow.note.content"
_MOST_GENERATED_CHARACTERS = 20

_log = logging.getLogger(__name__)


def check_join() -> None:
    """Make sure, before any work, that the run of MLFLOW_RUN_ID can be joined, if that is set.

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
    """Refuse a run of the server that is another's than that of a key.

    Raises
    ------
    JoinRefused
        With whose it is, and what to do.
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


def claim(run_id: str, key: str) -> None:
    """Make a run the one of this key; of several processes that do so at once, one succeeds.

    MLflow has no test-and-set of tags, but a param can never change.

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
    """Whether a run's name is one that mlflow makes up where its user gave none, such as upbeat-crow-1."""
    predicate, _, rest = name.partition("-")
    noun, _, number = rest.partition("-")
    is_whole = noun in _GENERATOR_NOUNS and number.isdigit()
    return predicate in _GENERATOR_PREDICATES and (is_whole or len(name) == _MOST_GENERATED_CHARACTERS)


def users_tags(run: Any) -> dict[str, str]:
    """The tags that a user gave a run before it was joined: the description, and all that are no tool's."""
    return {
        key: value
        for key, value in run.data.tags.items()
        if key == NOTE or not key.startswith(("mlflow.", "ehrtrack."))
    }


def under_users_tags(tags: dict[str, str], given: dict[str, str]) -> dict[str, str]:
    """A run's tags without those that its user gave before; a description goes below the user's own."""
    shown = {key: value for key, value in tags.items() if key not in given}
    if NOTE in tags and NOTE in given:
        both = f"{given[NOTE]}\n\n{tags[NOTE]}"
        most = names.MAX_TAG_CHARACTERS
        if len(both) > most:
            _log.warning("the description, with that which was there, has %d characters, %d are kept", len(both), most)
        shown[NOTE] = both[:most]
    return shown


def _refusal(run_id: str, reason: str) -> JoinRefused:
    return JoinRefused(
        f"run {run_id} of {RUN_ID} (--run-id) cannot be joined: {reason}. A run is never written over: unset {RUN_ID}, "
        f"or leave out --run-id, and a new run is made; `ehrtrack resume {run_id}` goes on with one that was cut off"
    )
