"""Learning-rate schedule."""

from __future__ import annotations

import math


def warmup_cosine(share_done: float, *, warmup_share: float) -> float:
    """Factor of the peak learning rate: a linear warm-up, then a half cosine to a tenth of the peak.

    It is a function of the share of the training that is done, and of nothing else, so that a resumed run needs no
    state of it.

    >>> [round(warmup_cosine(share, warmup_share=0.2), 2) for share in (0.0, 0.1, 0.2, 0.6, 1.0)]
    [0.0, 0.5, 1.0, 0.55, 0.1]
    """
    if share_done < warmup_share:
        return share_done / warmup_share
    progress = (share_done - warmup_share) / (1 - warmup_share)
    return 0.1 + 0.45 * (1 + math.cos(math.pi * min(progress, 1.0)))
