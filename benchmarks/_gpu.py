"""The device of the rows that are of a GPU: CUDA, or a CPU on which they are tried at tiny sizes."""

from __future__ import annotations

import os

from benchmarks._row import NotMeasured

VARIABLE = "BENCHMARKS_DEVICE"


def device() -> str:
    """``cuda``, or ``cpu`` where the environment says so by `VARIABLE`.

    Raises
    ------
    NotMeasured
        If torch sees no CUDA device, and no CPU is to stand in for one.
    """
    import torch

    if os.environ.get(VARIABLE, "cuda") == "cpu":
        return "cpu"
    if not torch.cuda.is_available():
        raise NotMeasured("torch sees no CUDA device")
    return "cuda"


def is_tried() -> bool:
    """Whether rows are tried on a CPU: whether they run, and nothing about a GPU."""
    return device() == "cpu"


def name() -> str:
    """Of the device, as results say it."""
    import torch

    return "a CPU, to try the row at a tiny size" if is_tried() else torch.cuda.get_device_name()


def wait() -> None:
    """Wait until the device has done all that it was told."""
    import torch

    if not is_tried():
        torch.cuda.synchronize()


def begin_peak() -> None:
    """Count memory from here; on a GPU alone."""
    import torch

    if not is_tried():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak_mb() -> float:
    """The most memory since `begin_peak`; on a CPU the most resident memory of the process so far."""
    import resource

    import torch

    if is_tried():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
    return torch.cuda.max_memory_allocated() / 1e6
