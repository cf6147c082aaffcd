"""AdamW as training uses it: what is decayed, where its state lies, and its rate."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ehrtrack.training.settings import TrainConfig

DECAYED = ("weight", "weight_ih", "weight_hh", "scale", "shift")
"""Last words of the names of true weight matrices: of linear maps, adapters and embeddings, of recurrent cells, and of
`behrt.Recency`. Norms have weights too, of one dimension."""


def make_optimizer(
    trainable: Mapping[str, Tensor], config: TrainConfig, device: torch.device, *, is_recorded: bool = False
) -> torch.optim.AdamW:
    """AdamW over these parameters.

    Parameters
    ----------
    is_recorded : its steps are recorded (`training.graphs`), so that the rate lies on the device too
    """
    optimizer = torch.optim.AdamW(
        _decay_groups(trainable, config.weight_decay),
        lr=config.lr,
        fused=device.type in ("cpu", "cuda"),
        capturable=is_recorded and device.type == "cuda",
    )
    if is_recorded:
        rate = torch.tensor(config.lr, device=device)
        for group in optimizer.param_groups:
            group["lr"] = rate
    return optimizer


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Take steps of this learning rate from now on."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def is_decayed(name: str, parameter: Tensor) -> bool:
    """Whether weight decay pulls a parameter towards 0: the matrices of `DECAYED` alone.

    Not every parameter with two dimensions is a matrix. A head begins at the population's hazards, in a number for each
    code or each cause and interval; pulled towards 0, a logit goes towards a risk of one half.
    """
    return parameter.dim() >= 2 and name.rsplit(".", 1)[-1] in DECAYED


def _decay_groups(trainable: Mapping[str, Tensor], weight_decay: float) -> list[dict[str, object]]:
    decayed = [p for name, p in trainable.items() if is_decayed(name, p)]
    spared = [p for name, p in trainable.items() if not is_decayed(name, p)]
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": spared, "weight_decay": 0.0}]


def placed(key: str, value: Tensor | None, parameter: Tensor) -> Tensor:
    """A tensor of the optimiser's state where the fused kernel expects it."""
    assert value is not None
    return value.to(parameter.device) if key != "step" or parameter.device.type == "cuda" else value.cpu()
