"""The training loop. It serves every objective and every strategy, and tells a `RunLogger` what it sees."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from ehrtrack.data.batch import Batches
from ehrtrack.objectives.base import Objective, Predictions, Selection
from ehrtrack.runlog import TRAINING, VALIDATION_LOSS, RunLogger
from ehrtrack.training.graphs import Graphs
from ehrtrack.training.ranks import Ranks
from ehrtrack.training.settings import TrainConfig as TrainConfig
from ehrtrack.training.snapshots import latest_snapshot
from ehrtrack.training.state_folders import SNAPSHOTS
from ehrtrack.training.steps import Training, set_training_mode
from ehrtrack.training.stopping import signals_wait

STEP_LOSS = f"{TRAINING}/step_loss"
"""Mean loss of the batches since the value before, against the number of batches since training began."""

__all__ = [
    "STEP_LOSS",
    "FitResult",
    "TrainConfig",
    "Training",
    "evaluate",
    "fit",
    "set_training_mode",
]


@dataclass(frozen=True)
class FitResult:
    """What training came to.

    Attributes
    ----------
    history : one table of metrics an epoch, as logged
    kept_epoch : number of the epoch (from 1) whose weights the model has now
    stop_reason : why training ended
    held_out : predictions of the validation subjects by models that did not learn from them, where the model itself did
    """

    history: list[dict[str, float]]
    kept_epoch: int
    seconds: float
    stop_reason: str
    held_out: Predictions | None = None

    @property
    def kept(self) -> dict[str, float]:
        """Metrics of the epoch whose weights the model has."""
        return self.history[self.kept_epoch - 1]


def fit(
    model: nn.Module,
    objective: Objective,
    *,
    training: Callable[[int], Batches],
    validation: Batches,
    config: TrainConfig,
    ranks: Ranks,
    folder: Path,
    logger: RunLogger,
    on_epoch: Callable[[int, dict[str, float]], None] | None = None,
    snapshot_seconds: float = 600,
    on_snapshot: Callable[[Path], object] | None = None,
    on_go_on: Callable[[list[dict[str, float]]], object] = lambda history: None,
    printed: Sequence[str] = (VALIDATION_LOSS,),
    batches_between: int = 50,
    begin_epoch: Callable[[int], bool] = lambda epoch: False,
    beside: Callable[[int], Mapping[str, float]] = lambda epoch: {},
) -> FitResult:
    """Train until the last epoch or until patience ends, and leave the model with the weights of the kept epoch.

    If `folder` holds a snapshot of this training, it is resumed from there. Ctrl-C and SIGTERM end the training after
    the current step, with a snapshot; then they have the effect that they would have had otherwise.

    Parameters
    ----------
    model : on the device of `ranks`; parameters with ``requires_grad`` learn
    training : the batches of an epoch, by its number from 1
    folder : keeps the trainable tensors of the epochs that may come to be kept, and the last snapshots
    on_epoch : called after each epoch with its number and metrics; may raise `TrainingStopped`
    snapshot_seconds : longest time between two snapshots; there is one after each epoch anyway
    on_snapshot : called from another thread with the folder of a snapshot that is on the disk
    on_go_on : called with the metrics of the finished epochs when training is resumed from a snapshot
    printed : names of the metrics in the line of an epoch; those that the objective lacks are passed over
    batches_between : batches of a process from one value of `STEP_LOSS` to the next
    begin_epoch : called with the number of an epoch before it; returns whether it changed what learns
    beside : called with the number of an epoch after its validation; returns further metrics of the model as it is then

    Raises
    ------
    TrainingError
        If a loss, gradient or validation score is not finite, or memory does not suffice; `folder` then holds the
        last good weights and the last snapshot.
    """
    with signals_wait() as stop:
        run = Training(
            *(model, objective),
            config=config,
            ranks=ranks,
            folder=folder,
            snapshot_seconds=snapshot_seconds,
            on_snapshot=on_snapshot,
            stop=stop,
            check_is_ours=logger.check_is_ours,
            on_steps=lambda n_batches, loss: logger.log_metrics({STEP_LOSS: loss}, step=n_batches),
            batches_between=batches_between,
            begin_epoch=begin_epoch,
        )
        try:
            _go_on_if_begun(run, on_go_on)
            stop_reason = _train(run, training, validation, logger, on_epoch, printed, beside)
        finally:
            run.close()
    run.restore_kept()
    progress = run.progress
    return FitResult(progress.history, run.kept_epoch, progress.seconds, stop_reason)


def _train(
    run: Training,
    training: Callable[[int], Batches],
    validation: Batches,
    logger: RunLogger,
    on_epoch: Callable[[int, dict[str, float]], None] | None,
    printed: Sequence[str],
    beside: Callable[[int], Mapping[str, float]],
) -> str:
    config, progress = run.config, run.progress
    while progress.epoch <= config.epochs:
        if run.is_out_of_patience():
            return f"no better {run.objective.selection.metric} for {config.patience} epochs"
        epoch, started = progress.epoch, time.monotonic()
        metrics = run.train_epoch(training(epoch))
        metrics |= evaluate(
            *(run.model, run.objective, validation, run.ranks),
            before_batch=run.stop_if_alone,
            graphs=run.graphs,
        )
        progress.seconds += time.monotonic() - started
        metrics |= beside(epoch)
        logger.log_metrics(metrics, step=epoch)
        is_kept = run.end_epoch(metrics)
        run.save_snapshot()
        if run.ranks.is_main:
            _tell_missing_error(run.objective.selection, metrics, epoch)
            print(_progress_line(f"epoch {epoch:>3}/{config.epochs}", metrics, printed, is_kept=is_kept), flush=True)
        if on_epoch is not None:
            on_epoch(epoch, metrics)
    return "all epochs done"


def _go_on_if_begun(run: Training, on_go_on: Callable[[list[dict[str, float]]], object]) -> None:
    snapshot = run.ranks.from_main(lambda: latest_snapshot(run.folder / SNAPSHOTS))
    if snapshot is None:
        return
    run.go_on(snapshot)
    on_go_on(run.progress.history)
    if run.ranks.is_main:
        progress = run.progress
        print(f"continues in epoch {progress.epoch}, after {progress.n_done} of its batches", flush=True)


def evaluate(
    model: nn.Module,
    objective: Objective,
    batches: Batches,
    ranks: Ranks,
    *,
    before_batch: Callable[[], None] = lambda: None,
    graphs: Graphs | None = None,
) -> dict[str, float]:
    """Validation metrics of the model as it is, with dropout off; every rank scores its share and gets them all.

    Parameters
    ----------
    graphs : of the model, where its passes are replayed
    """
    model.eval()
    scored = model if graphs is None else graphs.replayed(batches)
    mine = []
    with torch.no_grad():
        for number, batch in batches.numbered(ranks.number, ranks.count):
            before_batch()
            mine.append((number, objective.score(scored, batch.to(ranks.device))))
    every = sorted(ranks.gather(mine), key=lambda numbered: numbered[0])
    return objective.metrics([score for _, score in every])


def _tell_missing_error(selection: Selection, metrics: dict[str, float], epoch: int) -> None:
    if epoch == 1 and selection.error and selection.error not in metrics:
        print(
            f"too few validation events for a standard error of {selection.metric}: of all epochs the one with the "
            f"lowest {selection.among} is kept",
            flush=True,
        )


def _progress_line(epoch: str, metrics: dict[str, float], printed: Sequence[str], *, is_kept: bool) -> str:
    values = "  ".join(f"{name} {metrics[name]:.4f}" for name in printed if name in metrics)
    speed = f"{metrics[f'{TRAINING}/tokens_per_second'] / 1000:.1f}k tokens/s"
    return f"{epoch}  {values}  {speed}{'  *' if is_kept else ''}"
