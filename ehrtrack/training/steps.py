"""A model in training: its steps, and all of its state that is kept on the disk."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

from ehrtrack.data.batch import Batch, Batches
from ehrtrack.errors import CheckpointError, TrainingError
from ehrtrack.models.flops import StepFlops
from ehrtrack.objectives.base import Objective
from ehrtrack.runlog import TRAINING, named
from ehrtrack.training.checkpoint import load_tensors, save_tensors
from ehrtrack.training.device_facts import memory_mb, meter_of, peak_flops, speed_facts
from ehrtrack.training.graphs import Filled, Graphs, recorder_for
from ehrtrack.training.memory import out_of_memory_is_told
from ehrtrack.training.optimizer import make_optimizer, placed, set_rate
from ehrtrack.training.ranks import Ranks
from ehrtrack.training.schedule import warmup_cosine
from ehrtrack.training.settings import TrainConfig
from ehrtrack.training.snapshots import CheckpointWriter, Snapshot
from ehrtrack.training.state_folders import SNAPSHOTS
from ehrtrack.training.stopping import StopRequest
from ehrtrack.training.threads import threads_for
from ehrtrack.training.watch import watched_epoch

T = TypeVar("T")
BEST_BEFORE = "best.safetensors"
"""Where snapshots of earlier versions have the weights of the best epoch."""


@dataclass
class Progress:
    """How far the training has come: what a resumed run needs beside its tensors.

    Attributes
    ----------
    epoch : the number of the current epoch, from 1
    n_done, n_batches : the batches of the current epoch that are done, and all that it has, on each process
    sums : sums of loss, weight, gradient norm, steps, tokens and seconds over the current epoch
    history : the metrics of the epochs before
    seconds : the training time so far
    """

    epoch: int = 1
    n_done: int = 0
    n_batches: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    history: list[dict[str, float]] = field(default_factory=list)
    seconds: float = 0.0

    def add(self, **values: float) -> None:
        """Add to the sums of the epoch."""
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + value


class Training:
    """A model that is being trained, its optimiser, and how far it is."""

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        *,
        config: TrainConfig,
        ranks: Ranks,
        folder: Path,
        snapshot_seconds: float,
        on_snapshot: Callable[[Path], object] | None = None,
        stop: StopRequest | None = None,
        check_is_ours: Callable[[], None] = lambda: None,
        on_steps: Callable[[int, float], object] = lambda n_batches, loss: None,
        batches_between: int = 50,
        begin_epoch: Callable[[int], bool] = lambda epoch: False,
    ) -> None:
        self.model = model
        self.wrapped = ranks.wrap(model)
        self.objective = objective
        self.config = config
        self.ranks = ranks
        self.folder = folder
        self.snapshot_seconds = snapshot_seconds
        self.trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.graphs: Graphs | None = None
        recorder = recorder_for(config, objective, model, ranks)
        self.optimizer = make_optimizer(self.trainable, config, ranks.device, is_recorded=recorder is not None)
        if recorder is not None:
            self.graphs = Graphs(model, objective, self.optimizer, config=config, recorder=recorder)
        self.writer = CheckpointWriter(folder / SNAPSHOTS, on_written=on_snapshot) if ranks.is_main else None
        self.stop = stop or StopRequest()
        self.check_is_ours = check_is_ours  # raises once another process has claimed the run
        self.on_steps = on_steps  # gets the number of batches since training began, and their loss since the last time
        self.batches_between = batches_between
        self.begin_epoch = begin_epoch
        self.progress = Progress()
        self.flops = StepFlops.of(model)
        self.meter = meter_of(ranks.device)
        is_bf16 = any(getattr(module, "is_bf16", False) for module in model.modules())
        self.peak = peak_flops(ranks.device, is_bf16=is_bf16)

    def train_epoch(self, batches: Batches) -> dict[str, float]:
        """Train on the batches of the epoch that are not done yet."""
        if self.begin_epoch(self.progress.epoch):
            self.wrapped = self.ranks.wrap(self.model)  # which looks at what learns when it is made
            self.flops = StepFlops.of(self.model)
            if self.graphs is not None:
                self.graphs.forget()
        set_training_mode(self.model)
        progress, ranks = self.progress, self.ranks
        mine = replace(batches, rank=ranks.number, n_ranks=ranks.count)
        if progress.n_batches not in (0, len(mine)):  # the epoch was begun with batches of another size
            progress.n_done = progress.n_done * len(mine) // progress.n_batches
        progress.n_batches = len(mine)
        with watched_epoch(
            f"epoch {progress.epoch:>3}/{self.config.epochs}",
            n_done=progress.n_done,
            n_batches=len(mine),
            epochs_left=self.config.epochs - progress.epoch,
            is_silent=not ranks.is_main,
        ) as told:
            last_snapshot = time.monotonic()
            self.meter.begin()
            for step in _in_groups(self._fed(replace(mine, start=progress.n_done)), self.config.accumulate):
                self.check_is_ours()
                started = time.monotonic()
                self.take_step(step)
                progress.n_done += len(step)
                progress.add(seconds=time.monotonic() - started, **self.meter.look())
                told(progress.n_done, progress.sums["loss"] / progress.sums["weight"])
                self._report_step(len(step))
                if self.stop.is_agreed:
                    self.stop_here()
                if time.monotonic() - last_snapshot > self.snapshot_seconds:
                    self.save_snapshot()
                    last_snapshot = time.monotonic()
        return self._epoch_metrics()

    def _report_step(self, n_batches: int) -> None:
        """Tell the mean loss of the last `batches_between` batches; what is summed up is in the snapshots."""
        sums = self.progress.sums
        self.progress.add(window_batches=n_batches)
        if sums["window_batches"] < self.batches_between:
            return
        self.on_steps(self.n_before + self.progress.n_done, sums["window_loss"] / sums["window_weight"])
        sums["window_batches"] = sums["window_loss"] = sums["window_weight"] = 0.0

    @property
    def n_before(self) -> int:
        """Batches of the epochs before."""
        return int(sum(epoch[f"{TRAINING}/batches"] for epoch in self.progress.history))

    def _fed(self, batches: Batches) -> Iterable[Batch | Filled]:
        """The batches, where steps are recorded filled up to the shapes of these."""
        if self.graphs is None:
            return batches
        self.graphs.suit(batches)
        return self.graphs.ahead(batches)

    def take_step(self, batches: Sequence[Batch | Filled]) -> None:
        """One step of the optimiser on the mean loss of all subjects of `batches`, over all ranks."""
        rate = self.rate()
        set_rate(self.optimizer, rate)
        if self.graphs is not None and isinstance(filled := batches[0], Filled):
            loss, weight, norm, n_tokens = self._replay(self.graphs, filled)
        else:
            loss, weight, norm, n_tokens = self._compute([batch for batch in batches if isinstance(batch, Batch)])
        self.progress.add(loss=loss, weight=weight, norm=norm, steps=1, tokens=n_tokens)
        self.progress.add(window_loss=loss, window_weight=weight)
        self.progress.sums["lr"] = rate

    def _replay(self, graphs: Graphs, filled: Filled) -> tuple[float, float, float, float]:
        """A step that is recorded, of one batch and one rank; returns sums of loss and weight, norm and tokens."""
        batch = filled.batch
        if self.writer is not None:
            self.writer.wait_copied()
        _seed_dropout(batch.seed, self.ranks.device)
        with self._memory_is_told(batch), threads_for(batch):
            loss, norm = graphs.take(filled)
        self._check_finite("the training loss", loss / filled.weight)
        self._check_finite("the gradient's norm", norm)
        self._count(batch, filled.weight)
        self.stop.is_agreed = self.stop.is_asked
        return loss, filled.weight, norm, batch.n_tokens

    def _compute(self, batches: Sequence[Batch]) -> tuple[float, float, float, float]:
        """A step on any batches, operation by operation; returns sums of loss and weight, norm and tokens."""
        for parameter in self.trainable.values():
            parameter.grad = None
        loss_sum, weight = 0.0, 0
        for number, batch in enumerate(batches, 1):
            _seed_dropout(batch.seed, self.ranks.device)
            with (
                self._memory_is_told(batch),
                self.ranks.gradients_apart(self.wrapped, is_apart=number < len(batches)),
                threads_for(batch),
            ):
                loss = self.objective.loss(self.wrapped, batch.to(self.ranks.device))
                self._check_finite("the training loss", loss.mean)
                loss.total.backward()  # type: ignore[no-untyped-call]
            loss_sum += loss.mean * loss.weight
            weight += loss.weight
            self._count(batch, loss.weight)
        mine = [loss_sum, weight, sum(batch.n_tokens for batch in batches), float(self.stop.is_asked)]
        loss_sum, all_weight, n_tokens, n_asked = self.ranks.sum(mine)
        self.stop.is_agreed = n_asked > 0  # all ranks stop after the same step
        norm = self._scale_gradients(self.ranks.count / all_weight)  # the ranks' mean of sums -> the mean
        if self.writer is not None:
            self.writer.wait_copied()
        self.optimizer.step()
        return loss_sum, all_weight, norm, n_tokens

    def _count(self, batch: Batch, n_targets: int) -> None:
        if self.flops is not None:
            is_cached = batch.hidden is not None
            self.progress.add(flops=self.flops(batch.lengths, n_targets=n_targets, is_cached=is_cached))

    def _memory_is_told(self, batch: Batch) -> AbstractContextManager[None]:
        return out_of_memory_is_told(batch, self._where(), batch_tokens=self.config.batch_tokens, folder=self.folder)

    def _scale_gradients(self, factor: float) -> float:
        """Multiply the gradients, clip their norm over all parameters, and return what it was; in one pass for both."""
        gradients = [p.grad for p in self.trainable.values() if p.grad is not None]
        norm = factor * float(torch.stack(torch._foreach_norm(gradients)).norm())
        self._check_finite("the gradient's norm", norm)
        torch._foreach_mul_(gradients, factor * min(1.0, self.config.clip_norm / (norm + 1e-6)))
        return norm

    def end_epoch(self, metrics: dict[str, float]) -> bool:
        """Take the epoch's metrics into account; returns whether it is the one that is kept, as things are."""
        progress, selection, epoch = self.progress, self.objective.selection, self.progress.epoch
        for name in selection.metrics:
            self._check_finite(f"the validation score {name}", metrics[name], where=f"after epoch {epoch}")
        progress.history.append(metrics)
        candidates = selection.candidates(progress.history)
        if self.ranks.is_main:
            if epoch in candidates:
                save_tensors(self._weights_of(epoch), self.trainable)
            self._keep_only(candidates)
        progress.epoch, progress.n_done, progress.n_batches, progress.sums = epoch + 1, 0, 0, {}
        return selection.kept_epoch(progress.history) == epoch

    def is_out_of_patience(self) -> bool:
        """Whether `patience` epochs went by without progress."""
        history = self.progress.history
        return len(history) - self.objective.selection.last_progress(history) >= self.config.patience

    @property
    def kept_epoch(self) -> int:
        """The epoch (from 1) whose weights are kept, as things are; 0 before there is one."""
        return self.objective.selection.kept_epoch(self.progress.history)

    def _weights_of(self, epoch: int) -> Path:
        return self.folder / f"epoch-{epoch:06d}.safetensors"

    def _keep_only(self, epochs: Sequence[int]) -> None:
        """Remove the weights of all other epochs."""
        for file in set(self.folder.glob("epoch-*.safetensors")) - {self._weights_of(epoch) for epoch in epochs}:
            file.unlink()

    def save_snapshot(self) -> None:
        """Take a snapshot from which training can be resumed; it is written in the background."""
        if self.writer is None:
            return
        tensors = {f"model/{name}": p.detach() for name, p in self.trainable.items()}
        for name, p in self.trainable.items():
            tensors |= {f"{key}/{name}": value for key, value in self.optimizer.state[p].items()}
        beside = [self._weights_of(epoch) for epoch in self.objective.selection.candidates(self.progress.history)]
        self.writer.save(self.n_before + self.progress.n_done, tensors, asdict(self.progress), beside=beside)

    def stop_here(self) -> None:
        """Keep the state as it is now, and let the signal that asked for the stop take its course."""
        self.save_snapshot()
        self.close()
        print(f"told to stop; epoch {self.progress.epoch} is kept after {self.progress.n_done} batches", flush=True)
        self.stop.obey()

    def stop_if_alone(self) -> None:
        """Stop between batches that change nothing; several ranks stop together, after their next step."""
        self.check_is_ours()
        if self.stop.is_asked and self.ranks.count == 1:
            self.stop_here()

    def go_on(self, snapshot: Snapshot) -> None:
        """Go on where a snapshot was taken.

        Raises
        ------
        CheckpointError
            If it lacks weights that may come to be kept.
        """
        facts = {name: value for name, value in snapshot.facts.items() if name not in ("best_epoch", "best_score")}
        kept = self._kept_in(snapshot, facts["history"])
        with torch.no_grad():
            for name, p in self.trainable.items():
                p.copy_(snapshot.tensors[f"model/{name}"])
                state = {key: snapshot.tensors.get(f"{key}/{name}") for key in ("step", "exp_avg", "exp_avg_sq")}
                if state["step"] is not None:
                    self.optimizer.state[p] = {key: placed(key, value, p) for key, value in state.items()}
        self.progress = Progress(**facts)
        if self.ranks.is_main:  # the weights that were kept then, which may not be those that lie there now
            self._keep_only([])
            for epoch, file in kept.items():
                save_tensors(self._weights_of(epoch), load_tensors(file))

    def _kept_in(self, snapshot: Snapshot, history: list[dict[str, float]]) -> dict[int, Path]:
        """The files of a snapshot that hold the weights of the epochs that may come to be kept."""
        candidates = self.objective.selection.candidates(history)
        files = {epoch: snapshot.folder / self._weights_of(epoch).name for epoch in candidates}
        if (before := snapshot.folder / BEST_BEFORE).is_file():
            files = {epoch: before if epoch == snapshot.facts["best_epoch"] else file for epoch, file in files.items()}
        missing = [str(epoch) for epoch, file in files.items() if not file.is_file()]
        if missing:
            raise CheckpointError(
                f"{snapshot.folder} lacks the weights of epoch {', '.join(missing)}, which may come to be kept: it was "
                "taken by another version of ehrtrack, which kept other epochs. Go on with that version, or start anew"
            )
        return files

    def restore_kept(self) -> None:
        """Give the model the weights of the epoch that is kept."""
        kept = self.ranks.from_main(lambda: load_tensors(self._weights_of(self.kept_epoch)))
        with torch.no_grad():
            for name, tensor in kept.items():
                self.trainable[name].copy_(tensor)

    def close(self) -> None:
        """Wait until everything is written."""
        if self.writer is not None:
            self.writer.close()

    def rate(self) -> float:
        """Learning rate of the next step: that of its middle."""
        progress = self.progress
        done = (progress.n_done + 0.5 * self.config.accumulate) / max(progress.n_batches, 1)
        share = (progress.epoch - 1 + done) / self.config.epochs
        return self.config.lr * warmup_cosine(share, warmup_share=self.config.warmup_share)

    def _epoch_metrics(self) -> dict[str, float]:
        sums = self.progress.sums
        self.progress.add(**self.meter.look(is_last=True))
        return named(
            TRAINING,
            {
                "loss": sums["loss"] / sums["weight"],
                "grad_norm": sums["norm"] / sums["steps"],
                "tokens_per_second": sums["tokens"] / sums["seconds"],
                "epoch_seconds": sums["seconds"],
                "batches": float(self.progress.n_batches),
                "lr": sums["lr"],
                "memory_mb": memory_mb(self.ranks.device),
                **speed_facts(sums, self.peak),
            },
        )

    def _where(self) -> str:
        return f"at step {self.progress.n_done // self.config.accumulate + 1} of epoch {self.progress.epoch}"

    def _check_finite(self, what: str, value: float, *, where: str = "") -> None:
        """Stop before weights that are no numbers are kept, or take a step that makes them so."""
        if math.isfinite(value):
            return
        epoch = self.kept_epoch
        kept = f"the weights of epoch {epoch} are in {self._weights_of(epoch)}" if epoch else "no epoch was done"
        raise TrainingError(
            f"{what} became {value} {where or self._where()}; {kept}. "
            f"Lower train.lr (now {self.config.lr:g}) or train.clip_norm (now {self.config.clip_norm:g})"
        )


def set_training_mode(model: nn.Module) -> None:
    """Switch dropout on where something learns: an encoder without trainable parameters is a fixed function."""
    model.train()
    encoder = model.get_submodule(next(n for n, _ in model.named_modules() if n.split(".")[-1] == "encoder"))
    encoder.train(any(p.requires_grad for p in encoder.parameters()))


def _seed_dropout(seed: int, device: torch.device) -> None:
    """Make dropout, too, the same wherever and whenever a batch is drawn.

    `torch.manual_seed` would format the call stack for a GPU that may be there later: 1.5 ms.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)


def _in_groups(batches: Iterable[T], size: int) -> Iterator[list[T]]:
    iterator = iter(batches)
    while group := list(islice(iterator, size)):
        yield group
