"""Dropout whose mask costs one random byte an element on a CPU.

torch draws a CPU mask one Bernoulli at a time. Cutting 64-bit draws into bytes gives the same masks, with the
probability rounded to a multiple of 1/256; the scale is exact for the rounded one, so the mean is kept.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

INT64_MIN = -(2**63)


class Dropout(nn.Dropout):
    """`nn.Dropout`, faster on a CPU; other devices have fast kernels of their own."""

    def forward(self, x: Tensor, onto: Tensor | None = None) -> Tensor:
        """What is left of x, added to what it goes `onto`, if anything: on a CPU in one pass over memory."""
        if self.training and self.p > 0 and x.device.type == "cpu":
            scale = self._scale(x.numel()).view(x.shape)
            return x * scale.to(x.dtype) if onto is None else torch.addcmul(onto, x, scale)
        x = F.dropout(x, self.p, self.training)
        return x if onto is None else onto + x

    def _scale(self, n: int) -> Tensor:
        """(n,) float32, 0 or what keeps the mean."""
        n_dropped = min(round(self.p * 256), 255)  # of 256 equally likely bytes; p < 1 keeps some
        words = torch.empty(-(-n // 8), dtype=torch.int64).random_(INT64_MIN, None)
        # numpy compares and scales bytes in half of torch's time.
        is_kept = words.numpy().view(np.uint8)[:n] >= n_dropped
        return torch.from_numpy(np.multiply(is_kept, np.float32(256 / (256 - n_dropped)), dtype=np.float32))
