"""The tracking store: its address, whether it can be used, and how to open its UI."""

from __future__ import annotations

import fcntl
import functools
import logging
import os
import shlex
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, urlsplit

from ehrtrack.errors import TrackingError
from ehrtrack.tracking.names import VIEW

if TYPE_CHECKING:
    import requests
    from mlflow import MlflowClient

DEFAULT_DATABASE = "mlflow.db"
CHECK_TIMEOUT_SECONDS = 5
LOOPBACK = "127.0.0.1"
UI_PORT = 5000
_DATABASE_SCHEMES = ("sqlite", "postgresql", "mysql", "mssql")
_LOGIN = (401, 403)
_WRONG_SERVER = 404  # also what a tunnel answers while its other end is away
_LATER = (408, 429)
_LOCAL_HINT = "unset MLFLOW_TRACKING_URI to keep runs in a local file (sqlite:///mlflow.db)"


class ServerUnavailable(TrackingError):
    """The server is down, does not answer, or failed by itself: the same call may work later."""


class AccessRefused(TrackingError):
    """The login is missing, wrong, expired or lacks permission: the same call works once that is changed."""


class CallRefused(TrackingError):
    """The server understood the call and will never accept it, for example because a value is too long."""


def tracking_uri() -> str:
    """The address of the tracking store: MLFLOW_TRACKING_URI, or ``mlflow.db`` in the working folder.

    A relative sqlite path is made absolute, so that a run does not move when the working folder changes.

    Raises
    ------
    TrackingError
        If the address is of a kind that cannot be used.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI", "").strip() or f"sqlite:///{DEFAULT_DATABASE}"
    scheme = urlsplit(uri).scheme.split("+")[0]
    if scheme in ("http", "https"):
        return uri.rstrip("/")
    if scheme == "sqlite":
        return f"sqlite:///{_database_file(uri)}"
    if scheme in _DATABASE_SCHEMES:
        return uri
    raise TrackingError(
        f"MLFLOW_TRACKING_URI is {redacted(uri)!r}; needed is an http(s):// server or a sqlite:///FILE.db "
        f"store (mlflow no longer writes file stores). Set it to one of those, or {_LOCAL_HINT}"
    )


def redacted(uri: str) -> str:
    """The address without a user name and password, for messages, tags and logs."""
    head, separator, rest = uri.partition("://")
    netloc, slash, path = rest.partition("/")
    return f"{head}{separator}{netloc.rpartition('@')[2]}{slash}{path}"


def is_remote() -> bool:
    """Whether runs go to a server over HTTP."""
    return tracking_uri().startswith(("http://", "https://"))


def check_reachable() -> None:
    """Check within seconds, before any training, that runs can be written.

    Raises
    ------
    TrackingError
        If the server does not answer, refuses, or is no MLflow server; or the database cannot be opened.
    """
    if is_remote():
        _check_server(tracking_uri())
    else:
        _check_database(tracking_uri())


def server_time() -> datetime | None:
    """The current time of the tracking server in whole seconds; None if the server does not give it.

    A store that is opened without a server uses the clock of this machine.

    Raises
    ------
    TrackingError
        If the server does not answer.
    """
    if not is_remote():
        return datetime.now(UTC)
    date = http_get(tracking_uri(), "/health").headers.get("Date")
    return parsedate_to_datetime(date) if date else None


def client() -> MlflowClient:
    """A client of the tracking store; the first one for a new database file creates its tables (3 s)."""
    return _client(tracking_uri())


@contextmanager
def tracking_errors(doing: str) -> Iterator[None]:
    """Turn errors of mlflow into one of the three failures; each message names the action and the server.

    Raises
    ------
    ServerUnavailable, AccessRefused, CallRefused
        Depending on the remedy: wait, change the login, or leave the call out.
    TrackingError
        If the server says that there is nothing at this address.
    """
    import requests
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, requests.RequestException, SQLAlchemyError, OSError) as error:
        status = _status_of(error)
        reason = str(error).split("\n")[0][:500]
        message = f"could not {doing} on {redacted(tracking_uri())}: {reason}"
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


@dataclass(frozen=True)
class UiAddress:
    """The command and the link that open a page of the tracking UI."""

    url: str
    command: str | None  # starts a UI on the local database; None when a server is already there

    def __str__(self) -> str:
        return f"{self.command}\nthen open {self.url}" if self.command else f"open {self.url}"


def ui_command(
    experiment_id: str | None = None, *, run_id: str | None = None, model: str | None = None, port: int = UI_PORT
) -> UiAddress:
    """The command and link that open the UI at an experiment, a run, or a registered model; locally at a port."""
    if model is not None:
        page = f"models/{quote(model, safe='')}"
    elif experiment_id is not None and run_id is not None:
        page = f"experiments/{experiment_id}/runs/{run_id}"
    elif experiment_id is not None:
        page = f"experiments/{experiment_id}/runs"
    else:
        page = "experiments"
    # Without workflowType the UI opens on its GenAI pages, which show none of this; without a view, on a
    # table of runs that has no column for any metric.
    view = f"&viewStateShareKey={VIEW}" if page.endswith("/runs") else ""
    base = redacted(tracking_uri()) if is_remote() else f"http://{LOOPBACK}:{port}"
    url = f"{base}/#/{page}?workflowType=machine_learning{view}"
    return UiAddress(url, None if is_remote() else _local_ui_command())


def _local_ui_command() -> str:
    uri = tracking_uri()
    if uri.startswith("sqlite:"):
        file = _database_file(uri)
        here = file.relative_to(Path.cwd()) if file.is_relative_to(Path.cwd()) else file
        uri = f"sqlite:///{here}"
    return f"mlflow ui --backend-store-uri {shlex.quote(redacted(uri))} --port {UI_PORT}"


def _database_file(uri: str) -> Path:
    return Path(uri.split(":///", 1)[-1]).absolute()


@functools.lru_cache(maxsize=8)
def _client(uri: str) -> MlflowClient:
    import mlflow

    # "Creating initial MLflow database tables..." is no news to the user of a run.
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)
    with warnings.catch_warnings(), _one_at_a_time(uri), tracking_errors("open the tracking store"):
        # mlflow 3.17's own table definitions under SQLAlchemy 2.1
        warnings.filterwarnings("ignore", message="The ``noload`` loader strategy is deprecated")
        return mlflow.MlflowClient(tracking_uri=uri)


@contextmanager
def _one_at_a_time(uri: str) -> Iterator[None]:
    """Wait for another process that opens a database file in the same folder.

    MLflow 3.17 makes the tables of a new database without a lock: the second of two runs that begin at once would end
    with "table already exists".
    """
    folder = _database_file(uri).parent
    if not uri.startswith("sqlite:") or not folder.is_dir():
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _check_database(uri: str) -> None:
    if uri.startswith("sqlite:"):
        file = _database_file(uri)
        if file.exists() and not os.access(file, os.W_OK):
            raise TrackingError(
                f"the tracking database {file} is read-only; make it writable or set MLFLOW_TRACKING_URI"
            )
        if not file.exists() and not (file.parent.is_dir() and os.access(file.parent, os.W_OK)):
            raise TrackingError(
                f"the tracking database {file} cannot be created: {file.parent} is not a writable folder; "
                "work in a folder you may write to, or set MLFLOW_TRACKING_URI"
            )
    with tracking_errors("read experiments"):
        client().search_experiments(max_results=1)


def _check_server(uri: str) -> None:
    health = http_get(uri, "/health")
    if health.status_code != 200 or health.text.strip() != "OK":
        raise_for(health, uri, asked="GET /health")
    answer = http_get(uri, "/api/2.0/mlflow/experiments/search?max_results=1")
    if answer.status_code != 200:
        raise_for(answer, uri, asked="a list of experiments")


def http_get(uri: str, path: str) -> requests.Response:
    import requests

    try:
        return requests.get(
            uri + path,
            timeout=CHECK_TIMEOUT_SECONDS,
            auth=basic_auth(),
            headers=token_header(),
            verify=tls_verification(),
        )
    except requests.exceptions.SSLError as error:
        raise TrackingError(
            f"the tracking server {redacted(uri)} has a TLS certificate that is not trusted: "
            f"{_cause(error)}; give its authority in MLFLOW_TRACKING_SERVER_CERT_PATH"
        ) from error
    except requests.exceptions.Timeout as error:
        raise ServerUnavailable(
            f"the tracking server {redacted(uri)} did not answer within {CHECK_TIMEOUT_SECONDS} s; "
            f"check the address and the firewall, or {_LOCAL_HINT}"
        ) from error
    except requests.exceptions.RequestException as error:
        raise ServerUnavailable(
            f"the tracking server {redacted(uri)} cannot be reached: {_cause(error)}; "
            f"start it (mlflow server), correct MLFLOW_TRACKING_URI, or {_LOCAL_HINT}"
        ) from error


def raise_for(answer: requests.Response, uri: str, *, asked: str) -> None:
    where = f"the tracking server {redacted(uri)}"
    if answer.status_code == 401:
        raise AccessRefused(
            f"{where} wants a login (401); set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, "
            "or correct them if they are set"
        )
    if answer.status_code == 403 and "host" in answer.text.lower():
        raise AccessRefused(
            f"{where} does not accept the host name in the address (403); start it with "
            f"--allowed-hosts {urlsplit(uri).netloc.rpartition('@')[2]}"
        )
    if answer.status_code == 403:
        raise AccessRefused(f"{where} refuses this user (403); ask its owner for permission to write runs")
    if answer.status_code >= 500:
        raise ServerUnavailable(
            f"{where} answered {answer.status_code} to {asked}; look at its log, or try again later"
        )
    raise TrackingError(
        f"{where} answered {answer.status_code} to {asked}, not as an MLflow server does; "
        f"check the address in MLFLOW_TRACKING_URI, or {_LOCAL_HINT}"
    )


def _status_of(error: Exception) -> int:
    """The HTTP status behind an error; 503 if there was no answer."""
    from mlflow.exceptions import MlflowException

    if isinstance(error, MlflowException):
        return int(error.get_http_status_code())  # type: ignore[no-untyped-call]
    response = getattr(error, "response", None)  # of requests' HTTPError, which artifact uploads raise
    return 503 if response is None else int(response.status_code)


def basic_auth() -> tuple[str, str] | None:
    user = os.environ.get("MLFLOW_TRACKING_USERNAME")
    password = os.environ.get("MLFLOW_TRACKING_PASSWORD")
    return (user, password) if user and password else None


def token_header() -> dict[str, str]:
    token = os.environ.get("MLFLOW_TRACKING_TOKEN")
    return {"Authorization": f"Bearer {token}"} if token else {}


def tls_verification() -> bool | str:
    if os.environ.get("MLFLOW_TRACKING_INSECURE_TLS", "").lower() in ("true", "1"):
        return False
    return os.environ.get("MLFLOW_TRACKING_SERVER_CERT_PATH") or True


def _cause(error: BaseException) -> str:
    """The innermost cause, such as ``[Errno 111] Connection refused``, without urllib3's wrapping."""
    text = str(error)
    return text.rsplit(": ", 1)[-1].rstrip("')\"") or type(error).__name__
