"""The training loop. It serves every objective and every strategy, and tells a `RunLogger` what it sees."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
from pydantic import Field
from torch import Tensor, nn
from tqdm import tqdm

from ehrtrack.data.batch import Batches
from ehrtrack.errors import TrainingError
from ehrtrack.objectives._protocol import Objective
from ehrtrack.runlog import RunLogger
from ehrtrack.section import Section
from ehrtrack.training.checkpoint import load_tensors, save_tensors
from ehrtrack.training.schedule import warmup_cosine


class TrainConfig(Section):
    """Settings of the training loop.

    Attributes
    ----------
    batch_size : subjects a batch
    patience : epochs without a better validation score after which training stops
    warmup_share : share of all steps in which the learning rate rises
    clip_norm : largest norm of the gradient of all trainable parameters together
    """

    epochs: int = Field(20, ge=1)
    batch_size: int = Field(32, ge=1)
    lr: float = Field(1e-3, gt=0)
    weight_decay: float = Field(0.01, ge=0)
    patience: int = Field(5, ge=1)
    warmup_share: float = Field(0.1, ge=0, lt=1)
    clip_norm: float = Field(1.0, gt=0)


class TrainingStopped(Exception):
    """Raised by `on_epoch` to end training early, as a sweep does with a trial that lags behind."""


@dataclass(frozen=True)
class FitResult:
    """What training came to.

    Attributes
    ----------
    history : one table of metrics an epoch, as logged
    best_epoch : number of the epoch (from 1) whose weights the model has now
    stop_reason : why training ended
    """

    history: list[dict[str, float]]
    best_epoch: int
    seconds: float
    stop_reason: str

    @property
    def best(self) -> dict[str, float]:
        """Metrics of the best epoch."""
        return self.history[self.best_epoch - 1]


def fit(
    model: nn.Module,
    objective: Objective,
    *,
    training: Callable[[int], Batches],
    validation: Batches,
    config: TrainConfig,
    device: torch.device,
    generator: torch.Generator,
    checkpoint: Path,
    logger: RunLogger,
    on_epoch: Callable[[int, dict[str, float]], None] | None = None,
) -> FitResult:
    """Train until the last epoch or until patience ends, and leave the model with its best weights.

    Parameters
    ----------
    model : on `device`; parameters with ``requires_grad`` learn
    training : the batches of an epoch, by its number from 1
    checkpoint : file that always holds the trainable tensors of the best epoch so far
    on_epoch : called after each epoch with its number and metrics; may raise `TrainingStopped`

    Raises
    ------
    TrainingError
        If a loss, gradient or validation score is not finite; `checkpoint` then holds the last good weights.
    """
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(
        _decay_groups(trainable, config.weight_decay), lr=config.lr, fused=device.type in ("cpu", "cuda")
    )
    schedule = warmup_cosine(optimizer, n_steps=config.epochs * len(training(1)), warmup_share=config.warmup_share)
    history: list[dict[str, float]] = []
    best_epoch, best_score, stop_reason = 0, None, "all epochs done"
    started = time.monotonic()
    for epoch in range(1, config.epochs + 1):
        rate = float(schedule.get_last_lr()[0])
        metrics = _train_epoch(
            model, objective, training(epoch), optimizer, schedule, trainable, epoch=epoch, config=config,
            device=device, generator=generator, checkpoint=checkpoint,
        )  # fmt: skip
        metrics |= evaluate(model, objective, validation, device)
        metrics |= {"train/lr": rate, "train/memory_mb": memory_mb(device)}
        history.append(metrics)
        logger.log_metrics(metrics, step=epoch)
        score = metrics[objective.selection.metric]
        what, where = f"the validation score {objective.selection.metric}", f"after epoch {epoch}"
        _check_finite(what, score, where, config=config, checkpoint=checkpoint)
        if objective.selection.improves(score, best_score):
            best_epoch, best_score = epoch, score
            save_tensors(checkpoint, trainable)
        print(_progress_line(epoch, config.epochs, metrics, is_best=best_epoch == epoch), flush=True)
        if on_epoch is not None:
            on_epoch(epoch, metrics)
        if epoch - best_epoch >= config.patience:
            stop_reason = f"no better {objective.selection.metric} for {config.patience} epochs"
            break
    _restore(trainable, checkpoint)
    return FitResult(history, best_epoch, time.monotonic() - started, stop_reason)


def _train_epoch(
    model: nn.Module,
    objective: Objective,
    batches: Batches,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    trainable: Mapping[str, Tensor],
    *,
    epoch: int,
    config: TrainConfig,
    device: torch.device,
    generator: torch.Generator,
    checkpoint: Path,
) -> dict[str, float]:
    set_training_mode(model)
    loss_sum, norm_sum, n_subjects, n_tokens = 0.0, 0.0, 0, 0
    started = time.monotonic()
    for step, batch in enumerate(tqdm(batches, desc=f"epoch {epoch}", leave=False, delay=3, disable=None), 1):
        optimizer.zero_grad(set_to_none=True)
        loss = objective.loss(model, batch.to(device), generator)
        where = f"at step {step} of epoch {epoch}"
        _check_finite("the training loss", loss.item(), where, config=config, checkpoint=checkpoint)
        loss.backward()  # type: ignore[no-untyped-call]
        norm = float(nn.utils.clip_grad_norm_(trainable.values(), config.clip_norm))
        _check_finite("the gradient's norm", norm, where, config=config, checkpoint=checkpoint)
        optimizer.step()
        schedule.step()
        loss_sum += loss.item() * len(batch.lengths)
        norm_sum += norm
        n_subjects += len(batch.lengths)
        n_tokens += len(batch.token)
    seconds = time.monotonic() - started
    return {
        "train/loss": loss_sum / n_subjects,
        "train/grad_norm": norm_sum / len(batches),
        "train/tokens_per_second": n_tokens / seconds,
        "train/epoch_seconds": seconds,
    }


def _check_finite(what: str, value: float, where: str, *, config: TrainConfig, checkpoint: Path) -> None:
    """Stop before weights that are no numbers are kept, or take a step that makes them so."""
    if math.isfinite(value):
        return
    kept = f"the weights of the best epoch are in {checkpoint}" if checkpoint.exists() else "no epoch was done"
    raise TrainingError(
        f"{what} became {value} {where}; {kept}. "
        f"Lower train.lr (now {config.lr:g}) or train.clip_norm (now {config.clip_norm:g})"
    )


def evaluate(model: nn.Module, objective: Objective, batches: Batches, device: torch.device) -> dict[str, float]:
    """Validation metrics of the model as it is, with dropout off."""
    model.eval()
    with torch.no_grad():
        return objective.evaluate(model, batches, device)


def set_training_mode(model: nn.Module) -> None:
    """Switch dropout on where something learns: an encoder without trainable parameters is a fixed function."""
    model.train()
    encoder = model.get_submodule(next(n for n, _ in model.named_modules() if n.split(".")[-1] == "encoder"))
    encoder.train(any(p.requires_grad for p in encoder.parameters()))


def pick_device(name: str) -> torch.device:
    """The device for `name`; ``auto`` takes CUDA, else MPS, else the CPU."""
    if name != "auto":
        return torch.device(name)
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def memory_mb(device: torch.device) -> float:
    """Peak memory on the GPU, or the process's resident memory now, in MB."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    return float(psutil.Process().memory_info().rss) / 1e6


def _decay_groups(trainable: Mapping[str, Tensor], weight_decay: float) -> list[dict[str, object]]:
    """Weight decay on matrices; none on biases and norms."""
    matrices = [p for p in trainable.values() if p.dim() >= 2]
    vectors = [p for p in trainable.values() if p.dim() < 2]
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]


def _restore(trainable: Mapping[str, Tensor], checkpoint: Path) -> None:
    with torch.no_grad():
        for name, tensor in load_tensors(checkpoint).items():
            trainable[name].copy_(tensor)


def _progress_line(epoch: int, n_epochs: int, metrics: dict[str, float], *, is_best: bool) -> str:
    shown = ("train/loss", "val/loss", "val/unigram_loss", "val/mlm_accuracy", "val/c_index", "val/ibs")
    values = "  ".join(f"{name} {metrics[name]:.4f}" for name in shown if name in metrics)
    speed = f"{metrics['train/tokens_per_second'] / 1000:.1f}k tokens/s"
    return f"epoch {epoch:>3}/{n_epochs}  {values}  {speed}{'  *' if is_best else ''}"
