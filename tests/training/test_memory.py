"""Out of memory: which batch, and what to change."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from simulated import random_store

from ehrtrack.data.batch import collate
from ehrtrack.errors import TrainingError
from ehrtrack.training.memory import is_out_of_memory, out_of_memory_is_told

BATCH = collate(random_store(6, 30), np.arange(6), max_tokens=20)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError()])
def test_the_batch_and_the_settings_are_named(error: Exception, tmp_path: Path) -> None:
    with (
        pytest.raises(TrainingError) as told,
        out_of_memory_is_told(BATCH, "at step 3 of epoch 2", batch_tokens=4096, folder=tmp_path),
    ):
        raise error
    message = str(told.value)
    assert f"out of memory at step 3 of epoch 2: 6 subjects with {BATCH.n_tokens} tokens" in message
    assert f"train.batch_tokens (now 4096) to {BATCH.n_tokens // 2}" in message
    assert "train.recompute=true" in message
    assert f"{tmp_path}, and `ehrtrack resume` goes on from it" in message


def test_of_a_batch_of_one_subject_no_smaller_budget_is_said_to_help(tmp_path: Path) -> None:
    alone = collate(random_store(6, 30), np.arange(1, 2), max_tokens=20)
    with (
        pytest.raises(
            TrainingError, match=r"one subject with \d+ tokens\. Set train\.recompute=true, or start a new run"
        ),
        out_of_memory_is_told(alone, "", batch_tokens=8, folder=tmp_path),
    ):
        raise MemoryError


def test_other_errors_pass() -> None:
    with (
        pytest.raises(RuntimeError, match="shape mismatch"),
        out_of_memory_is_told(BATCH, "", batch_tokens=1, folder=Path()),
    ):
        raise RuntimeError("shape mismatch")
    assert not is_out_of_memory(ValueError())


def test_a_process_that_may_have_no_more_memory_says_so() -> None:
    """A real refusal by the operating system: a limit on the address space, and a tensor that passes it."""
    code = """
        import resource, torch
        from ehrtrack.training.memory import is_out_of_memory
        used = int(open("/proc/self/statm").read().split()[0]) * 4096
        resource.setrlimit(resource.RLIMIT_AS, (used + 2**28, used + 2**28))
        try:
            torch.ones(2**30)
        except (RuntimeError, MemoryError) as error:
            print(is_out_of_memory(error))
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "True"
