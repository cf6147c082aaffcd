"""How long a checkpoint of the large model with its optimiser state holds training up, against torch.save."""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

from benchmarks._row import Measured, Row
from benchmarks._timing import Budget, rounds, set_threads

ORDER = 6
BATCH_SIZE = 8

ROWS = (
    Row("checkpoint", "blocking time of a checkpoint, large model with AdamW state, against torch.save", "×", 10, 25),
)


def measure(name: str, budget: Budget) -> Measured:
    """Wall time in the calls that hold the loop up; forward and backward run in between, as in training."""
    import torch

    from benchmarks import _ours
    from benchmarks._workload import VOCABULARY_SIZES, token_store

    set_threads(2)
    vocabulary_size = VOCABULARY_SIZES["large"]
    training = _ours.mlm_training("large", vocabulary_size)
    batch = _ours.batch_of(token_store(BATCH_SIZE, vocabulary_size), range(BATCH_SIZE))
    training.step(batch)
    found: dict[str, list[float]] = {"ours": [], "torch.save": [], "step alone": [], "step beside ours": []}
    with tempfile.TemporaryDirectory() as folder:
        writer = _ours.checkpoint_writer(Path(folder) / "ours")
        try:
            for number in rounds(budget):
                found["step alone"].append(_seconds(lambda: training.backward(batch)))
                blocked = _seconds(lambda: writer.save(number, training.tensors(), {"step": number}))  # noqa: B023
                found["step beside ours"].append(_seconds(lambda: training.backward(batch)))
                found["ours"].append(blocked + _seconds(writer.wait_copied))
                training.optimizer.step()
                state = {"model": training.model.state_dict(), "optimizer": training.optimizer.state_dict()}
                saved = Path(folder) / "peer.pt"
                found["torch.save"].append(_seconds(lambda: torch.save(state, saved)))  # noqa: B023
        finally:
            writer.close()
        megabytes = (Path(folder) / "peer.pt").stat().st_size / 1e6
    medians = {f"{key.replace(' ', '_')}_seconds": statistics.median(values) for key, values in found.items()}
    ratios = [peer / ours for peer, ours in zip(found["torch.save"], found["ours"], strict=True)]
    slow_down = max(medians["step_beside_ours_seconds"] - medians["step_alone_seconds"], 0.0)
    whole = medians["torch.save_seconds"] / (medians["ours_seconds"] + slow_down)
    return Measured(
        statistics.median(ratios),
        {**medians, "checkpoint_mb": megabytes, "ratio_with_slow_down_of_the_step_beside": whole},
    )


def _seconds(work: object) -> float:
    started = time.perf_counter()
    work()  # type: ignore[operator]
    return time.perf_counter() - started
