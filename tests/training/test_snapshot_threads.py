"""A snapshot's thread beside those of training."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path


def test_a_snapshot_brings_no_threads_but_its_own(tmp_path: Path) -> None:
    """Threads of OpenMP's beside those of training would slow every later step; a process of its own, with two."""
    code = """
        import sys
        from pathlib import Path

        import psutil
        import torch

        from ehrtrack.training.snapshots import CheckpointWriter

        torch.set_num_threads(2)
        weights = {f"weight {i}": torch.ones(1000, 1000) for i in range(3)}
        weights["weight 0"] @ weights["weight 1"]  # training's own threads are there
        before = psutil.Process().num_threads()
        writer = CheckpointWriter(Path(sys.argv[1]))
        for step in (1, 2):
            writer.save(step, weights, {})
            writer.wait_copied()
        during = psutil.Process().num_threads()
        writer.close()
        print(during - before)
    """
    command = [sys.executable, "-c", textwrap.dedent(code), str(tmp_path / "states")]
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "1"
