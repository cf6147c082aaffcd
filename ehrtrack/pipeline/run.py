"""A run as recipes see it: opened with its configuration, and closed with its results.

This module does not import torch, which a comparison or a study's plan does without.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, get_args

import polars as pl

from ehrtrack import plots
from ehrtrack.config import RunConfig
from ehrtrack.data.settings import DateIndex
from ehrtrack.data.split_settings import TimeSplit
from ehrtrack.errors import DataError
from ehrtrack.evaluation.metric_table import METRICS, names_shown
from ehrtrack.home import make_cache
from ehrtrack.pipeline.labels import colour_tags, run_name, without_strategy
from ehrtrack.privacy import Privacy, read_key
from ehrtrack.runlog import KEPT, TRAINING, MemoryRunLogger, Task, named
from ehrtrack.signals import INTERRUPTIONS
from ehrtrack.tracking.logger import TrackedRun
from ehrtrack.tracking.names import RESUMABLE_KINDS, SNAPSHOT_KINDS, TASK
from ehrtrack.tracking.recovery.lease import RunClaimLost
from ehrtrack.tracking.run import JOURNALS, tracked_run
from ehrtrack.training.state_folders import SNAPSHOTS, latest_folder
from ehrtrack.training.stopping import TrainingStopped

if TYPE_CHECKING:
    from ehrtrack.training.loop import FitResult
    from ehrtrack.training.ranks import Ranks

COST_FACTS: dict[str, Callable[[list[float]], float]] = {
    "memory_mb": max,
    "tokens_per_second": fmean,
    "tflops_per_second": fmean,
    "utilisation": fmean,
    "gpu_busy": fmean,
    "joules": sum,
}
"""Facts of an epoch of which a run has one, and how it is made of those of all epochs."""

MODEL_FOLDER = "model"
RUNS = "runs"
ADAPTER_FOLDER = "adapter"
RUN_CONFIG = "run_config.json"
CONTINUED_KINDS = ("sweep", "sensitivity", "study")
"""Kinds of runs that take what is finished from where it is when they are started again."""


@dataclass(frozen=True)
class RecipeResult:
    """A finished run.

    Attributes
    ----------
    run_id : the server's id; the run's key where no server had it when it ended, by which a server finds it later
    url : page of the run in the tracking server's UI
    metrics : those by which the run is judged
    """

    run_id: str
    kind: str
    url: str
    metrics: dict[str, float]


@dataclass(frozen=True)
class Place:
    """The place of a run among others, as its caller sets it.

    Attributes
    ----------
    parent_run_id : run to nest it under
    name : shown in lists of runs; made from the run's choices if empty
    tags : by which the caller finds the run again; they are set when the run is made
    is_quiet : whether tables that are the same in many runs are logged and not printed
    """

    parent_run_id: str | None = None
    name: str = ""
    tags: Mapping[str, str] = field(default_factory=dict)
    is_quiet: bool = False


ALONE = Place()


@dataclass(frozen=True)
class Resumption:
    """A run to resume.

    Attributes
    ----------
    attempt : the number of this process's claim to the run
    fingerprints : of the run's inputs, by name
    slot : which of the two places for snapshots on the server is written next
    """

    run_id: str
    attempt: int
    fingerprints: Mapping[str, str]
    slot: int

    def check(self, fingerprints: Mapping[str, str]) -> None:
        """Check that the run is resumed with the inputs that it was begun with.

        Raises
        ------
        DataError
            If they differ; the message names the differences.
        """
        differing = [
            f"{name} (then {then}, now {fingerprints.get(name, 'none')})"
            for name, then in sorted(self.fingerprints.items())
            if fingerprints.get(name, "none") != then
        ]
        if differing:
            raise DataError(
                f"run {self.run_id} cannot be continued with other data than it was begun with; there differ: "
                f"{', '.join(differing)}. Give it the same data (--data.path), or start a new run"
            )


@dataclass
class SilentLogger(MemoryRunLogger):
    """The logger of all ranks but the first: only rank 0 talks to the tracking server."""

    reference: str = ""
    url: str = ""

    def log_dataset(self, name: str, *, fingerprint: str, source: str, context: str = "") -> None:
        """Do nothing, as rank 0 logs the dataset."""


@dataclass
class Recorder:
    """A run that is being written.

    Attributes
    ----------
    config : the configuration of the run
    logger : receives metrics and artifacts
    folder : local folder for the weights that may be kept and the last snapshots
    sends_snapshots : whether snapshots go to the server, so that another machine can resume the run
    is_quiet : as `Place` has it
    """

    config: RunConfig
    logger: TrackedRun | SilentLogger
    kind: str
    folder: Path
    sends_snapshots: bool = False
    is_quiet: bool = False
    _last_sent: Path | None = None
    _started: float = field(default_factory=time.monotonic)

    def keep_snapshot(self, folder: Path) -> None:
        """Queue a snapshot to be sent to the server in the background."""
        if self.sends_snapshots and isinstance(self.logger, TrackedRun) and self.logger.log_snapshot(folder):
            self._last_sent = folder

    def keep_last_snapshot(self) -> None:
        """Queue the newest snapshot to be sent, as the run ends early."""
        newest = latest_folder(self.folder / SNAPSHOTS)
        if self.sends_snapshots and newest is not None and newest != self._last_sent:
            assert isinstance(self.logger, TrackedRun)
            self.logger.log_snapshot(newest, is_last=True)

    @property
    def how_to_resume(self) -> str:
        """The message that says how to continue after the run was stopped."""
        if self.kind in RESUMABLE_KINDS and isinstance(self.logger, TrackedRun) and self.logger.server_run_id is None:
            return (
                f"to continue: ehrtrack sync {self.config.runtime.cache}, then ehrtrack resume with the run's id there"
            )
        if self.kind in RESUMABLE_KINDS:
            return f"to continue: ehrtrack resume {self.logger.reference}"
        if self.kind in CONTINUED_KINDS:
            return f"to continue: start the same {self.kind} again; what is finished is not repeated"
        return f"the {self.kind} keeps no snapshot: start it again"

    def log_fingerprints(self, fingerprints: Mapping[str, str]) -> None:
        """Log the fingerprints of the run's inputs as searchable tags."""
        self.logger.set_tags({f"fingerprint.{name}": value for name, value in fingerprints.items()})
        self.logger.log_dataset(
            self.config.data.path.name,
            fingerprint=fingerprints["data"],
            source=str(self.config.data.path),
            context="training",
        )

    def log_parameters(self, table: pl.DataFrame) -> None:
        """Print and log the number of parameters, and of trainable parameters."""
        if not self.is_quiet:
            with pl.Config(tbl_hide_dataframe_shape=True, tbl_hide_column_data_types=True, thousands_separator=True):
                print(table, flush=True)
        self.logger.log_table(table, "parameters.csv")
        total = table.row(by_predicate=pl.col("part") == "all", named=True)
        self.logger.log_metrics({f"parameters/{name}": total[name] for name in ("total", "trainable")}, step=0)

    def log_epochs_again(self, history: Sequence[Mapping[str, float]]) -> None:
        """Log the epochs of a snapshot; those that the server already has are left out when they are sent.

        The journal that held them may never be sent, because another process had claimed the run in the meantime.
        """
        for epoch, metrics in enumerate(history, start=1):
            self.logger.log_metrics(metrics, step=epoch)

    def log_training(self, result: FitResult) -> None:
        """Log the kept epoch and the cost of training: means and sums over epochs, and the highest memory of any.

        What some epoch does not tell of the device is left out.
        """
        kept = named(KEPT, {"epoch": float(result.kept_epoch)})
        facts = {}
        for name, over_epochs in COST_FACTS.items():
            told = [epoch[key] for epoch in result.history if (key := f"{TRAINING}/{name}") in epoch]
            if len(told) == len(result.history):
                facts["peak_memory_mb" if name == "memory_mb" else name] = over_epochs(told)
        self.logger.log_metrics(kept | named("cost", {"train_seconds": result.seconds} | facts), step=0)

    def log_loss(self, result: FitResult) -> None:
        """Log the curves of training and validation loss."""
        self.logger.log_figure(plots.loss_curves(result.history, kept_epoch=result.kept_epoch), "plots/loss.png")

    @contextmanager
    def judging(self) -> Iterator[None]:
        """Wrap everything after the model is logged: an error there adds the note that the model is kept."""
        try:
            yield
        except Exception as error:
            error.add_note(
                f"What failed came after training: the model of run {self.logger.reference} is kept among its "
                "artifacts, and so are the predictions that it made"
            )
            raise

    def log_kept(self, scores: Mapping[str, float]) -> dict[str, float]:
        """Log the validation scores that a trial or a sweep is judged by, which are by metric; returns them by name."""
        kept = {METRICS[metric].named(KEPT): value for metric, value in scores.items()}
        self.logger.log_metrics(kept, step=0)
        return kept

    def log_adapter(self, save: Callable[[Path], None]) -> None:
        """Log the adapter by itself, if the strategy has one."""
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            save(folder)
            weights = list(folder.glob("*.safetensors"))
            if weights:
                size_mb = sum(file.stat().st_size for file in weights) / 1e6
                self.logger.log_metrics({"cost/adapter_mb": size_mb}, step=0)
                self.logger.log_folder(folder, ADAPTER_FOLDER)

    def finished(self, metrics: Mapping[str, float], *, task: Task | None = None) -> RecipeResult:
        """Log the total time; returns the result of the recipe.

        Parameters
        ----------
        task : of its model, whose metrics are shown; None where metrics are of no other
        """
        seconds = time.monotonic() - self._started
        self.logger.log_metrics({"cost/total_seconds": seconds}, step=0)
        of = get_args(Task) if task is None else (task,)
        shown = "  ".join(f"{name} {metrics[name]:.4f}" for name in names_shown("headline", of) if name in metrics)
        print(f"{self.kind} done in {seconds:.0f} s  {shown}\n", flush=True)
        return RecipeResult(self.logger.reference, self.kind, self.logger.url, dict(metrics))


@contextmanager
def open_run(
    config: RunConfig,
    *,
    kind: str,
    sections: Sequence[str],
    name: str = "",
    model: str = "",
    task: Task | None = None,
    place: Place = ALONE,
    ranks: Ranks | None = None,
    resume: Resumption | None = None,
    fingerprints: Mapping[str, str] | None = None,
) -> Iterator[Recorder]:
    """Open a tracked run for a configuration.

    Local checkpoints are removed when the run ends well; after an error they stay, and the run can be resumed.

    Parameters
    ----------
    kind : recipe, such as ``"finetune"``
    sections : those of the configuration that this kind of run reads
    name : shown in lists of runs where the place gives none; made from the choices if empty
    model : what the run is a model of, such as "lora r8" or "cox"; repeats share it. Empty of runs of several models
    task : that the model is judged for
    place : among other runs
    ranks : of a run that several processes make together
    resume : the run to resume
    fingerprints : what the run is made from; must be what a resumed run was begun with
    """
    if resume is not None:
        resume.check(fingerprints or {})
    if ranks is not None and not ranks.is_main:
        reference = ranks.from_main(str)
        yield Recorder(config, SilentLogger(reference=reference), kind, run_folder(config, reference))
        return
    make_cache(config.runtime.cache)
    with (
        _folders_while_ours() as folders,
        tracked_run(
            experiment=config.study,
            name=place.name or name or run_name(config, model or kind, has_size=kind != "baseline"),
            kind=kind,
            params={} if resume else without_strategy(config.to_params(sections), kind),
            group="" if resume else model,
            tags=colour_tags(model) | ({TASK: task} if task else {}) | dict(place.tags),
            parent_run_id=place.parent_run_id,
            run_id=resume.run_id if resume else None,
            attempt=resume.attempt if resume else 0,
            journal=config.runtime.cache / JOURNALS,
            stops=(TrainingStopped,),
            privacy=privacy_of(config),
        ) as logger,
    ):
        reference = logger.reference  # asked once: the folder of all ranks is named by what is known now
        if ranks is not None:
            ranks.from_main(lambda: reference)
        print(f"{kind} run {logger.label}  {logger.url}", flush=True)
        if not resume:
            logger.log_json(config.to_json(), RUN_CONFIG)
        logger.is_resumable = kind in SNAPSHOT_KINDS
        if resume and logger.is_resumable:
            logger.start_at_slot(resume.slot)
        folder = run_folder(config, reference)
        folders.append(folder)
        sends_snapshots = config.runtime.upload_snapshots and logger.is_resumable
        run = Recorder(config, logger, kind, folder, sends_snapshots, place.is_quiet)
        try:
            yield run
        except RunClaimLost:
            raise
        except TrainingStopped:  # it ends well: nobody resumes it
            logger.remove_snapshots()
            shutil.rmtree(folder, ignore_errors=True)
            raise
        except BaseException as error:
            run.keep_last_snapshot()
            if isinstance(error, INTERRUPTIONS) and place.parent_run_id is None:
                print(f"\n{run.how_to_resume}", flush=True)
            raise
        logger.remove_snapshots()
    shutil.rmtree(folder, ignore_errors=True)  # after the last record of the run is in its journal


@contextmanager
def _folders_while_ours() -> Iterator[list[Path]]:
    """Folders with snapshots, removed once another process computes their course, also if the last records tell it."""
    folders: list[Path] = []
    try:
        yield folders
    except RunClaimLost:
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)
        raise


def privacy_of(config: RunConfig) -> Privacy:
    """How subjects are logged: as hashes under this machine's key, unless the configuration asks for raw ids."""
    cohort = config.cohort
    has_calendar_date = cohort is not None and (
        cohort.end_of_study is not None
        or isinstance(cohort.index, DateIndex)
        or isinstance(config.data.split, TimeSplit)  # at which follow-up ends
    )
    key = None if config.runtime.log_raw_subjects else read_key(config.runtime.cache)
    return Privacy(key, hides_days=has_calendar_date)


def run_folder(config: RunConfig, reference: str) -> Path:
    """Local folder of a run that is not finished, named by the server's id, or by the run's key if it began offline."""
    return config.runtime.cache / RUNS / reference


def describe(title: str, facts: Mapping[str, str]) -> str:
    """A run's readable summary in Markdown."""
    return f"### {title}\n\n" + "".join(f"- **{name}**: {value}\n" for name, value in facts.items())
