"""Two devices train as one: two processes on the CPU (gloo) always, and two GPUs where torch sees two.

    python tests/training/two_devices.py

One process takes steps of two batches, two processes of one each; losses and gradients have to be the same. Exit code
1 where they are not, with what differs.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

TWO_RANKS = Path(__file__).with_name("two_ranks.py")
TOLERANCE = {"cpu": 1e-5, "cuda": 1e-4}
"""Absolute and relative, in float32: sums of a GPU have no fixed order."""


def run(out: Path, n_ranks: int, *, device: str = "cpu") -> Any:
    """What so many processes compute (`two_ranks.py`)."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(n_ranks)] if n_ranks > 1 else []
    environment = os.environ | {"PYTHONPATH": str(TWO_RANKS.parents[1]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *launcher, str(TWO_RANKS), str(out), device]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(out.read_text())


def differences(one: Any, two: Any, *, device: str = "cpu") -> list[str]:
    """What two processes computed otherwise than one: gradients, and the losses of each epoch."""
    tolerance = TOLERANCE[device]
    found = []
    for case in [name for name in one if " " in name]:
        for name, gradient in one[case].items():
            if not np.allclose(two[case][name], gradient, atol=tolerance, rtol=tolerance):
                found.append(f"{case}: the gradient of {name}")
    for part in ("history", "resumed", "phases"):
        for number, (alone, together) in enumerate(zip(one[part], two[part], strict=True), 1):
            for name in ("train/loss", "val/loss"):
                if not np.isclose(alone[name], together[name], atol=tolerance, rtol=tolerance):
                    found.append(f"{part}, epoch {number}: {name} is {alone[name]} and {together[name]}")
    return found


def main() -> int:
    """Exit code."""
    n_gpus = torch.cuda.device_count()
    wrong = False
    with tempfile.TemporaryDirectory() as folder:
        for device in ("cpu", "cuda"):
            if device == "cuda" and n_gpus < 2:
                print(f"two GPUs: not checked, torch sees {n_gpus}")
                continue
            one, two = (run(Path(folder) / f"{device}-{n}.json", n, device=device) for n in (1, 2))
            found = differences(one, two, device=device)
            wrong |= bool(found)
            what = "two GPUs" if device == "cuda" else "two processes on the CPU"
            print(f"{what}: {'; '.join(found) if found else 'the losses and gradients of one'}")
    return int(wrong)


if __name__ == "__main__":
    sys.exit(main())
