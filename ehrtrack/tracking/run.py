"""A run that is being written: made or joined, filled, and always ended."""

from __future__ import annotations

import json
import logging
import os
import signal
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag
from mlflow.exceptions import MlflowException

from ehrtrack.errors import TrackingError
from ehrtrack.tracking import names
from ehrtrack.tracking.experiments import experiment_named, offer_view
from ehrtrack.tracking.provenance import UNKNOWN, environment, git_state, user_name
from ehrtrack.tracking.server import client, tracking_errors, ui_command

if TYPE_CHECKING:
    import polars as pl
    from matplotlib.figure import Figure

Scalar = str | int | float | bool
_Row = TypeVar("_Row")

# mlflow's limits; beyond them its client cuts silently.
MAX_METRICS_PER_CALL = 1000
MAX_PARAMS_PER_CALL = 100
MAX_PARAM_CHARACTERS = 6000
MAX_TAG_CHARACTERS = 8000
MAX_ERROR_CHARACTERS = 500

_log = logging.getLogger(__name__)


class TerminatedBySignal(SystemExit):
    """SIGTERM, raised where the program stood, so that files and runs are closed; exit code 143."""

    def __init__(self) -> None:
        super().__init__(128 + signal.SIGTERM)


class TrackedRun:
    """A run on the tracking server; a RunLogger. Every method raises TrackingError if the server refuses."""

    def __init__(self, mlflow_client: MlflowClient, *, run_id: str, experiment_id: str, name: str) -> None:
        self._client = mlflow_client
        self.run_id = run_id
        self.experiment_id = experiment_id
        self.name = name
        self.status = "RUNNING"
        self._has_description = False

    @property
    def url(self) -> str:
        """The link to this run's page in the UI."""
        return ui_command(self.experiment_id, run_id=self.run_id).url

    def log_metrics(self, metrics: Mapping[str, float], *, step: int) -> None:
        """Record all metrics of one step (an epoch) in one call."""
        now_ms = int(time.time() * 1000)
        rows = [Metric(key, float(value), now_ms, step) for key, value in metrics.items()]
        with tracking_errors(f"log the metrics of step {step} of run {self.run_id}"):
            for batch in _batches(rows, MAX_METRICS_PER_CALL):
                self._client.log_batch(self.run_id, metrics=batch)

    def log_params(self, params: Mapping[str, Scalar]) -> None:
        """Record values that are fixed for the whole run, under ``cfg.`` names.

        A value beyond mlflow's limit is cut, with a warning, and kept whole under ``long_params/``.
        """
        rows = []
        for key, value in params.items():
            text = str(value)
            if len(text) > MAX_PARAM_CHARACTERS:
                self.log_text(text, f"long_params/{key}.txt")
                text = self._cut(text, MAX_PARAM_CHARACTERS, what=f"param {key}", whole=f"long_params/{key}.txt")
            rows.append(Param(names.PARAM_PREFIX + key, text))
        with tracking_errors(f"log the params of run {self.run_id}"):
            for batch in _batches(rows, MAX_PARAMS_PER_CALL):
                self._client.log_batch(self.run_id, params=batch)

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set searchable text on the run; text beyond mlflow's limit is cut, with a warning."""
        rows = []
        for key, value in tags.items():
            text = str(value)
            if len(text) > MAX_TAG_CHARACTERS:
                text = self._cut(text, MAX_TAG_CHARACTERS, what=f"tag {key}")
            rows.append(RunTag(key, text))
        with tracking_errors(f"set tags on run {self.run_id}"):
            for batch in _batches(rows, MAX_PARAMS_PER_CALL):
                self._client.log_batch(self.run_id, tags=batch)

    def set_description(self, markdown: str) -> None:
        """Set the readable summary on the run's page; a long one is kept whole in ``description.md``."""
        if len(markdown) > MAX_TAG_CHARACTERS:
            self.log_text(markdown, "description.md")
            markdown = self._cut(markdown, MAX_TAG_CHARACTERS, what="the description", whole="description.md")
        self.set_tags({"mlflow.note.content": markdown})
        self._has_description = True

    def log_dataset(self, name: str, *, fingerprint: str, source: str, context: str = "") -> None:
        """Show a dataset on the run's page, by its fingerprint; `context` is its use, such as "training"."""
        dataset = Dataset(name, digest=fingerprint, source_type="local", source=json.dumps({"uri": source}))
        tags = [InputTag("mlflow.data.context", context)] if context else []
        with tracking_errors(f"log dataset {name!r} of run {self.run_id}"):
            self._client.log_inputs(self.run_id, [DatasetInput(dataset, tags)])

    def log_text(self, text: str, name: str) -> None:
        """Store a text artifact, such as ``"summary.md"``."""
        with self._upload(name) as file:
            file.write_text(text, encoding="utf-8")

    def log_json(self, value: Any, name: str) -> None:
        """Store a JSON artifact, such as ``"run_config.json"``; NaN is refused, since JSON has none."""
        with self._upload(name) as file:
            text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
            file.write_text(text + "\n", encoding="utf-8")

    def log_table(self, frame: pl.DataFrame, name: str) -> None:
        """Store a table as ``.parquet`` or ``.csv``, by the suffix of `name`."""
        with self._upload(name) as file:
            if file.suffix == ".parquet":
                frame.write_parquet(file)
            elif file.suffix == ".csv":
                frame.write_csv(file)
            else:
                raise TrackingError(f"table {name!r} must end in .parquet or .csv")

    def log_figure(self, figure: Figure, name: str) -> None:
        """Store a figure as ``.png`` and close it."""
        with self._upload(name) as file:
            figure.savefig(file, dpi=120, bbox_inches="tight")
        figure.clear()

    def log_folder(self, folder: Path, name: str) -> None:
        """Store all files of a folder under the artifact path `name`."""
        if not any(file.is_file() for file in Path(folder).rglob("*")):
            raise TrackingError(f"no files to store as {name!r} in {folder}")
        path = names.checked_artifact_path(name)
        with tracking_errors(f"store {name!r} of run {self.run_id}"):
            self._client.log_artifacts(self.run_id, str(folder), path)

    def end(self, status: str, *, tag: str = "", reason: str = "") -> None:
        """Set the run's last status (FINISHED, FAILED or KILLED) and its reason."""
        if tag:
            self.set_tags({tag: reason})
            if not self._has_description:
                self.set_description(f"**{status.capitalize()}**: {reason}")
        with tracking_errors(f"end run {self.run_id} as {status}"):
            self._client.set_terminated(self.run_id, status)
        self.status = status

    @contextmanager
    def _upload(self, name: str) -> Iterator[Path]:
        """A file to write; once written, it is stored as artifact `name`."""
        path = PurePosixPath(names.checked_artifact_path(name))
        with tempfile.TemporaryDirectory(prefix="ehrtrack-") as folder:
            file = Path(folder) / path.name
            yield file
            parent = None if path.parent == PurePosixPath() else str(path.parent)
            with tracking_errors(f"store {name!r} of run {self.run_id}"):
                self._client.log_artifact(self.run_id, str(file), parent)

    def _cut(self, text: str, limit: int, *, what: str, whole: str = "") -> str:
        place = f"; whole in {whole}" if whole else ""
        _log.warning("%s has %d characters, %d are kept%s", what, len(text), limit, place)
        ending = f" … ({len(text)} characters{place})"
        return text[: limit - len(ending)] + ending


@contextmanager
def tracked_run(
    *,
    experiment: str,
    name: str,
    kind: str,
    params: Mapping[str, Scalar] | None = None,
    tags: Mapping[str, str] | None = None,
    parent_run_id: str | None = None,
    run_id: str | None = None,
    stops: tuple[type[Exception], ...] = (),
) -> Iterator[TrackedRun]:
    """A run that ends with its block: FINISHED, FAILED on an exception, KILLED on Ctrl-C or SIGTERM.

    At top level under ``mlflow run`` this is the run that mlflow made (it stays in the experiment mlflow
    chose, and carries the study as a tag); a run with a parent is a new one, in its parent's experiment.

    Parameters
    ----------
    experiment
        The study; the experiment's name, and the tag ``ehrtrack.study``.
    kind
        pretrain, finetune, baseline, sweep, trial, compare or demo; the tag ``ehrtrack.kind``.
    run_id
        A run that was begun before, and goes on.
    stops
        Exceptions that end the run as FINISHED all the same, such as optuna's TrialPruned; still raised.
    """
    with _sigterm_raises():
        run = _open_run(experiment=experiment, name=name, kind=kind, parent_run_id=parent_run_id, run_id=run_id)
        try:
            run.set_tags(tags or {})
            run.log_params(params or {})
            run.log_json(environment(), "environment.json")
            yield run
        except BaseException as error:
            _end_aloud(run, error, stops)
            raise
        run.end("FINISHED")


def _open_run(*, experiment: str, name: str, kind: str, parent_run_id: str | None, run_id: str | None) -> TrackedRun:
    mlflow_client = client()
    tags = {names.STUDY: experiment, names.KIND: kind, "mlflow.runName": name} | _code_tags()
    joined_id = run_id or (os.environ.pop("MLFLOW_RUN_ID", None) if parent_run_id is None else None)
    if joined_id:
        with tracking_errors(f"join run {joined_id}"):
            experiment_id = mlflow_client.get_run(joined_id).info.experiment_id
            mlflow_client.update_run(joined_id, status="RUNNING", name=name)
            mlflow_client.log_batch(joined_id, tags=[RunTag(key, value) for key, value in tags.items()])
        offer_view(experiment_id)
        return TrackedRun(mlflow_client, run_id=joined_id, experiment_id=experiment_id, name=name)
    if parent_run_id is not None:
        tags["mlflow.parentRunId"] = parent_run_id
    tags |= {
        "mlflow.user": user_name(),
        "mlflow.source.name": f"ehrtrack {kind}",
        "mlflow.source.type": "LOCAL",
    }
    with tracking_errors(f"start run {name!r}"):
        experiment_id = (
            mlflow_client.get_run(parent_run_id).info.experiment_id
            if parent_run_id is not None
            else experiment_named(experiment)
        )
        if parent_run_id is None:
            offer_view(experiment_id)
        made = mlflow_client.create_run(experiment_id, tags=tags, run_name=name)
    return TrackedRun(mlflow_client, run_id=made.info.run_id, experiment_id=experiment_id, name=name)


def _code_tags() -> dict[str, str]:
    git = git_state()
    tags = {names.GIT_COMMIT: git.commit, names.GIT_DIRTY: git.dirty}
    return tags if git.commit == UNKNOWN else tags | {"mlflow.source.git.commit": git.commit}


def _end_aloud(run: TrackedRun, error: BaseException, stops: tuple[type[Exception], ...]) -> None:
    """End a run after an exception; a server that fails now must not hide that exception."""
    message = f"{type(error).__name__}: {error}"[:MAX_ERROR_CHARACTERS]
    try:
        if isinstance(error, stops):
            run.end("FINISHED", tag=names.STOPPED, reason=message)
        elif isinstance(error, KeyboardInterrupt | TerminatedBySignal):
            run.end("KILLED", tag=names.ERROR, reason="interrupted by " + _signal_of(error))
        elif isinstance(error, SystemExit) and not error.code:
            run.end("FINISHED")
        else:
            run.end("FAILED", tag=names.ERROR, reason=message)
    except (TrackingError, MlflowException) as failure:
        _log.error("run %s is left RUNNING on the server: %s", run.run_id, failure)


def _signal_of(error: BaseException) -> str:
    return "SIGTERM" if isinstance(error, TerminatedBySignal) else "the keyboard"


@contextmanager
def _sigterm_raises() -> Iterator[None]:
    """While inside, SIGTERM raises TerminatedBySignal, once; a handler set by somebody else is left alone."""
    is_ours = (
        threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    )
    if not is_ours:
        yield
        return

    def terminate(number: int, frame: FrameType | None) -> NoReturn:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the run is ending: a second signal must not cut that off
        raise TerminatedBySignal

    signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _batches(rows: list[_Row], size: int) -> Iterator[list[_Row]]:
    for start in range(0, len(rows), size):
        yield rows[start : start + size]
