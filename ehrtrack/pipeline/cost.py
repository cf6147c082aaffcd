"""Measure what training costs on a few steps: tokens per second, and the memory of a batch."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import cycle

import torch
from torch import Tensor, nn

from ehrtrack.config import RunConfig
from ehrtrack.data.batch import Batch, Batches
from ehrtrack.models.behrt import EhrModel
from ehrtrack.objectives.base import Objective
from ehrtrack.pipeline.build import Adaptation, adapt
from ehrtrack.pipeline.fit import feed
from ehrtrack.pipeline.prepare import CohortRecords
from ehrtrack.training.ranks import Ranks

FORWARD_SHARE = 1 / 3
"""Cost of a validation token in training tokens: the forward pass without the backward pass, which takes two."""

VALIDATION_SHARE = 0.2
"""Validation subjects a training subject, about."""

FLOAT_BYTES = 4


@dataclass(frozen=True)
class Cost:
    """The speed and the memory of a training.

    Attributes
    ----------
    tokens : number of tokens in an epoch
    epochs : at most; none of a head that is solved for
    tokens_per_second : speed of training steps, including the making of batches
    once_seconds : time for the states of a frozen encoder, which are computed before the first epoch
    megabytes : memory of weights, gradients, the optimiser's two moments, and what the backward pass of one batch keeps
    """

    tokens: int
    epochs: int
    tokens_per_second: float
    once_seconds: float
    megabytes: float

    @property
    def hours(self) -> float:
        """Hours for all epochs and their validation."""
        worked = self.tokens * (1 + FORWARD_SHARE * VALIDATION_SHARE) * self.epochs / self.tokens_per_second
        return (worked + self.once_seconds) / 3600

    @property
    def of_what(self) -> str:
        """What the hours are for, in words.

        >>> Cost(1000, 20, 500.0, 0.0, 1.0).of_what, Cost(1000, 0, 500.0, 1.0, 1.0).of_what
        ('20 epochs at most', 'a head that is solved for')
        """
        return f"{self.epochs} epochs at most" if self.epochs else "a head that is solved for"


def measure_adaptation(
    config: RunConfig, records: CohortRecords, ranks: Ranks, *, seconds: float
) -> tuple[Adaptation, Cost]:
    """Adapt an encoder to a cohort for some seconds. It has random weights, which cost as much as pretrained ones.

    Returns
    -------
    The model as it was measured, which is good for nothing else, and what it takes.
    """
    adapted = adapt(config, records, None, ranks, is_to_train=False)
    batches = feed(config, records, adapted.model, adapted.objective, ranks).epoch(1)
    cost = measure(
        *(adapted.model, adapted.objective, batches, ranks.device),
        encoder=adapted.plain if adapted.keeps_states else None,
        epochs=0 if adapted.strategy.solves_head else config.train.epochs,
        seconds=seconds,
    )
    return adapted, cost


def measure(
    model: nn.Module,
    objective: Objective,
    batches: Batches,
    device: torch.device,
    *,
    encoder: EhrModel | None,
    epochs: int,
    seconds: float,
) -> Cost:
    """Train for some seconds on batches of the cohort. The weights change, so the model must not be used afterwards.

    Parameters
    ----------
    encoder : the model whose states are computed once, or None where each step computes them
    epochs : that the cost will be for
    seconds : of steps
    """
    made: Iterator[Batch] = cycle(batches)
    n_tokens = sum(batch.n_tokens for batch in batches)
    once_seconds = 0.0
    if encoder is not None:
        started, n_encoded, kept = time.monotonic(), 0, []
        encoder.eval()
        for batch in batches:
            kept.append(_with_states(encoder, batch.to(device)))
            n_encoded += batch.n_tokens
            if time.monotonic() - started > seconds:
                break
        # validation and test subjects as well
        once_seconds = (time.monotonic() - started) * n_tokens * (1 + 2 * VALIDATION_SHARE) / n_encoded
        made = cycle(kept)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-5, fused=device.type in ("cpu", "cuda"))
    model.train()

    def step() -> int:
        batch = next(made).to(device)
        loss = objective.loss(model, batch)
        (loss.total / loss.weight).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return batch.n_tokens

    kept_bytes = _bytes_kept(step, model)  # also the first step, which is slower
    _wait_for(device)
    started, done = time.monotonic(), 0
    while not done or time.monotonic() - started < seconds:
        done += step()
        _wait_for(device)
    n_bytes = FLOAT_BYTES * (
        sum(parameter.numel() for parameter in model.parameters()) + 3 * sum(parameter.numel() for parameter in trained)
    )
    return Cost(n_tokens, epochs, done / (time.monotonic() - started), once_seconds, (n_bytes + kept_bytes) / 1e6)


def _with_states(encoder: EhrModel, batch: Batch) -> Batch:
    with torch.no_grad():
        return replace(batch, hidden=encoder.hidden(batch))


def _bytes_kept(step: Callable[[], int], model: nn.Module) -> int:
    """Bytes that the forward pass keeps for the backward pass, without the weights; shared memory counts once."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        step()
    return sum(kept.values())


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
