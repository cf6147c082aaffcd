"""``mlflow server``, whose first process becomes the server.

By itself mlflow prepares the server, starts it as a second process and waits for its end, with 300 MB in its hands.
Imports nothing of ehrtrack, since the server's image has mlflow alone.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import mlflow.server
from mlflow.cli import cli


def _become(command: Sequence[str], *, extra_env: Mapping[str, str], **_how: Any) -> NoReturn:
    """In the place of mlflow's own, which starts `command` and returns its process."""
    os.execvpe(command[0], list(command), os.environ | extra_env)


if __name__ == "__main__":
    vars(mlflow.server)["_exec_cmd"] = _become  # an mlflow without it starts its second process, as ever
    cli(["server", *sys.argv[1:]])
