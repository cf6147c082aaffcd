"""``mlflow server``, whose first process becomes the server, with a guard before it (`server_app`).

By itself mlflow prepares the server, starts it as a second process and waits for its end, with 300 MB in its hands.
Imports nothing of ehrtrack, since the server's image has mlflow alone.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import mlflow.server
from mlflow.cli import cli

_PACKAGE = f"{__package__}." if __package__ else ""
GUARD = f"{_PACKAGE}guard:create_app"
GUARDED_APP = "EHRTRACK_GUARDED_APP"  # as in server_app


def guarded(command: Sequence[str], folder: Path) -> tuple[list[str], str]:
    """The command that serves the guard, and the application, the last word, that the guard is to serve.

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
    """In the place of mlflow's own, which starts `command` and returns its process."""
    words, app = guarded(command, Path(__file__).parent)
    os.execvpe(words[0], words, os.environ | extra_env | {GUARDED_APP: app})


if __name__ == "__main__":
    assert "_exec_cmd" in vars(mlflow.server), "an mlflow that starts its server another way would start it unguarded"
    vars(mlflow.server)["_exec_cmd"] = _become
    cli(["server", *sys.argv[1:]])
