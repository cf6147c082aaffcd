"""How many tokens a device takes at once, and what is said when they were too many."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from ehrtrack.data.batch import Batch, Batches
from ehrtrack.errors import TrainingError
from ehrtrack.objectives.base import Objective

CPU_BATCH_TOKENS = 4096
"""Tokens a second no longer grow beyond this on a CPU, and memory does."""

CUDA_BATCH_TOKENS = (4096, 65_536)
"""The smallest and the largest batch that is tried on a GPU."""

CUDA_STEPS = 200
"""Steps that an epoch keeps on a GPU, before its batches become larger than the smallest."""

CUDA_SHARE = 0.4
"""Share of the GPU's memory below which twice the tokens are tried."""


def find_batch_tokens(
    model: nn.Module, objective: Objective, batches: Batches, device: torch.device, *, batches_per_step: int = 1
) -> int:
    """The token budget of a batch for this model on this device.

    On a GPU real training batches of doubling size are tried until one takes more than `CUDA_SHARE` of the memory, or
    an epoch would have fewer than `CUDA_STEPS` steps: a GPU is faster with larger batches than few subjects can learn
    from.

    Parameters
    ----------
    batches : of an epoch, of any budget
    batches_per_step : over all ranks, and those whose gradients are accumulated
    """
    if device.type != "cuda":
        return max(CPU_BATCH_TOKENS, batches.max_tokens)
    total = torch.cuda.get_device_properties(device).total_memory
    budget = max(CUDA_BATCH_TOKENS[0], batches.max_tokens)
    most = min(CUDA_BATCH_TOKENS[1], batches.n_tokens // (CUDA_STEPS * batches_per_step))
    while budget * 2 <= most:
        torch.cuda.reset_peak_memory_stats(device)
        batch = next(iter(replace(batches, batch_tokens=budget))).to(device)
        objective.loss(model, batch).total.backward()  # type: ignore[no-untyped-call]
        model.zero_grad(set_to_none=True)
        if torch.cuda.max_memory_allocated(device) > CUDA_SHARE * total:
            break  # twice as much might not fit
        budget *= 2
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)  # what is logged is training's
    return budget


@contextmanager
def out_of_memory_is_told(
    batch: Batch, where: str, *, batch_tokens: Literal["auto"] | int, folder: Path
) -> Iterator[None]:
    """Say which batch did not fit, and which setting to change."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        if len(batch.lengths) == 1:  # no budget makes it smaller
            found = f"one subject with {batch.n_tokens:,} tokens"
            remedy = "Set train.recompute=true, or start a new run with a smaller data.max_tokens"
        else:
            found = f"{len(batch.lengths)} subjects with {batch.n_tokens:,} tokens, the longest {max(batch.lengths):,}"
            remedy = (
                f"Set train.batch_tokens (now {batch_tokens}) to {batch.n_tokens // 2:,} and train.accumulate to twice "
                "what it is, or train.recompute=true"
            )
        raise TrainingError(
            f"out of memory {where}: {found}. {remedy}; the last snapshot is in {folder}, and `ehrtrack resume` goes "
            "on from it"
        ) from error


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on a GPU or on the CPU."""
    is_cpu = "DefaultCPUAllocator" in str(error) or "can't allocate memory" in str(error)
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or is_cpu
