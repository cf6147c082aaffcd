"""How many threads compute a batch on a CPU."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import torch
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from ehrtrack.data.batch import Batch

LOOK_SECONDS = 0.25

_chosen_of: dict[int, int] = {}
"""The number that was chosen last, and of how many: what one run leaves, a later one in the same process may take."""


def free_threads() -> int:
    """Threads for the cores that other processes leave, at least one; torch's own number if OMP_NUM_THREADS is set.

    On two cores, pretraining steps of a small encoder do 26,000 tokens/s with two threads where nothing else runs, and
    12,000 to 14,000 while another process burns a core (GOMP_SPINCOUNT 700 to 1,200). One thread does 19,000 in both.

    Torch counts physical cores and the system logical ones. Each logical core that is busy is taken off: processes are
    spread over the physical cores before two share one. Cores that this process may not use are not looked at.
    """
    n_threads = torch.get_num_threads()
    n_threads = _chosen_of.get(n_threads, n_threads)
    if n_threads == 1 or os.environ.get("OMP_NUM_THREADS"):
        return n_threads
    shares = psutil.cpu_percent(interval=LOOK_SECONDS, percpu=True)
    usable = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(len(shares))
    n_busy: float = sum(share for core, share in enumerate(shares) if core in usable) / 100
    chosen = max(1, n_threads - round(n_busy))
    if chosen < n_threads:
        every = "both" if n_threads == 2 else "all"
        print(
            f"{chosen} of {n_threads} threads: other processes use {n_busy:.1f} cores "
            f"(runtime.threads={n_threads} takes {every})",
            flush=True,
        )
    _chosen_of.clear()
    _chosen_of[chosen] = n_threads
    return chosen


def use_threads(n_threads: int) -> None:
    """Threads of torch, and of the BLAS of numpy and scipy, which regressions and tables are computed with.

    Left to itself that one starts a thread for each core.
    """
    torch.set_num_threads(n_threads)
    threadpool_limits(n_threads, user_api="blas")


@contextmanager
def threads_for(batch: Batch) -> Iterator[None]:
    """One thread where the encoder's states are there already, and all of them otherwise.

    A step on cached states is some 200 kernels of microseconds, and a second thread is asleep before each that would
    use it: with two threads of two quiet cores, the step of 4,096 tokens and width 96 took 4.5 ms, with one 3.6 ms.
    """
    n_threads = torch.get_num_threads()
    if batch.hidden is None or n_threads == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(n_threads)
