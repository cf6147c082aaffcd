"""Resuming a run that was cut off, from its last snapshot: on the same machine or on any other."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from ehrtrack.config import Override, RunConfig, parse_run_config
from ehrtrack.dotted import parse_value
from ehrtrack.errors import CheckpointError, ConfigError, EhrtrackError
from ehrtrack.home import known_caches, usual_cache
from ehrtrack.locks import lock
from ehrtrack.pipeline.run import ALONE, RUNS, Place, RecipeResult, Resumption, run_folder
from ehrtrack.recipes.finetune import finetune
from ehrtrack.recipes.pretrain import pretrain
from ehrtrack.tracking.client.connection import ui_command
from ehrtrack.tracking.client.queries import RunRecord, download, get_run, list_artifacts
from ehrtrack.tracking.names import CONTINUED_WITH, RESUMABLE_KINDS, RUN_KEY, SNAPSHOT_SLOTS
from ehrtrack.tracking.outbox.sync import send_left_behind
from ehrtrack.tracking.recovery.lease import Heartbeat, RunClaimRefused
from ehrtrack.tracking.recovery.orphans import check_silent, claim_run, note_tags, orphaned_runs, release_run
from ehrtrack.tracking.run import JOURNALS
from ehrtrack.training.snapshots import adopt, newest_whole_step, snapshot_step
from ehrtrack.training.state_folders import SNAPSHOTS

MAY_CHANGE = ("data.path", "train.batch_tokens", "train.accumulate", "train.recompute")
"""What may be set anew beside ``runtime``: where the same data lie, and how a step is computed to fit in memory."""

CHANGES_DIGITS = ("runtime.threads", "runtime.device", "runtime.precision", "train.batch_tokens", "train.accumulate")
"""What may be set anew, but makes sums in another order: the run's end is then not that of an undisturbed run."""

OnEpoch = Callable[[int, dict[str, float]], None]
MOST_READINGS = 10
"""Of snapshots that are replaced while they are read."""
TRIAL = "trial"
RECIPES = dict(zip(RESUMABLE_KINDS, (pretrain, finetune), strict=True))


def resume(
    run_id: str,
    overrides: Sequence[Override] = (),
    *,
    is_forced: bool = False,
    place: Place = ALONE,
    of_trial: OnEpoch | None = None,
) -> RecipeResult:
    """Resume a run, in the same run on the tracking server.

    A run that had finished, and whose last records were still in its journal here, is sent and returned as it is.

    Parameters
    ----------
    overrides : dotted paths and values under ``runtime``, or in `MAY_CHANGE`
    is_forced : do not ask whether the run's process still lives
    place : among other runs, which it keeps; whether it is quiet
    of_trial : what its sweep is told after each epoch of a trial, which only its sweep resumes

    Raises
    ------
    ConfigError
        If the run cannot be resumed, or another setting is to change.
    StillAlive
        If its process set its heartbeat a moment ago.
    RunClaimRefused
        If another process has claimed it.
    """
    record = get_run(run_id)
    recipe = _recipe_of(record, of_trial)
    if record.status == "FINISHED":
        raise ConfigError(f"run {run_id} has ended well; there is nothing left to do")
    _check_overrides(run_id, overrides)
    changes = _changes_of_digits(run_id, overrides)
    config, is_ours = _send_and_read(run_id, overrides, attempt=record.attempt)
    sent = get_run(run_id)
    if sent.status == "FINISHED":
        print(f"run {run_id} had ended well; what its journal still had to tell is sent", flush=True)
        return RecipeResult(run_id, record.kind, ui_command(record.experiment_id, run_id=run_id).url, sent.metrics)
    if not (is_ours or is_forced):
        check_silent(sent)
    _move_folder_here(record, config)
    with _alone_on_this_machine(record, run_folder(config, run_id)) as folder:
        slot = _fetch_snapshot(run_id, folder / SNAPSHOTS)
        attempt = claim_run(record)
    heartbeat = Heartbeat(lambda: run_id, attempt=attempt)  # while the data are prepared
    try:
        if changes:
            note_tags(run_id, {CONTINUED_WITH: changes})
        fingerprints = {
            name.removeprefix("fingerprint."): value
            for name, value in sent.tags.items()
            if name.startswith("fingerprint.")
        }
        return recipe(config, place=place, resume=Resumption(run_id, attempt, fingerprints, slot))
    except EhrtrackError:
        release_run(record, attempt)  # if it was refused before it was opened
        raise
    finally:
        heartbeat.stop()


def _recipe_of(record: RunRecord, of_trial: OnEpoch | None) -> Callable[..., RecipeResult]:
    if record.kind == TRIAL and of_trial is not None:
        return partial(finetune, is_trial=True, on_epoch=of_trial)
    if record.kind not in RECIPES:
        raise ConfigError(
            f"run {record.run_id} is a {record.kind} run; there is a snapshot of {' and '.join(RECIPES)} runs alone"
        )
    return RECIPES[record.kind]


def resume_orphans(overrides: Sequence[Override] = (), *, minutes: float) -> list[RecipeResult]:
    """Resume the runs that no process writes to any more, one after the other.

    Returns
    -------
    Those that this process resumed and that finished. A run that cannot be resumed is named with the reason, and left.
    """
    done = []
    for orphan in orphaned_runs(RESUMABLE_KINDS, minutes=minutes):
        try:
            done.append(resume(orphan.record.run_id, overrides))
        except RunClaimRefused as taken:
            print(taken, flush=True)
        except EhrtrackError as error:
            print(f"run {orphan.record.run_id} cannot be resumed: {error}", flush=True)
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
        f"{', '.join(changes)} cannot change in a run that is resumed: it would be another experiment; "
        f"there may change: runtime.* but the seed, {', '.join(MAY_CHANGE)}"
    )


def _changes_of_digits(run_id: str, overrides: Sequence[Override]) -> str:
    """Which settings of `CHANGES_DIGITS` change, said aloud."""
    asked = {path: parse_value(text) for path, text in overrides if path in CHANGES_DIGITS}
    if not asked:
        return ""
    then = _table_of(run_id)
    before = {path: then.get(path.partition(".")[0], {}).get(path.partition(".")[2]) for path in asked}
    changed = [f"{path} (then {before[path]}, now {value})" for path, value in asked.items() if value != before[path]]
    if changed:
        print(
            f"{', '.join(changed)}: sums are made in another order, so that the end of run {run_id} will differ from "
            "that of a run that was never cut off; leave it out to have the same end",
            flush=True,
        )
    return ", ".join(changed)


@contextmanager
def _alone_on_this_machine(record: RunRecord, folder: Path) -> Iterator[Path]:
    """While inside, no other process brings snapshots into a run's folder; nor does one that has claimed the run."""
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        lock(descriptor, waits=False)
        if get_run(record.run_id).attempt != record.attempt:
            raise RunClaimRefused(f"run {record.run_id} was claimed by another process just now")
        yield folder
    except BlockingIOError as busy:
        raise RunClaimRefused(f"run {record.run_id} is being claimed by another process on this machine") from busy
    finally:
        os.close(descriptor)


def _move_folder_here(record: RunRecord, config: RunConfig) -> None:
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

    Damaged ones, here as there, are named and passed over. What a live run, as one that is taken by force may be,
    replaces on the server while it is being read is no damage: it is read again.

    Raises
    ------
    CheckpointError
        If there are snapshots and none of them is whole.
    """
    steps = _steps_on_server(run_id)
    for _ in range(MOST_READINGS - 1):
        try:
            return _adopt_newest(run_id, folder, steps)
        except CheckpointError:
            before, steps = steps, _steps_on_server(run_id)
            if steps == before:
                raise
            print(f"the snapshots of run {run_id} were replaced while they were read: they are read again", flush=True)
    return _adopt_newest(run_id, folder, steps)


def _steps_on_server(run_id: str) -> dict[int, int]:
    """Steps of the snapshots that the server has, by their slots."""
    there = list_artifacts(run_id)
    with tempfile.TemporaryDirectory() as fetched:
        return {
            slot: _step_in(run_id, place, Path(fetched))
            for slot, place in enumerate(SNAPSHOT_SLOTS)
            if any(path.startswith(f"{place}/") for path in there)
        }


def _adopt_newest(run_id: str, folder: Path, slots: Mapping[int, int]) -> int:
    """`_fetch_snapshot` of the snapshots on the server whose steps are these, by slots."""
    newest_here, problems = newest_whole_step(folder)
    with tempfile.TemporaryDirectory() as fetched:
        used = None
        for slot in sorted(slots, key=lambda slot: -slots[slot]):
            if slots[slot] <= newest_here:
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
    if used is None and problems and newest_here < 0:
        raise CheckpointError(
            f"none of the {len(problems)} snapshots of run {run_id} on the server and in {folder} is whole "
            f"({'; '.join(problems)}); start a new run"
        )
    if used is None and newest_here < 0:
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
    found = [send_left_behind(place / JOURNALS, run_id, attempt=attempt) for place in places]
    config = _config_of(run_id, overrides)
    if config.runtime.cache not in places:
        found.append(send_left_behind(config.runtime.cache / JOURNALS, run_id, attempt=attempt))
    return config, any(found)


def _config_of(run_id: str, overrides: Sequence[Override]) -> RunConfig:
    table = _table_of(run_id)
    for path, text in overrides:
        section, key = path.split(".", 1)
        table[section][key] = parse_value(text)
    if "runtime.cache" not in dict(overrides):
        table["runtime"]["cache"] = str(_cache_here(Path(table["runtime"]["cache"])))
    return parse_run_config(table)


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
