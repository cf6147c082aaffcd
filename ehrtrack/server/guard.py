"""``mlflow server`` behind a guard: no body is read before its login is checked, no user chooses where files lie, and
what a registered version is made of is neither written to nor deleted.

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
import posixpath
import re
import sys
from collections.abc import Awaitable, Callable, Iterator, Mapping, MutableMapping, Sequence
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
    _keep_versions()
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


def _keep_versions() -> None:
    """Refuse whatever would change or remove the files of a registered version, or of the base that it is loaded on.

    mlflow lets whoever may write to a run overwrite its files, versions and all. Who wants them gone deletes the
    version first. It is refused in the store and in the store of files, below every spelling of a call.
    """
    from mlflow.server import handlers
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    store_class: Any = SqlAlchemyStore
    delete_run, delete_experiment = store_class.delete_run, store_class.delete_experiment

    @functools.wraps(delete_run)
    def delete_run_without_versions(store: Any, run_id: str) -> Any:
        _refuse(f"run {run_id}", versions_on(run_id))
        return delete_run(store, run_id)

    @functools.wraps(delete_experiment)
    def delete_experiment_without_versions(store: Any, experiment_id: str) -> Any:
        for run_id in _runs_with_versions():
            if str(store.get_run(run_id).info.experiment_id) == str(experiment_id):
                _refuse(f"experiment {experiment_id}", versions_on(run_id))
        return delete_experiment(store, experiment_id)

    store_class.delete_run, store_class.delete_experiment = (
        delete_run_without_versions,
        delete_experiment_without_versions,
    )
    files: Any = handlers._get_artifact_repo_mlflow_artifacts()  # type: ignore[no-untyped-call]
    for name, place in _WRITES.items():
        if hasattr(files, name):
            setattr(files, name, _only_elsewhere(getattr(files, name), place))


_WRITES: Mapping[str, Callable[..., str]] = {
    "log_artifact": lambda local_file, artifact_path=None: f"{artifact_path or ''}/{Path(local_file).name}",
    "log_artifacts": lambda local_dir, artifact_path=None: artifact_path or "",
    "log_artifact_from_stream": lambda stream, filename, artifact_path=None: f"{artifact_path or ''}/{filename}",
    "log_artifact_from_async_stream": lambda stream, filename, artifact_path=None: f"{artifact_path or ''}/{filename}",
    "create_multipart_upload": lambda local_file, num_parts=1, artifact_path=None: (
        f"{artifact_path or ''}/{Path(local_file).name}"
    ),
    "delete_artifacts": lambda artifact_path=None: artifact_path or "",
}
"""The methods of a store of files that change it, and the path that each is called for."""

_OF_A_RUN = re.compile(r"/?(?P<experiment>[^/]+)(/(?P<run>[^/]+)(/artifacts(/(?P<path>.*))?)?)?")


def _only_elsewhere(method: Callable[..., Any], place: Callable[..., str]) -> Callable[..., Any]:
    """A method that changes files, which refuses those of versions."""

    @functools.wraps(method)
    def checked(*values: Any, **named: Any) -> Any:
        path = posixpath.normpath(place(*values, **named))
        _refuse(path, _versions_in(path, is_deletion=method.__name__ == "delete_artifacts"))
        return method(*values, **named)

    return checked


def _versions_in(path: str, *, is_deletion: bool) -> list[str]:
    """The versions of whose files some are at a path of the store of files, or where folders are deleted, below it."""
    found = _OF_A_RUN.fullmatch(path)
    if found is None:
        return []
    if found["run"] is None:  # the files of a whole experiment, which no client deletes
        return sorted({of for run_id in _runs_with_versions() for of in versions_on(run_id)}) if is_deletion else []
    inside = (found["path"] or "").strip("/")
    if not inside or (is_deletion and "/" not in inside and inside in _KEPT_FOLDERS):
        return versions_on(found["run"]) if is_deletion else []
    return versions_on(found["run"], inside) if inside.partition("/")[0] in _KEPT_FOLDERS else []


_KEPT_FOLDERS = ("registered", "model", "serving")
"""Of a run's files, where versions lie, those from before they had folders of their own included, and bases."""
_BASE = "ehrtrack.base"


def versions_on(run_id: str, path: str = "") -> list[str]:
    """The registered versions, as ``NAME/VERSION``, that are made of a run's files, or loaded on its model.

    Parameters
    ----------
    path : among the run's files; empty for any
    """
    found = []
    for version in _search(f"run_id = '{run_id}'"):
        folder = str(version.source).rstrip("/").partition(f"{run_id}/")[2].removeprefix("artifacts/")
        if not path or f"{path}/".startswith(f"{folder}/"):
            found.append(f"{version.name}/{version.version}")
    if not path or path.partition("/")[0] == "model":
        found += [f"{of.name}/{of.version}" for of in _search(f"tag.`{_BASE}` = 'runs:/{run_id}/model'")]
    return sorted(set(found))


def _runs_with_versions() -> set[str]:
    """The runs that are a version, or the base of one."""
    runs: set[str] = set()
    for version in _search(""):
        base = version.tags.get(_BASE, "").removeprefix("runs:/").partition("/")[0]
        runs |= {run_id for run_id in (version.run_id, base) if run_id}
    return runs


def _search(condition: str) -> Iterator[Any]:
    from mlflow.server import handlers

    registry: Any = handlers._get_model_registry_store()
    token: str | None = None
    while True:
        page = registry.search_model_versions(condition or None, max_results=1000, page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def _refuse(what: str, versions: Sequence[str]) -> None:
    if versions:
        from mlflow.exceptions import MlflowException

        raise MlflowException.invalid_parameter_value(
            f"{what} stays as it is: registered versions are made of its files, or loaded on them: "
            f"{', '.join(f'models:/{version}' for version in versions[:5])}. Delete these versions first, if nobody "
            "uses them any more"
        )


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
