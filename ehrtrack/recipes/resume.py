"""Going on with a run that was cut off, from its last snapshot: on the same machine or on any other."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ehrtrack.config import Override, RunConfig, parse_config, parse_value
from ehrtrack.errors import CheckpointError, ConfigError, EhrtrackError
from ehrtrack.home import known_caches, usual_cache
from ehrtrack.recipes._run import RESUMABLE_KINDS, RUNS, Resumption, Run, run_folder
from ehrtrack.recipes.finetune import finetune
from ehrtrack.recipes.pretrain import pretrain
from ehrtrack.tracking.heartbeat import Heartbeat, heartbeat_seconds
from ehrtrack.tracking.names import RUN_KEY, SNAPSHOT_SLOTS
from ehrtrack.tracking.queries import RunRecord, download, get_run, list_artifacts
from ehrtrack.tracking.run import JOURNALS
from ehrtrack.tracking.server import ui_command
from ehrtrack.tracking.stale import TakenUp, claimed, give_back, silent_minutes, stale_runs, take_up
from ehrtrack.tracking.sync import drain_left_behind
from ehrtrack.training.loop import SNAPSHOTS
from ehrtrack.training.snapshots import adopt, latest_snapshot, latest_step, snapshot_step

MAY_CHANGE = ("data.path", "train.batch_tokens", "train.accumulate", "train.recompute")
"""What may be set anew beside ``runtime``: where the same data lie, and how a step is computed to fit in memory."""

RECIPES = dict(zip(RESUMABLE_KINDS, (pretrain, finetune), strict=True))
LOST_BEATS = 3
"""Heartbeats that a run must have missed before another machine goes on with it."""


def resume(run_id: str, overrides: Sequence[Override] = (), *, is_forced: bool = False) -> Run:
    """Go on with a run, in the same run on the tracking server.

    A run that had ended well, and whose last words were still in its journal here, is sent and returned as it is.

    Parameters
    ----------
    overrides : dotted paths and values under ``runtime``, or in `MAY_CHANGE`
    is_forced : do not ask whether the run's process still lives

    Raises
    ------
    ConfigError
        If the run cannot be resumed, or another setting is to change.
    TakenUp
        If another process goes on with it.
    """
    record = get_run(run_id)
    if record.kind not in RECIPES:
        raise ConfigError(
            f"run {run_id} is a {record.kind} run; there is a snapshot of {' and '.join(RECIPES)} runs alone"
        )
    if record.status == "FINISHED":
        raise ConfigError(f"run {run_id} has ended well; there is nothing left to do")
    _check_overrides(run_id, overrides)
    with claimed(record) as attempt:
        config, is_ours = _send_and_read(run_id, overrides, attempt=attempt - 1)
        if not (is_ours or is_forced):
            _check_silent(record)
        sent = get_run(run_id)
        if sent.status == "FINISHED":
            print(f"run {run_id} had ended well; what its journal still had to tell is sent", flush=True)
            return Run(run_id, record.kind, ui_command(record.experiment_id, run_id=run_id).url, sent.metrics)
        _bring_folder(record, config)
        slot = _fetch_snapshot(run_id, run_folder(config, run_id) / SNAPSHOTS)
        fingerprints = {
            name.removeprefix("fingerprint."): value
            for name, value in sent.tags.items()
            if name.startswith("fingerprint.")
        }
        take_up(run_id, attempt)
    heartbeat = Heartbeat(lambda: run_id)  # while the data are prepared
    try:
        return RECIPES[record.kind](config, resume=Resumption(run_id, attempt, fingerprints, slot))
    except EhrtrackError:
        if get_run(run_id).status == "RUNNING":  # refused before it was opened
            give_back(record)
        raise
    finally:
        heartbeat.stop()


def resume_stale(overrides: Sequence[Override] = (), *, minutes: float) -> list[Run]:
    """Go on with the runs that no process writes to any more, one after the other.

    Returns
    -------
    Those that this process took up and that ended well. A run that cannot go on is told, and left.
    """
    done = []
    for stale in stale_runs(RESUMABLE_KINDS, minutes=minutes):
        try:
            done.append(resume(stale.record.run_id, overrides))
        except TakenUp as taken:
            print(taken, flush=True)
        except EhrtrackError as error:
            print(f"run {stale.record.run_id} cannot go on: {error}", flush=True)
    return done


def _check_overrides(run_id: str, overrides: Sequence[Override]) -> None:
    def may_change(path: str) -> bool:
        return (path.startswith("runtime.") and path != "runtime.seed") or path in MAY_CHANGE

    refused = {path: text for path, text in overrides if not may_change(path)}
    if not refused:
        return
    then = _table_of(run_id)
    changes = []
    for path, text in refused.items():
        section, _, key = path.partition(".")
        changes.append(f"{path} (then {then.get(section, {}).get(key, 'not set')}, now {text})")
    raise ConfigError(
        f"{', '.join(changes)} cannot change in a run that goes on: it would be another experiment; "
        f"there may change: runtime.* but the seed, {', '.join(MAY_CHANGE)}"
    )


def _check_silent(record: RunRecord) -> None:
    """A run that is RUNNING may be alive on another machine; its heartbeat tells."""
    seconds = silent_minutes(record) * 60
    if record.status == "RUNNING" and seconds < LOST_BEATS * heartbeat_seconds():
        raise ConfigError(
            f"run {record.run_id} gave a sign of life {seconds:.0f} s ago. If its machine is gone, try again in "
            f"{LOST_BEATS * heartbeat_seconds() - seconds:.0f} s, or say --force"
        )


def _bring_folder(record: RunRecord, config: RunConfig) -> None:
    """Have the run's folder where the configuration says, under its id.

    A run that began without a server kept its snapshots under its key, and one that began in a folder that is gone by
    now, such as a clone that ``mlflow run`` made, kept them in the user's data folder.
    """
    folder = run_folder(config, record.run_id)
    caches = [config.runtime.cache, *known_caches()]
    ids = [record.run_id, *filter(None, [record.tags.get(RUN_KEY)])]
    there = [cache / RUNS / name for cache in caches for name in ids if (cache / RUNS / name).is_dir()]
    if there and not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(there[0], folder)


def _fetch_snapshot(run_id: str, folder: Path) -> int:
    """Bring the newest whole snapshot to `folder`, unless it is there; returns the slot to write the next one to.

    Raises
    ------
    CheckpointError
        If there are snapshots and none of them is whole.
    """
    there = list_artifacts(run_id)
    with tempfile.TemporaryDirectory() as fetched:
        slots = {}
        for slot, place in enumerate(SNAPSHOT_SLOTS):
            if any(path.startswith(f"{place}/") for path in there):
                slots[slot] = _step_in(run_id, place, Path(fetched))
        used, problems = None, []
        for slot in sorted(slots, key=lambda slot: -slots[slot]):
            if slots[slot] <= latest_step(folder):
                used = slot
                break
            try:
                step = adopt(download(run_id, SNAPSHOT_SLOTS[slot], Path(fetched)), folder)
            except CheckpointError as error:
                print(f"{SNAPSHOT_SLOTS[slot]} of the server is passed over: {error}", flush=True)
                problems.append(str(error))
            else:
                print(f"the snapshot of step {step} was fetched from the server", flush=True)
                used = slot
                break
    if used is None and problems and latest_snapshot(folder) is None:
        raise CheckpointError(
            f"none of the {len(problems)} snapshots of run {run_id} is whole ({'; '.join(problems)}), and there is "
            f"none in {folder}; start a new run"
        )
    if used is None and not problems and latest_step(folder) < 0:
        print("there is no snapshot of this run: it starts from its beginning", flush=True)
    return 0 if used is None else 1 - used


def _step_in(run_id: str, place: str, folder: Path) -> int:
    """Step of the snapshot in a place of the server; 0 if that cannot be read."""
    try:
        return snapshot_step(download(run_id, f"{place}/facts.json", folder).parent)
    except EhrtrackError:
        return 0


def _send_and_read(run_id: str, overrides: Sequence[Override], *, attempt: int) -> tuple[RunConfig, bool]:
    """The run's configuration, and whether its last process was here; what its journal here has is sent before.

    The configuration may itself still be in that journal, so the caches of this machine (or that of an override) are
    looked into first, and then the one that the configuration names.
    """
    given = dict(overrides).get("runtime.cache")
    places = [Path(given)] if given else known_caches()
    found = [drain_left_behind(place / JOURNALS, run_id, attempt=attempt) for place in places]
    config = _config_of(run_id, overrides)
    if config.runtime.cache not in places:
        found.append(drain_left_behind(config.runtime.cache / JOURNALS, run_id, attempt=attempt))
    return config, any(found)


def _config_of(run_id: str, overrides: Sequence[Override]) -> RunConfig:
    table = _table_of(run_id)
    for path, text in overrides:
        section, key = path.split(".", 1)
        table[section][key] = parse_value(text)
    if "runtime.cache" not in dict(overrides):
        table["runtime"]["cache"] = str(_cache_here(Path(table["runtime"]["cache"])))
    return parse_config(table)


def _cache_here(cache: Path) -> Path:
    """The cache that a run was begun with, or this machine's where there can be no such folder."""
    try:
        cache.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        usual = usual_cache()
        print(f"runtime.cache was {cache}, which cannot be used here ({error}); it is {usual} now", flush=True)
        return usual
    return cache


def _table_of(run_id: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        table: dict[str, Any] = json.loads(download(run_id, "run_config.json", Path(folder)).read_text())
    return table
