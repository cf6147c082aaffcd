"""Pretraining on a GPU: speed against Hugging Face's BERT on length-bucketed batches, both in bf16."""

from __future__ import annotations

import statistics
import time

import numpy as np

from benchmarks._row import Measured, NotThereYet, Row
from benchmarks._timing import Budget, interleaved

ORDER = 13
BATCH_SIZE = 200  # about 16,384 tokens
N_SUBJECTS = 20_000
N_BUCKETS = 8
"""One pass over these buckets is a round; ours goes over the same subjects in random order."""

ROWS = tuple(
    Row(f"gpu-{size}", f"on a GPU: MLM real tokens/s against bucketed Hugging Face BERT, bf16, {size}", "×")
    for size in ("small", "medium", "large")
)


def measure(name: str, budget: Budget) -> Measured:
    import torch

    if not torch.cuda.is_available():
        raise NotThereYet("torch sees no CUDA device")
    from benchmarks import _ours
    from benchmarks._workload import VOCABULARY_SIZES, token_store
    from benchmarks.peers import hugging_face, padded

    size = name.removeprefix("gpu-")
    vocabulary_size = VOCABULARY_SIZES[size]
    store = token_store(N_SUBJECTS, vocabulary_size)
    buckets = hugging_face.length_buckets(store, BATCH_SIZE, N_BUCKETS)
    rows = np.random.default_rng(0).permutation(np.concatenate([batch.rows.numpy() for batch in buckets]))
    packed = [_ours.batch_of(store, part) for part in np.array_split(rows, len(buckets))]
    ours = _ours.mlm_training(size, vocabulary_size, precision="bf16", device="cuda")
    peer = hugging_face.HuggingFaceTraining(
        size, vocabulary_size, precision="bf16", attention_dropout=0.0, device="cuda"
    )
    # The peer is given its batches masked and padded, ours masks in the step.
    bucketed = [padded.pad(_ours.masked(ours, batch, seed=0), max(batch.lengths)) for batch in buckets]

    def our_round() -> float:
        n_tokens = sum(ours.step(batch) for batch in packed)
        torch.cuda.synchronize()
        return n_tokens

    def peer_round() -> float:
        n_tokens = sum(peer.step(batch.to("cuda")) for batch in bucketed)
        torch.cuda.synchronize()
        return n_tokens

    details: dict[str, float | str] = {"gpu": torch.cuda.get_device_name()}
    for side, work in (("peer", peer_round), ("ours", our_round)):  # kernels are chosen, and memory is counted
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        details[f"{side}_peak_mb"] = (torch.cuda.max_memory_allocated() - before) / 1e6
    our_speeds, peer_speeds = interleaved(our_round, peer_round, budget.times(2), time.perf_counter)
    by_round = [a / b for a, b in zip(our_speeds, peer_speeds, strict=True)]
    details |= {
        "lowest_ratio": min(by_round),
        "highest_ratio": max(by_round),
        "ours_tokens_per_second": statistics.median(our_speeds),
        "peer_tokens_per_second": statistics.median(peer_speeds),
        "rounds": float(len(by_round)),
    }
    return Measured(statistics.median(by_round), details)
