"""Going on with a run that was cut off, from its last snapshot."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ehrtrack.config import Override, RunConfig, parse_config, parse_value
from ehrtrack.errors import ConfigError
from ehrtrack.recipes._run import Run, run_folder
from ehrtrack.recipes.finetune import finetune
from ehrtrack.recipes.pretrain import pretrain
from ehrtrack.tracking.queries import download, get_run

MAY_CHANGE = ("train.batch_tokens", "train.accumulate", "train.recompute")
"""What may be set anew beside ``runtime``: how a step is computed, so that it fits in memory."""

RECIPES = {"pretrain": pretrain, "finetune": finetune}


def resume(run_id: str, overrides: Sequence[Override] = ()) -> Run:
    """Go on with a run, in the same run on the tracking server.

    Parameters
    ----------
    overrides : dotted paths and values under ``runtime``, or in `MAY_CHANGE`

    Raises
    ------
    ConfigError
        If the run cannot be resumed, or another setting is to change.
    """
    kind = get_run(run_id).kind
    if kind not in RECIPES:
        raise ConfigError(f"run {run_id} is a {kind} run; there is a snapshot of {' and '.join(RECIPES)} runs alone")
    refused = [path for path, _ in overrides if not path.startswith("runtime.") and path not in MAY_CHANGE]
    if refused:
        raise ConfigError(
            f"{', '.join(refused)} cannot change in a run that goes on: it would be another experiment; "
            f"there may change: runtime.*, {', '.join(MAY_CHANGE)}"
        )
    config = _config_of(run_id, overrides)
    folder = run_folder(config, run_id)
    if not folder.is_dir():
        raise ConfigError(
            f"{folder} is not there: the run has ended well, was made on another machine, or runtime.cache is another "
            "folder (set it with --runtime.cache)"
        )
    return RECIPES[kind](config, resume=run_id)


def _config_of(run_id: str, overrides: Sequence[Override]) -> RunConfig:
    with tempfile.TemporaryDirectory() as folder:
        table: dict[str, Any] = json.loads(download(run_id, "run_config.json", Path(folder)).read_text())
    for path, text in overrides:
        section, key = path.split(".", 1)
        table[section][key] = parse_value(text)
    return parse_config(table)
