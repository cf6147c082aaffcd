"""Where training states lie: folders named by their step. This module does not import torch."""

from __future__ import annotations

import re
from pathlib import Path

from ehrtrack.errors import CheckpointError

SNAPSHOTS = "snapshots"
"""The folder of a run's states."""

_STATE_NAME = re.compile(r"step-([0-9]{6,18})(\.old)?")


def state_folder(folder: Path, step: int) -> Path:
    """Where the state of `step` is."""
    return folder / f"step-{step:06d}"


def list_states(folder: Path) -> list[tuple[int, Path]]:
    """Steps and folders of states, the newest first; a replaced one comes after the one that replaced it."""
    if not folder.exists():
        return []
    try:
        named = [(match, path) for path in folder.iterdir() if (match := _STATE_NAME.fullmatch(path.name))]
    except OSError as error:
        raise CheckpointError(f"no training states can be read from {folder} ({error})") from error
    named.sort(key=lambda found: (int(found[0][1]), found[0][2] is None), reverse=True)
    return [(int(match[1]), path) for match, path in named]


def latest_folder(folder: Path) -> Path | None:
    """Where the newest state is, whole or not."""
    return next((path for _, path in list_states(folder)), None)
