"""From hazard logits to survival curves and risks."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def survival_curve(logits: Tensor) -> Tensor:
    """The survival curve at the K + 1 edges of the time grid: 1 at the index date, then prod_{j <= k} (1 - h_j).

    Parameters
    ----------
    logits : (B, K) hazard logits

    Returns
    -------
    (B, K + 1), float32 or better, falling along the second axis.

    Examples
    --------
    Logits of 0 are hazards of one half:

    >>> import torch
    >>> survival_curve(torch.zeros(1, 3)).tolist()
    [[1.0, 0.5, 0.25, 0.125]]
    """
    log_survival = F.logsigmoid(-_full_precision(logits)).cumsum(dim=1)  # (B, K)
    return F.pad(log_survival, (1, 0)).exp()  # log S = 0 at the index date


def risk_at_horizon(logits: Tensor) -> Tensor:
    """The risk: 1 - S(horizon), the probability of an event up to the horizon.

    Parameters
    ----------
    logits : (B, K) hazard logits

    Returns
    -------
    (B,), float32 or better, in [0, 1].

    Examples
    --------
    >>> import torch
    >>> risk_at_horizon(torch.zeros(2, 3)).tolist()
    [0.875, 0.875]
    """
    return -F.logsigmoid(-_full_precision(logits)).sum(dim=1).expm1()


def _full_precision(logits: Tensor) -> Tensor:
    return logits.float() if logits.element_size() < 4 else logits
