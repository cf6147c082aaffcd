"""One thread: the machines that test are small, and results must not depend on their number of cores."""

from __future__ import annotations

import torch

torch.set_num_threads(1)
