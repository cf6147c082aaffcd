"""Steps and validation passes as one graph for each shape of a batch: recorded once on a GPU, and replayed.

With few tokens a step is some 600 small kernels, and launching them one by one takes five times as long as what they
do. A CUDA graph launches them all at once. It knows addresses and no values: so each shape has its own tensors, into
which a batch is copied, and what changes from step to step (learning rate, seed of dropout) lies on the device. What
depends on the values of a batch, such as its number of subjects, is settled before: batches are filled up to the shape
(`ehrtrack.data.fixed`), and those that none holds go through the plain path.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from ehrtrack.data.batch import Batch, Batches
from ehrtrack.data.fixed import FixedBatch, Shape, fill, filled_up, shapes_of, smallest, tensors_of
from ehrtrack.errors import ConfigError
from ehrtrack.objectives.base import Objective
from ehrtrack.training.memory import is_out_of_memory
from ehrtrack.training.ranks import Ranks
from ehrtrack.training.settings import TrainConfig

WARM_UP = 3
"""Times that a shape is computed before it is recorded: kernels are chosen and the optimiser's state is made."""

Compute = Callable[[], None]


class Recorder(Protocol):
    """How a computation that reads and writes the same tensors each time is recorded."""

    def warm_up(self, compute: Compute) -> None:
        """Compute once, before it is recorded."""

    def record(self, compute: Compute) -> Compute:
        """What computes the same again, on what the tensors hold then; nothing is computed yet."""

    def upload(self, tensors: dict[str, Tensor]) -> Callable[[], dict[str, Tensor]]:
        """Begin to bring tensors to the device, from any thread; what is returned waits for them there."""


class CudaRecorder:
    """CUDA graphs, which share one pool of memory, as they are never replayed at the same time."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self.copies = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self.pool = torch.cuda.graph_pool_handle()

    def warm_up(self, compute: Compute) -> None:
        """On the stream of the recording, as torch asks (`torch.cuda.graph`)."""
        before = torch.cuda.current_stream(self.device)
        self.stream.wait_stream(before)
        with torch.cuda.stream(self.stream):
            compute()
        before.wait_stream(self.stream)

    def record(self, compute: Compute) -> Compute:
        graph = torch.cuda.CUDAGraph()
        # Other threads go on meanwhile: they make batches and write snapshots.
        with torch.cuda.graph(graph, pool=self.pool, stream=self.stream, capture_error_mode="thread_local"):
            compute()
        return graph.replay

    def upload(self, tensors: dict[str, Tensor]) -> Callable[[], dict[str, Tensor]]:
        """From pinned memory, on a stream of its own, beside the step that runs."""
        with torch.cuda.stream(self.copies):
            placed = {name: t.pin_memory().to(self.device, non_blocking=True) for name, t in tensors.items()}
            arrived = self.copies.record_event()

        def wait() -> dict[str, Tensor]:
            stream = torch.cuda.current_stream(self.device)
            stream.wait_event(arrived)
            for tensor in placed.values():
                tensor.record_stream(stream)
            return placed

        return wait


class StandIn:
    """Computes each time anew what a graph would replay: on any device, for tests of what is recorded."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def warm_up(self, compute: Compute) -> None:
        compute()

    def record(self, compute: Compute) -> Compute:
        return compute

    def upload(self, tensors: dict[str, Tensor]) -> Callable[[], dict[str, Tensor]]:
        return lambda: {name: tensor.to(self.device) for name, tensor in tensors.items()}


@dataclass(frozen=True)
class Filled:
    """A batch on its way to a step that is replayed.

    Attributes
    ----------
    batch : as it was
    weight : subjects or targets, without those that fill up
    tensors : waits for what is copied into the step
    """

    batch: Batch
    shape: Shape
    weight: int
    tensors: Callable[[], dict[str, Tensor]]


class Recorded(ABC):
    """A computation on batches of one shape, without a look at any value.

    Parameters
    ----------
    tensors : of a first batch, by which its own are made
    """

    def __init__(self, tensors: Mapping[str, Tensor], shape: Shape) -> None:
        self.inputs = {name: tensor.clone() for name, tensor in tensors.items()}
        self.batch = FixedBatch.over(self.inputs, shape)
        self.n_done = 0
        self.replay: Compute | None = None

    def __call__(self, tensors: Mapping[str, Tensor], recorder: Recorder) -> None:
        """Compute it on other values."""
        for name, own in self.inputs.items():
            own.copy_(tensors[name])
        if self.replay is None:
            recorder.warm_up(self.compute)
        else:
            self.replay()
        self.n_done += 1

    @abstractmethod
    def compute(self) -> None:
        """Everything that is recorded."""


class Forward(Recorded):
    """What a model returns for batches of one shape, without gradients.

    Attributes
    ----------
    out : with rows of fillers after the real ones; whatever is computed or replayed next may overwrite it
    """

    def __init__(self, tensors: Mapping[str, Tensor], shape: Shape, model: nn.Module) -> None:
        super().__init__(tensors, shape)
        self.model = model
        self.out: Tensor

    @torch.no_grad()
    def compute(self) -> None:
        self.out = self.model(self.batch)


class Step(Recorded):
    """A step of the optimiser: gradients of the mean loss, clipping and AdamW.

    A loss or gradient that is no number changes no weight: AdamW passes over a step where `found_inf` is 1, which
    torch has for its `GradScaler`.

    Attributes
    ----------
    told : the sum of the loss, and the norm of the mean's gradient
    """

    def __init__(
        self,
        tensors: Mapping[str, Tensor],
        shape: Shape,
        *,
        model: nn.Module,
        objective: Objective,
        optimizer: torch.optim.Optimizer,
        clip_norm: float,
    ) -> None:
        super().__init__(tensors, shape)
        self.model, self.objective, self.optimizer, self.clip_norm = model, objective, optimizer, clip_norm
        self.labels = {name: self.inputs[name] for name in objective.fillers}
        self.weight = self.inputs["weight"]
        self.told = torch.zeros(2, device=self.weight.device)

    def compute(self) -> None:
        learning = [p for group in self.optimizer.param_groups for p in group["params"]]
        for p in learning:
            p.grad = None
        total = self.objective.total(self.model, self.batch, self.labels, self.weight)
        total.backward()  # type: ignore[no-untyped-call]
        gradients = [p.grad for p in learning if p.grad is not None]
        norm = torch.stack(torch._foreach_norm(gradients)).norm() / self.weight
        torch._foreach_mul_(gradients, (self.clip_norm / (norm + 1e-6)).clamp(max=1) / self.weight)
        self.told.copy_(torch.stack([total.detach(), norm]))
        self.optimizer.found_inf = 1 - self.told.isfinite().all().to(torch.float32)  # type: ignore[attr-defined]
        self.optimizer.step()
        self.optimizer.found_inf = None  # type: ignore[attr-defined]


class Graphs:
    """The steps and validation passes of all shapes of a training.

    Attributes
    ----------
    is_given_up : whether something could not be recorded, and all goes through the plain path since
    """

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        optimizer: torch.optim.Optimizer,
        *,
        config: TrainConfig,
        recorder: Recorder,
    ) -> None:
        self.model, self.objective, self.optimizer, self.config = model, objective, optimizer, config
        self.recorder = recorder
        self.shapes: list[Shape] = []
        self.steps: dict[Shape, Step] = {}
        self.forwards: dict[Shape, Forward] = {}
        self.is_given_up = False

    def suit(self, batches: Batches) -> None:
        """Take the shapes that suit these batches."""
        self.shapes = shapes_of(batches, self.objective.most_targets)

    def forget(self) -> None:
        """Record anew what comes: something else learns now."""
        self.steps.clear()
        self.forwards.clear()

    def ahead(self, batches: Iterable[Batch]) -> Iterator[Batch | Filled]:
        """The batches in order, each filled up and on its way while the one before is being used."""
        with ThreadPoolExecutor(1, thread_name_prefix="fill") as pool:
            ahead = None
            for batch in batches:
                current, ahead = ahead, pool.submit(self.filled, batch)
                if current is not None:
                    yield current.result()
            if ahead is not None:
                yield ahead.result()

    def filled(self, batch: Batch) -> Batch | Filled:
        """A batch filled up to the smallest shape that holds it, or the batch itself where there is none."""
        prepared, labels, weight = self.objective.prepare(batch)
        shape = smallest(self.shapes, prepared)
        if shape is None or self.is_given_up:
            return batch
        tensors = tensors_of(fill(prepared, shape))
        n_labels = shape.n_targets or shape.n_subjects
        for name, value in self.objective.fillers.items():
            tensors[name] = filled_up(labels[name], n_labels, value)
        tensors["weight"] = torch.tensor(float(weight))
        return Filled(batch, shape, weight, self.recorder.upload(tensors))

    def take(self, filled: Filled) -> tuple[float, float]:
        """The step of a batch; returns the sum of its loss, and the norm of the gradient of the mean."""
        tensors = filled.tensors()
        if filled.shape not in self.steps:
            self.steps[filled.shape] = Step(
                tensors,
                filled.shape,
                model=self.model,
                objective=self.objective,
                optimizer=self.optimizer,
                clip_norm=self.config.clip_norm,
            )
        step = self.steps[filled.shape]
        self._run(step, tensors)
        total, norm = step.told.tolist()
        return total, norm

    def replayed(self, batches: Batches) -> Replayed:
        """The model for a validation on these batches."""
        return Replayed(self, shapes_of(batches, self.objective.most_targets))

    def forward(self, batch: Batch, shape: Shape) -> Tensor:
        """What the model returns for a batch on its device, which is filled up to a shape that holds it."""
        tensors = tensors_of(fill(batch, shape))
        if shape not in self.forwards:
            self.forwards[shape] = Forward(tensors, shape, self.model)
        forward = self.forwards[shape]
        self._run(forward, tensors)
        return forward.out[: len(batch.lengths if batch.target_positions is None else batch.target_positions)]

    def _run(self, recorded: Recorded, tensors: Mapping[str, Tensor]) -> None:
        if recorded.n_done == WARM_UP and not self.is_given_up:
            self._record(recorded)
        recorded(tensors, self.recorder)

    def _record(self, recorded: Recorded) -> None:
        try:
            recorded.replay = self.recorder.record(recorded.compute)
        except RuntimeError as error:
            if self.config.graph == "on" or is_out_of_memory(error):
                raise
            print(f"steps are not recorded as graphs, and computed one by one (train.graph=off): {error}", flush=True)
            self.is_given_up = True


class Replayed(nn.Module):
    """A model in evaluation mode, whose forward pass is replayed on batches that a shape holds.

    What it returns is to be used before it is called again, and before the next step.
    """

    def __init__(self, graphs: Graphs, shapes: list[Shape]) -> None:
        super().__init__()
        self.graphs, self.shapes = graphs, shapes

    def forward(self, batch: Batch) -> Tensor:
        shape = smallest(self.shapes, batch)
        if shape is None or self.graphs.is_given_up:
            return self.graphs.model(batch)  # type: ignore[no-any-return]
        return self.graphs.forward(batch, shape)


def recorder_for(config: TrainConfig, objective: Objective, model: nn.Module, ranks: Ranks) -> Recorder | None:
    """What records the steps of a training; None where they are not recorded.

    Raises
    ------
    ConfigError
        If they are to be recorded (`train.graph` is ``on``) and cannot be.
    """
    if config.graph == "off":
        return None
    reason = _why_not(config, objective, model, ranks)
    if reason is None:
        return CudaRecorder(ranks.device)
    if config.graph == "on":
        raise ConfigError(f"train.graph is on, and steps cannot be recorded: {reason}, or set train.graph=auto")
    return None


def _why_not(config: TrainConfig, objective: Objective, model: nn.Module, ranks: Ranks) -> str | None:
    """Why steps cannot be recorded, and what to do about it; None where they can."""
    if ranks.device.type != "cuda":
        return f"the device is {ranks.device.type}, and a CUDA device records them. Set runtime.device=cuda"
    if ranks.count > 1:
        return f"{ranks.count} processes train together, and one is needed. Start it without torchrun"
    if config.accumulate > 1:
        return f"train.accumulate is {config.accumulate}. Set it to 1, and train.batch_tokens to as many times more"
    if config.recompute:
        return "train.recompute is on. Set it to false"
    if not any(getattr(module, "is_bf16", False) for module in model.modules()):
        return "attention over ragged rows has a kernel in bfloat16 alone. Set runtime.precision=bf16"
    if not objective.fillers:
        return "the loss of this objective has no fixed shape. Take objective.name=mlm, or survival without its lasso"
    return None
