"""``mlflow server`` behind a guard: no body is read before its login is checked, and no user chooses where files lie.

Run as a program, this is ``mlflow server`` whose first process becomes the server. By itself mlflow prepares the
server, starts it as a second process and waits for its end, with 300 MB in its hands. Loaded by the server, it is the
application that mlflow's own stands behind.

It imports nothing of ehrtrack, since the server's image has mlflow alone, and mlflow only where it is the program.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import os
import sys
from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import JSONResponse

_PACKAGE = f"{__package__}." if __package__ else ""
GUARD = f"{_PACKAGE}guard:create_app"
GUARDED_APP = "EHRTRACK_GUARDED_APP"
"""The variable that names mlflow's own application, as ``module:name``."""

MOST_BYTES_OF_A_CALL = 16 * 2**20
"""mlflow holds the body of a call in memory; its client sends 1 MB at most. Files are streamed, and have no limit."""

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]


class Guard:
    """Refuses requests by their headers alone, before mlflow would read their bodies into memory.

    Parameters
    ----------
    app : mlflow's application
    knows : checks the login of a request; None for a server without logins
    """

    def __init__(self, app: App, knows: Callable[[Request], object] | None) -> None:
        self._app = app
        self._knows = knows

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        refusal = await self._refusal(scope) if scope["type"] == "http" else None
        await (refusal or self._app)(scope, receive, send)

    async def _refusal(self, scope: Message) -> JSONResponse | None:
        headers = Headers(scope=scope)
        length, is_chunked = int(headers.get("content-length", 0)), "transfer-encoding" in headers
        if not (length or is_chunked):
            return None
        if self._knows is not None and not await run_in_threadpool(self._knows, Request(scope)):
            challenge = {"WWW-Authenticate": 'Basic realm="mlflow"'}
            return _answer(401, "UNAUTHENTICATED", "a body is read after its sender has logged in", challenge)
        if scope["method"] == "PUT" and "/mlflow-artifacts/artifacts/" in scope["path"]:
            return None
        if is_chunked:
            return _answer(411, "BAD_REQUEST", "a call has to say how long it is (Content-Length)")
        if length > MOST_BYTES_OF_A_CALL:
            most = f"{MOST_BYTES_OF_A_CALL:,} bytes"
            return _answer(413, "BAD_REQUEST", f"a call of {length:,} bytes; the most is {most}, in parts")
        return None


def create_app() -> Guard:
    """The application that uvicorn serves: mlflow's, behind the guard."""
    module, _, name = os.environ[GUARDED_APP].partition(":")
    app: Any = getattr(importlib.import_module(module), name)
    knows = None
    if module == "mlflow.server.auth":
        knows = importlib.import_module(module)._authenticate_fastapi_request
    _refuse_locations()
    return Guard(app() if inspect.isfunction(app) else app, knows)


def guarded(command: Sequence[str], folder: Path) -> tuple[list[str], str]:
    """The command that serves the guard, and the application (the last word of mlflow's command) behind it.

    Parameters
    ----------
    folder : in which the guard's module lies, when this is no part of a package
    """
    *words, app = command
    if "uvicorn" not in words:
        raise SystemExit(f"mlflow would start {' '.join(words)}; the guard of this server needs uvicorn")
    path = [] if _PACKAGE else ["--app-dir", str(folder)]
    factory = [] if "--factory" in words else ["--factory"]
    return [*words, *factory, *path, GUARD], app


def _become(command: Sequence[str], *, extra_env: Mapping[str, str], **_how: Any) -> NoReturn:
    """Replaces mlflow's function that starts `command` and returns its process: this process becomes the server."""
    words, app = guarded(command, Path(__file__).parent)
    os.execvpe(words[0], words, os.environ | extra_env | {GUARDED_APP: app})


def _refuse_locations() -> None:
    """Refuse experiments with an artifact location of their own.

    mlflow lets a user name any place that the server can write to: another user's run, or a bucket of its keys.
    """
    from mlflow.exceptions import MlflowException
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    store_class: Any = SqlAlchemyStore
    create = store_class.create_experiment

    @functools.wraps(create)
    def create_experiment(store: Any, name: Any, artifact_location: Any = None, tags: Any = None) -> Any:
        if artifact_location:
            raise MlflowException.invalid_parameter_value(
                f"artifact_location is {artifact_location!r}, and this server alone says where files lie; leave it out"
            )
        return create(store, name, tags=tags)

    store_class.create_experiment = create_experiment


def _answer(status: int, code: str, message: str, headers: dict[str, str] | None = None) -> JSONResponse:
    return JSONResponse({"error_code": code, "message": message}, status, headers)


def _main(words: Sequence[str]) -> None:
    import mlflow.server
    from mlflow.cli import cli

    assert "_exec_cmd" in vars(mlflow.server), "an mlflow that starts its server another way would start it unguarded"
    vars(mlflow.server)["_exec_cmd"] = _become
    cli(["server", *words])


if __name__ == "__main__":
    _main(sys.argv[1:])
