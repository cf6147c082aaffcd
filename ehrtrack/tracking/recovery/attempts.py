"""The attempt of a run: a number that every write checks, and that one process alone can raise to take the run up.

MLflow changes no tag conditionally. A param it lets be set once: of two processes that log one name with different
values, the second is refused, by the primary key of the store's table. So the n-th take-up is the param
``ehrtrack.attempt.n`` with a value that no other process has. Only who may write to the run can set it.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any

from mlflow.exceptions import MlflowException

from ehrtrack.errors import TrackingError
from ehrtrack.tracking import names
from ehrtrack.tracking.client.connection import client, tracking_errors

_TAKEN = f"{names.ATTEMPT}."


class RunClaimLost(TrackingError):
    """The run went on elsewhere: what this process has not sent yet is made there anew, and must not come twice."""


class RunClaimRefused(TrackingError):
    """Another process goes on with the run."""


def attempt_of(tags: Mapping[str, str], params: Mapping[str, str]) -> int:
    """How often a run was taken up; of runs of earlier versions the tag alone knows."""
    numbers = [
        int(key.removeprefix(_TAKEN)) for key in params if key.startswith(_TAKEN) and key[len(_TAKEN) :].isdigit()
    ]
    return max([int(tags.get(names.ATTEMPT, 0)), *numbers])


def check_claim(run_id: str, attempt: int) -> Any:
    """Make sure that a run is still its writer's; returns the run.

    Parameters
    ----------
    attempt : the writer's

    Raises
    ------
    RunClaimLost
        If another process took it up since.
    """
    with tracking_errors(f"read run {run_id}"):
        run = client().get_run(run_id)
    if attempt_of(run.data.tags, run.data.params) > attempt:
        raise RunClaimLost(
            f"run {run_id} was taken up by another process, which goes on with it from its last snapshot; what this "
            "one has not sent yet is made there anew, and is not sent"
        )
    return run


def claim_attempt(run_id: str, attempt: int) -> None:
    """Become the one process that makes this attempt; from here on those before it may write no more.

    Raises
    ------
    RunClaimRefused
        If another process makes it.
    """
    with tracking_errors(f"take up run {run_id}"):
        try:
            # sent again after a lost answer, it is the same value, and no conflict
            client().log_param(run_id, f"{_TAKEN}{attempt}", uuid.uuid4().hex)
        except MlflowException as error:
            if error.error_code != "INVALID_PARAMETER_VALUE":
                raise
            raise RunClaimRefused(f"run {run_id} was taken up by another process just now") from error
