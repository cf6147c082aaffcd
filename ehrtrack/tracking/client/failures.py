"""Why a call to the tracking store failed, by what can be done: wait, change the login, or leave the call out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ehrtrack.errors import TrackingError

_LOGIN = (401, 403)
_WRONG_SERVER = 404  # also what a tunnel answers while its other end is away
_LATER = (408, 429)


class ServerUnavailable(TrackingError):
    """The server is down, hangs, or has an error of its own: the same call may work later."""


class AccessRefused(TrackingError):
    """The login is missing, wrong, expired or without permission: the same call works after a change."""


class CallRefused(TrackingError):
    """The server understood the call and will never accept it, such as a value that is too long."""


@contextmanager
def server_failures(doing: str, where: str) -> Iterator[None]:
    """Turn what mlflow raises into one of the three failures; each message says what was being done, and where."""
    import requests
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, requests.RequestException, SQLAlchemyError, OSError) as error:
        status = _status_of(error)
        reason = str(error).split("\n")[0][:500]
        message = f"could not {doing} on {where}: {reason}"
        if status in _LOGIN:
            raise AccessRefused(
                f"{message}; set or correct MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD "
                "(or MLFLOW_TRACKING_TOKEN), or ask the server's owner for permission to write runs"
            ) from error
        if 400 <= status < 500 and status not in _LATER and status != _WRONG_SERVER:
            raise CallRefused(message) from error
        if status == _WRONG_SERVER:
            raise TrackingError(f"{message}; is MLFLOW_TRACKING_URI the right server?") from error
        raise ServerUnavailable(message) from error


def _status_of(error: Exception) -> int:
    """The HTTP status behind an error; 503 for whatever never got one."""
    from mlflow.exceptions import MlflowException

    if isinstance(error, MlflowException):
        return int(error.get_http_status_code())  # type: ignore[no-untyped-call]
    response = getattr(error, "response", None)  # of requests' HTTPError, which artifact uploads raise
    return 503 if response is None else int(response.status_code)
