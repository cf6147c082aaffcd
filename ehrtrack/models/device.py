"""Where a model computes, and by which code: the one place that asks for the device.

Models are written with torch's own layers. On a CPU some of them are exchanged for those of `ehrtrack.models.cpu`,
which compute the same faster: an exchanged layer is still of torch's class and has its parameters under its names, so
that adapters wrap it and checkpoints fit it.
"""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import nn

from ehrtrack.models import attention, cpu

Model = TypeVar("Model", bound=nn.Module)

ON_CPU: tuple[tuple[type[nn.Module], type[nn.Module]], ...] = (
    (nn.Linear, cpu.Linear),
    (nn.Dropout, cpu.Dropout),
    (attention.SelfAttention, cpu.SelfAttention),
)
"""Layers that models are written with, and what computes each of them on a CPU."""


def place(model: Model, device: torch.device) -> Model:
    """The model itself, moved to a device, with the layers that are fast there.

    Layers that are added later, such as adapters, are not exchanged until the model is placed again.

    >>> model = place(nn.Sequential(nn.Linear(3, 2), nn.Dropout(0.1)), torch.device("cpu"))
    >>> [type(layer).__module__ for layer in model]
    ['ehrtrack.models.cpu.linear', 'ehrtrack.models.cpu.dropout']
    >>> sorted(model.state_dict())
    ['0.bias', '0.weight']
    """
    exchanged = dict(ON_CPU) if device.type == "cpu" else {quick: plain for plain, quick in ON_CPU}
    for module in model.modules():
        module.__class__ = exchanged.get(type(module), type(module))
    return model.to(device)
