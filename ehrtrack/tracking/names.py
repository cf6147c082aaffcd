"""The names of tags and prefixes of EHRTrack's runs, by which runs can also be filtered in the UI."""

from __future__ import annotations

import posixpath
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath

from ehrtrack import renamed
from ehrtrack.errors import TrackingError
from ehrtrack.runlog import KEPT

STUDY = "ehrtrack.study"
RUN_KEY = "ehrtrack.run_key"  # a run's name for itself, before and whether or not a server has given it an id
HEARTBEAT = "ehrtrack.heartbeat"  # when the run's process was last known to live, by the server's clock
HEARTBEAT_SECONDS = "ehrtrack.heartbeat_seconds"  # from one heartbeat to the next
CLOSED = "ehrtrack.closed"  # why `ehrtrack runs --stale --close` ended the run
RESUMABLE = "ehrtrack.resumable"  # "true" once a run that can be resumed was stopped
ATTEMPT = "ehrtrack.attempt"  # how often the run was claimed to resume it; only the last claim may write to it
CLAIM_PARAM = f"{ATTEMPT}."  # the param of each claim, with its number; a param can be set once
JOIN_REFUSED = "ehrtrack.join_refused"  # why the run of MLFLOW_RUN_ID was not joined, and this one made in its place
CONTINUED_WITH = "ehrtrack.continued_with"  # settings changed on resuming that alter the last digits of its values
KIND = "ehrtrack.kind"
STUDY_KEY = "ehrtrack.study_key"  # of a run that belongs to a study's file: the name of the queue it was taken from
CELL = "ehrtrack.cell"  # fingerprint of all that decides a run of a study; of two runs with the same one suffices
TRIAL = "ehrtrack.trial"  # of a sweep's trial: its number, from 1
TRIAL_STATE = "ehrtrack.trial_state"  # running, complete, pruned or failed
CONFIGURATION = "ehrtrack.configuration"  # what a run of a study is a repeat of, in words
PRETRAINING_RECORDS = "ehrtrack.pretraining_records"  # what a run's pretraining read of the cohort's subjects, in words
MODEL = "ehrtrack.model"  # what a baseline is called; of runs without it, by its setting
TASK = "ehrtrack.task"  # what the model is judged for; of runs without it, survival
MODEL_RUN = "model_run"  # of a run that asks a model again: the run that made the model
EXPLAINED = "ehrtrack.explained"  # of an explanation of a cohort: how many subjects, and by which method
EVALUATED_ON = "ehrtrack.evaluated_on"  # of an evaluation: what its dataset and labels are called
SUBJECT_KEY = "ehrtrack.subject_key"  # fingerprint of the key under which subjects are logged; "raw" without one
COHORT = "fingerprint.cohort"  # runs compare where this is equal
HORIZON = "ehrtrack.horizon_days"  # what a survival run's risks are of
PINNED = "ehrtrack.pinned"  # on a registered model, or a version of it: its champion is not to be moved
SET_CHAMPION = "ehrtrack.champion"  # on a registered model: the version that was last made champion, not by hand
MOVE = "ehrtrack.move."  # on a registered model: a move of its champion, as JSON, under the time at which it was made
ROLLED_BACK = "ehrtrack.rolled_back"  # on a version that was champion: when, by whom and why another took its place
BASE = "ehrtrack.base"  # on a version that is an adapter alone: the address of the model that it is loaded on
ERROR = "ehrtrack.error"
STOPPED = "ehrtrack.stopped"
GIT_COMMIT = "ehrtrack.git_commit"
GIT_DIRTY = "ehrtrack.git_dirty"
VIEW = "ehrtrack"  # the key of the view that a study's page opens with
SETUP = "ehrtrack.setup"  # on an experiment: its task, and digests of its settings, to recognise a user's changes
GROUP = "model"  # the param by which the UI groups repeats, such as "lora r8" or "cox"; no `cfg.` one has this name
VERDICT = "sanity.verdict"
COLOUR = "mlflow.runColor"
PREDICTIONS_DIGEST = "ehrtrack.sha256.test_predictions"  # of the file, by which a copy is recognised
STUDY_KEY = "ehrtrack.study_key"  # of a cell of a study: which study's queue it belongs to

# mlflow's limit; beyond it its client cuts silently.
MAX_TAG_CHARACTERS = 8000

# Kinds of runs that keep snapshots, from which `ehrtrack resume` continues.
RESUMABLE_KINDS = ("pretrain", "finetune")
# A trial keeps them too, and is continued from them by its sweep.
SNAPSHOT_KINDS = (*RESUMABLE_KINDS, "trial")

# The kind of runs of `ehrtrack negative-controls`, which a report and a model card show.
CONTROLS = "negative-controls"

# The kind of runs of `ehrtrack explain`, of which a report shows those of a cohort.
EXPLANATION = "explain"

# `mlflow run` logs its -P strings as params, and a param can never change: "0.10" and 0.1 under one name
# would end the run. The resolved configuration therefore has names of its own.
PARAM_PREFIX = "cfg."

# What comparisons read of a run.
TEST_PREDICTIONS = "predictions/test.parquet"
VALIDATION_PREDICTIONS = "predictions/validation.parquet"

# The artifact folder that holds a run's weights, sizes, vocabulary and time grid.
MODEL_ARTIFACTS = "model"

# The artifact folder of a run that holds its registered versions, each in a folder named by its digest and written
# once. The tag shows that digest; what counts is the one in the version's source, which no call can change.
REGISTERED_ARTIFACTS = "registered"
VERSION_DIGEST = "ehrtrack.sha256"

# The artifact folder of the last two snapshots of a run that is not finished.
RESUME_ARTIFACTS = "resume"
SNAPSHOT_SLOTS = ("resume/slot-0", "resume/slot-1")

# SHA-256 of all artifacts, as `sha256sum -c` reads it; what the sender compares with before it sends a file again.
CHECKSUMS = "sha256sums.txt"

KEPT_BEFORE = "best/"
"""Runs logged before 2026-11-29 have metrics of this prefix for what is now of `KEPT`: those of the kept epoch."""


def score_tag(metric: str) -> str:
    """The tag that shows a test score with its interval, such as "0.742 [0.690, 0.790]", in one column of the UI."""
    return f"ehrtrack.test_{metric}"


def present_name(metric: str) -> str:
    """The present name of a metric."""
    return f"{KEPT}/{metric.removeprefix(KEPT_BEFORE)}" if metric.startswith(KEPT_BEFORE) else metric


def present_metrics(metrics: Mapping[str, float]) -> dict[str, float]:
    """The metrics of a run by their present names; all code that reads runs uses this."""
    before = {name: value for name, value in metrics.items() if name.startswith(KEPT_BEFORE)}
    return {present_name(name): value for name, value in before.items()} | {
        name: value for name, value in metrics.items() if name not in before
    }


def present_kind(kind: str) -> str:
    """The present name of a kind of run."""
    return renamed.COMMANDS.get(kind, kind)


def kinds_as_logged(kinds: Sequence[str]) -> list[str]:
    """The names under which runs of some kinds were logged, former ones included.

    >>> kinds_as_logged(["finetune", "sensitivity"])
    ['finetune', 'sensitivity', 'frontier']
    """
    former = [before for before, now in renamed.COMMANDS.items() if now in kinds]
    return list(dict.fromkeys([*kinds, *former]))


MAX_MODEL_NAME_CHARACTERS = 256


def why_no_model_name(name: str) -> str:
    """Why the registry would refuse a model's name, or ``models:/NAME@champion`` not be read back; empty if neither."""
    for mark in "/:@":
        if mark in name:
            return f"there must be no {mark!r} in it"
    if not name.isprintable() or name != name.strip():
        return "there must be no line break or other invisible character in it, nor a space at an end"
    if posixpath.normpath(name) != name or name == "." or name.startswith(".."):
        return "it must not be empty, a dot, or begin with two"
    if "'" in name and '"' in name:
        return "there must not be both kinds of quotation marks in it"
    if len(name) > MAX_MODEL_NAME_CHARACTERS:
        return f"it has {len(name)} characters, and there must be at most {MAX_MODEL_NAME_CHARACTERS}"
    return ""


def checked_artifact_path(path: str) -> str:
    """The path, after checking that it stays inside a run's artifact folder.

    Raises
    ------
    TrackingError
        If it is empty, absolute, has a backslash, a drive or a URL scheme, or climbs with ``..``.
    """
    parts = PurePosixPath(path).parts
    is_inside = bool(parts) and not path.startswith("/") and ".." not in parts
    if not is_inside or any(mark in path for mark in ("\\", ":", "\0", "%")):
        raise TrackingError(
            f"artifact path {path!r} is not a plain relative path; needed is one such as "
            "'model/weights.safetensors', without '..', a leading '/', or any of \\ : %"
        )
    return "/".join(parts)
