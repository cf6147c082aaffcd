"""Training steps in a fresh process: their time, and how far memory rises above what it was before them.

Memory is the kernel's word on the process, and not a sum of tensors by the profiler: it holds the scratch buffers of
the kernels, the allocator's waste and all that makes a machine run out. It starts after a step on two short records,
so that libraries, weights and optimiser state, which both sides have alike, are not counted. Where they differ, as
strategies do, ``--whole`` counts all of a step but the libraries.
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

KB = 1024


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--side", choices=["ours", "padded"], default="ours")
    parser.add_argument("--objective", choices=["mlm", "survival"], default="survival")
    parser.add_argument("--strategy", default="full", help="of fine-tuning")
    parser.add_argument("--whole", action="store_true", help="count weights, gradients and optimiser state too")
    parser.add_argument("--size", default="small")
    parser.add_argument("--batch", type=int, required=True, help="subjects a batch")
    parser.add_argument("--subjects", type=int, required=True, help="subjects of the store, which is mapped from disk")
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--recompute", action="store_true", help="keep only each layer's input for the backward pass")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(_measure(options, Path(folder))))


def _measure(options: argparse.Namespace, folder: Path) -> dict[str, float]:
    import torch

    from benchmarks import _ours
    from benchmarks._workload import VOCABULARY_SIZES, mapped, outcomes, token_store
    from benchmarks.peers import padded
    from ehrtrack.data.batch import Batch

    torch.set_num_threads(options.threads)
    vocabulary_size = VOCABULARY_SIZES[options.size]
    labels = outcomes(options.subjects)
    if options.objective == "mlm":
        ours = _ours.mlm_training(options.size, vocabulary_size)
    else:
        ours = _ours.survival_training(options.size, vocabulary_size, labels, strategy=options.strategy)
    ours.model.encoder.recomputes = options.recompute
    peer = padded.PaddedTraining(ours, options.size) if options.side == "padded" else None

    def step(batch: Batch) -> float:
        if peer is None:
            return ours.step(batch)
        hidden = _ours.masked(ours, batch, 0) if options.objective == "mlm" else batch
        return peer.step(padded.pad(hidden), hidden)

    small = token_store(2, vocabulary_size)
    step(_ours.batch_of(small, [0, 1], labels))
    of_state = _state_kb(ours) if options.whole else 0
    del small
    store = mapped(token_store(options.subjects, vocabulary_size), folder)
    epochs = (_ours.batches_of(store, options.batch, labels, seed=seed) for seed in itertools.count())
    batches = itertools.islice(itertools.chain.from_iterable(epochs), options.steps)
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
    before, anonymous = _status_kb("VmRSS"), _AnonymousMemory()
    started, cpu_started = time.perf_counter(), time.process_time()
    n_tokens = sum(step(batch) for batch in batches)
    wall_seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu_started
    return {
        "n_tokens": n_tokens,
        "wall_seconds": wall_seconds,
        "cpu_seconds": cpu_seconds,
        "peak_mb": (_status_kb("VmHWM") - before + of_state) * KB / 1e6,
        "peak_anonymous_mb": (anonymous.stop() + of_state) * KB / 1e6,
    }


class _AnonymousMemory(threading.Thread):
    """Highest rise of the memory that no file backs: the kernel takes back pages of a mapped store as it likes."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.before = self.peak = _status_kb("RssAnon")
        self._is_over = threading.Event()
        self.start()

    def run(self) -> None:
        while not self._is_over.wait(0.005):
            self.peak = max(self.peak, _status_kb("RssAnon"))

    def stop(self) -> int:
        self._is_over.set()
        self.join()
        return self.peak - self.before


def _state_kb(training: Any) -> int:
    """Of weights, gradients and what the optimiser keeps."""
    weights = [tensor for p in training.model.parameters() for tensor in (p, p.grad) if tensor is not None]
    kept = [tensor for of in training.optimizer.state.values() for tensor in of.values()]
    return sum(tensor.numel() * tensor.element_size() for tensor in weights + kept) // KB


def _status_kb(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1])
    raise RuntimeError(f"/proc/self/status has no {name}; rows of memory need Linux")


if __name__ == "__main__":
    main()
