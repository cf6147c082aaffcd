"""The processes that train one model together, by Accelerate. A single process is the case of one rank.

Start them with ``torchrun --nproc-per-node N -m ehrtrack finetune ...``. Every rank runs the same recipe and gets other
batches; rank 0 alone writes files and talks to the tracking server.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, cast

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, broadcast_object_list, gather_object
from torch import nn

from ehrtrack.errors import ConfigError, EhrtrackError

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """This process among those that train together.

    Attributes
    ----------
    device : where this rank computes
    """

    accelerator: Accelerator
    device: torch.device

    @property
    def number(self) -> int:
        """From 0."""
        return int(self.accelerator.process_index)

    @property
    def count(self) -> int:
        """How many there are."""
        return int(self.accelerator.num_processes)

    @property
    def is_main(self) -> bool:
        """Whether this one writes files and talks to the tracking server."""
        return self.number == 0

    def wrap(self, model: nn.Module) -> nn.Module:
        """The model to compute losses with: its backward pass averages gradients over the ranks."""
        if self.count == 1:
            return model
        self.accelerator.free_memory()  # the wrapper before, whose hooks are on the same parameters
        return cast(nn.Module, self.accelerator.prepare_model(model, device_placement=False))

    @contextmanager
    def gradients_apart(self, wrapped: nn.Module, *, is_apart: bool) -> Iterator[None]:
        """Do not reduce gradients over the processes where `is_apart`: another batch of the same step follows.

        This is PyTorch's `no_sync`, for accumulation: the gradients of the batches of a step are added up in each
        process, and reduced once, in the backward pass of the last of them.
        """
        if is_apart and self.count > 1:
            with self.accelerator.no_sync(wrapped):
                yield
        else:
            yield

    def sum(self, values: Sequence[float]) -> list[float]:
        """Each value summed over the ranks."""
        if self.count == 1:
            return list(values)
        table = torch.tensor(values, dtype=torch.float64, device=self.device)
        torch.distributed.all_reduce(table)
        return [float(value) for value in table]

    def gather(self, records: list[T]) -> list[T]:
        """The records of all ranks, on every rank."""
        return cast(list[T], gather_object(records)) if self.count > 1 else records

    def from_main(self, make: Callable[[], T]) -> T:
        """What rank 0 makes, on every rank; an error of rank 0 is raised on every rank."""
        if self.count == 1:
            return make()
        sent: list[Any] = [None, None]
        if self.is_main:
            try:
                sent[0] = make()
            except EhrtrackError as error:
                sent[1] = error
        made, failure = broadcast_object_list(sent)
        if failure is not None:
            raise failure
        return cast(T, made)

    def main_first(self, make: Callable[[], T]) -> T:
        """The same on every rank, rank 0 first, so that the others find its files."""
        with self.accelerator.main_process_first():
            return make()


def multiplies_in_bf16(precision: Literal["auto", "f32", "bf16"], device: torch.device) -> bool:
    """Whether matrices are multiplied in bfloat16 there: `auto` does where the GPU has units for it.

    Raises
    ------
    ConfigError
        If bf16 is asked for and the GPU has none (before compute capability 8.0, such as T4 and V100), where each
        product would be emulated and attention has no kernel.
    """
    if device.type != "cuda":
        return precision == "bf16"
    major, minor = torch.cuda.get_device_capability(device)
    if precision == "bf16" and major < 8:
        raise ConfigError(
            f"runtime.precision is bf16, which {torch.cuda.get_device_name(device)} (compute capability "
            f"{major}.{minor}) has no units for; 8.0 is needed: set runtime.precision=f32"
        )
    return precision != "f32" and major >= 8


def join_ranks(device: str = "auto") -> Ranks:
    """This process's rank, on the device named: auto, cpu, cuda, cuda:1, mps.

    Raises
    ------
    ConfigError
        If there is no such device.
    """
    kind = device.split(":")[0]
    there_is = {"auto": True, "cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not there_is.get(kind, False):
        found = ", ".join(name for name, is_there in there_is.items() if is_there)
        raise ConfigError(f"runtime.device is {device} and torch {torch.__version__} sees no such device; use: {found}")
    # Buffers never change after the start, and a regression's effects are large.
    settings = DistributedDataParallelKwargs(broadcast_buffers=False)
    accelerator = Accelerator(cpu=kind == "cpu", step_scheduler_with_optimizer=False, kwargs_handlers=[settings])
    if ":" in device and accelerator.num_processes == 1:
        return Ranks(accelerator, torch.device(device))
    return Ranks(accelerator, accelerator.device)
