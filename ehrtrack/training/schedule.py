"""Learning-rate schedule."""

from __future__ import annotations

import math

import torch
from torch.optim.lr_scheduler import LambdaLR


def warmup_cosine(optimizer: torch.optim.Optimizer, *, n_steps: int, warmup_share: float) -> LambdaLR:
    """Linear warm-up over the first `warmup_share` of steps, then a half cosine to a tenth of the peak rate."""
    n_warmup = max(1, round(n_steps * warmup_share))

    def factor(step: int) -> float:
        if step < n_warmup:
            return (step + 1) / n_warmup
        progress = (step - n_warmup) / max(1, n_steps - n_warmup)
        return 0.1 + 0.45 * (1 + math.cos(math.pi * min(progress, 1.0)))

    return LambdaLR(optimizer, factor)
