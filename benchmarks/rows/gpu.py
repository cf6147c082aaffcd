"""On a GPU: a training step against its own kernels, against peers, with large batches, and LoRA against full; and
validation by graphs against without.

Ours is measured as the loop trains, with snapshots on: batches are made, filled up and brought to the device meanwhile,
and a step is a graph that is replayed. Each round is an epoch of some batches, after rounds in which kernels are chosen
and graphs are recorded. ``BENCHMARKS_DEVICE=cpu`` tries the rows on a CPU, at tiny sizes.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from benchmarks import _gpu
from benchmarks._row import Measured, NotMeasured, Row
from benchmarks._timing import Budget, interleaved

if TYPE_CHECKING:
    from benchmarks._ours import Training
    from ehrtrack.data.batch import Batches

ORDER = 13
N_STEPS = 16
"""Of an epoch of ours."""
N_TOKENS, N_LARGE = 16_384, 65_536
PEER_SUBJECTS = {"hf": 200, "padded": 50}
"""Subjects of a batch of the peer, and so tokens of ours: about 16,384 and 4,096."""
N_BUCKETS = 8
SNAPSHOT_SECONDS = 1.0

ROWS = (
    *(
        Row(
            f"gpu-step-over-kernels-{size}",
            f"on a GPU: pretraining step of 16,384 tokens over the time of its kernels, {size}",
            "×",
            1.3,
            1.1,
            is_lower_better=True,
        )
        for size in ("small", "large")
    ),
    *(
        Row(
            f"gpu-hf-{size}",
            f"on a GPU: MLM real tokens/s against compiled, bucketed Hugging Face BERT, bf16, {size}",
            "×",
            3,
        )
        for size in ("small", "large")
    ),
    *(
        Row(f"gpu-padded-{size}", f"on a GPU: MLM real tokens/s against padded-512, bf16, {size}", "×")
        for size in ("small", "large")
    ),
    Row("gpu-validation-small", "on a GPU: validation of 16,384 tokens a batch, replayed against not, small", "×"),
    Row("large-batches", "on a GPU: utilisation of its peak with 65,536 tokens, large", "%", 20),
    Row(
        "gpu-lora-speed",
        "on a GPU: time of a LoRA step over one of full fine-tuning, medium",
        "×",
        0.8,
        is_lower_better=True,
    ),
    Row(
        "gpu-lora-memory",
        "on a GPU: peak memory of LoRA over that of full fine-tuning, medium",
        "×",
        0.6,
        is_lower_better=True,
    ),
)


def measure(name: str, budget: Budget) -> Measured:
    _gpu.device()
    if name.startswith("gpu-step"):
        return _step_over_kernels(_size(name), budget)
    if name.startswith(("gpu-hf", "gpu-padded")):
        return _against(name.split("-")[1], _size(name), budget)
    if name == "large-batches":
        return _large_batches(budget)
    if name.startswith("gpu-validation"):
        return _validation(_size(name), budget)
    return _lora_speed(budget) if name == "gpu-lora-speed" else _lora_memory()


def _size(name: str) -> str:
    return "tiny" if _gpu.is_tried() else name.rpartition("-")[2]


def _vocabulary_size(size: str) -> int:
    from benchmarks._workload import VOCABULARY_SIZES

    return VOCABULARY_SIZES.get(size, 200)


def _epoch(size: str, n_tokens: int, *, has_outcomes: bool = False) -> Batches:
    """An epoch of about so many batches, each filled up to a budget, of a store that is as large."""
    from benchmarks import _ours
    from benchmarks._workload import MAX_TOKENS, outcomes, token_store

    if _gpu.is_tried():
        n_tokens = 2 * MAX_TOKENS
    n_subjects = round(N_STEPS * n_tokens / _ours.MEAN_TOKENS)
    store = token_store(n_subjects, _vocabulary_size(size))
    labels = outcomes(n_subjects) if has_outcomes else None
    return _ours.batches_of(store, n_tokens / _ours.MEAN_TOKENS, labels, seed=1)


def _mlm(size: str) -> Training:
    from benchmarks import _ours

    how = {"precision": "bf16", "device": _gpu.device(), "snapshot_seconds": SNAPSHOT_SECONDS}
    return _ours.mlm_training(size, _vocabulary_size(size), **how)  # type: ignore[arg-type]


def _speeds(training: Training, batches: Batches, budget: Budget) -> list[float]:
    """Real tokens a second of some epochs; those in which kernels are chosen and steps recorded are not among them."""
    from benchmarks._timing import rounds

    training.epoch(batches)
    return [_tokens_per_second(training, batches) for _ in rounds(budget)]


def _tokens_per_second(training: Training, batches: Batches) -> float:
    _gpu.wait()
    started = time.perf_counter()
    training.epoch(batches)
    _gpu.wait()
    return batches.n_tokens / (time.perf_counter() - started)


def _step_over_kernels(size: str, budget: Budget) -> Measured:
    """Kernels run one after another, so that the sum of their times is what a step cannot fall below."""
    batches = _epoch(size, N_TOKENS)
    training = _mlm(size)
    speeds = _speeds(training, batches, budget)
    kernels = _kernel_seconds(lambda: training.epoch(batches))
    speed = statistics.median(speeds)
    ratios = [batches.n_tokens / one / kernels for one in speeds]
    details: dict[str, float | str] = {
        "device": _gpu.name(),
        "tokens_per_second": speed,
        "first_round_tokens_per_second": speeds[0],
        "last_round_tokens_per_second": speeds[-1],
        "kernels_ms_per_step": 1e3 * kernels / len(batches),
        "step_ms": 1e3 * batches.n_tokens / speed / len(batches),
        "lowest_ratio": min(ratios),
        "highest_ratio": max(ratios),
        "rounds": float(len(speeds)),
    }
    return Measured(statistics.median(ratios), details)


def _kernel_seconds(work: Callable[[], object]) -> float:
    from torch.profiler import ProfilerActivity, profile

    of_device = ProfilerActivity.CPU if _gpu.is_tried() else ProfilerActivity.CUDA
    with profile(activities=[of_device]) as profiled:
        work()
        _gpu.wait()
    events = profiled.key_averages()
    microseconds = sum(e.self_cpu_time_total if _gpu.is_tried() else e.self_device_time_total for e in events)
    return float(microseconds) / 1e6


def _against(peer_name: str, size: str, budget: Budget) -> Measured:
    from benchmarks import _ours
    from benchmarks._workload import token_store
    from benchmarks.peers import hugging_face, padded
    from ehrtrack.models.behrt import SIZES

    assert size in SIZES
    n, vocabulary_size = (4 if _gpu.is_tried() else PEER_SUBJECTS[peer_name]), _vocabulary_size(size)
    store = token_store(100 * n, vocabulary_size)
    buckets = hugging_face.length_buckets(store, n, N_BUCKETS)
    rows = np.concatenate([batch.rows.numpy() for batch in buckets])
    ours, device = _mlm(size), _gpu.device()
    epoch = _ours.batches_over(store, rows, n)
    # The peer is given its batches masked, padded and on the device; ours makes them meanwhile.
    bucketed = [_ours.masked(ours, batch, seed=0) for batch in buckets]
    if peer_name == "hf":
        compiled_by = "eager" if _gpu.is_tried() else "inductor"
        peer = hugging_face.HuggingFaceTraining(
            size, vocabulary_size, precision="bf16", attention_dropout=0.0, device=device, compiled_by=compiled_by
        )
        given = [padded.pad(batch, max(batch.lengths)).to(device) for batch in bucketed]
        steps = [lambda batch=batch: peer.step(batch) for batch in given]
    else:
        twin = padded.PaddedTraining(ours, size)
        pairs = [(padded.pad(batch).to(device), batch) for batch in bucketed]
        steps = [lambda pair=pair: twin.step(*pair) for pair in pairs]

    def our_round() -> float:
        ours.epoch(epoch)
        _gpu.wait()
        return float(epoch.n_tokens)

    def peer_round() -> float:
        n_tokens = sum(step() for step in steps)
        _gpu.wait()
        return n_tokens

    details: dict[str, float | str] = {"device": _gpu.name()}
    for side, work in (("peer", peer_round), ("ours", our_round)):  # kernels are chosen, and memory is counted
        work()
        _gpu.begin_peak()
        work()
        details[f"{side}_peak_mb"] = _gpu.peak_mb()
    our_speeds, peer_speeds = interleaved(our_round, peer_round, budget.times(2), time.perf_counter)
    return _side_by_side({"ours": our_speeds, "peer": peer_speeds}, details)


def _side_by_side(speeds: dict[str, list[float]], details: dict[str, float | str]) -> Measured:
    """How many times as fast the first of two is as the second, round by round, beside what else was seen."""
    by_round = [a / b for a, b in zip(*speeds.values(), strict=True)]
    seen: dict[str, float | str] = {
        "lowest_ratio": min(by_round),
        "highest_ratio": max(by_round),
        **{f"{side}_tokens_per_second": statistics.median(of_side) for side, of_side in speeds.items()},
        "rounds": float(len(by_round)),
    }
    return Measured(statistics.median(by_round), details | seen)


def _validation(size: str, budget: Budget) -> Measured:
    batches, training = _epoch(size, N_TOKENS), _mlm(size)

    def one_round(*, is_replayed: bool) -> float:
        training.validate(batches, is_replayed=is_replayed)
        _gpu.wait()
        return float(batches.n_tokens)

    replayed, plain = (partial(one_round, is_replayed=is_replayed) for is_replayed in (True, False))
    replayed(), plain()
    of_replayed, of_plain = interleaved(replayed, plain, budget, time.perf_counter)
    return _side_by_side({"replayed": of_replayed, "plain": of_plain}, {"device": _gpu.name()})


def _large_batches(budget: Budget) -> Measured:
    import torch

    from ehrtrack.training.device_facts import peak_flops

    size = _size("large")
    batches, training = _epoch(size, N_LARGE), _mlm(size)
    speeds = _speeds(training, batches, budget)
    told = training.epoch(batches)
    peak = peak_flops(torch.device(_gpu.device()), is_bf16=True)
    if peak is None:
        raise NotMeasured(
            f"the peak of {_gpu.name()} is not known ({statistics.median(speeds):,.0f} tokens/s, "
            f"{told['train/tflops_per_second']:.3g} TFLOP/s)"
        )
    flops_per_token = told["train/tflops_per_second"] * 1e12 / told["train/tokens_per_second"]
    shares = [100 * speed * flops_per_token / peak for speed in speeds]
    details: dict[str, float | str] = {
        "device": _gpu.name(),
        "tokens_per_second": statistics.median(speeds),
        "lowest": min(shares),
        "highest": max(shares),
        "rounds": float(len(shares)),
    }
    return Measured(statistics.median(shares), details)


def _survival(strategy: str, batches: Batches) -> Training:
    from benchmarks import _ours

    size = _size("medium")
    assert batches.outcomes is not None
    how = {"precision": "bf16", "device": _gpu.device(), "snapshot_seconds": SNAPSHOT_SECONDS}
    return _ours.survival_training(
        size,
        _vocabulary_size(size),
        batches.outcomes,
        strategy=strategy,
        **how,  # type: ignore[arg-type]
    )


def _lora_speed(budget: Budget) -> Measured:
    batches = _epoch(_size("medium"), N_TOKENS, has_outcomes=True)
    lora, full = (_survival(strategy, batches) for strategy in ("lora", "full"))

    def one_round(training: Training) -> float:
        training.epoch(batches)
        _gpu.wait()
        return float(batches.n_tokens)

    one_round(lora), one_round(full)
    of_lora, of_full = interleaved(lambda: one_round(lora), lambda: one_round(full), budget, time.perf_counter)
    return _side_by_side(
        {"full": of_full, "lora": of_lora}, {"device": _gpu.name()}
    )  # a step's time, LoRA's over full's


def _lora_memory() -> Measured:
    batches = _epoch(_size("medium"), N_TOKENS, has_outcomes=True)
    peaks = {}
    for strategy in ("lora", "full"):
        _gpu.begin_peak()
        training = _survival(strategy, batches)
        training.epoch(batches)
        peaks[strategy] = _gpu.peak_mb()
        del training
    details: dict[str, float | str] = {"device": _gpu.name()} | {f"{side}_peak_mb": mb for side, mb in peaks.items()}
    return Measured(peaks["lora"] / peaks["full"], details)
