"""Sample the load of the machine during a run, into its journal, under the names of MLflow's system metrics.

MLflow's own sampler calls the server, and loses its samples while the server is unreachable.
"""

from __future__ import annotations

import importlib
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import psutil

from ehrtrack.errors import TrackingError

SAMPLE_SECONDS = 30.0
SAMPLED_KINDS = ("pretrain", "finetune", "trial", "baseline")
"""Kinds of runs that train; a run that holds others would say the same once more."""
PREFIX = "system/"

_log = logging.getLogger(__name__)


@contextmanager
def sampled(kind: str, log: Callable[[Mapping[str, float], int], object]) -> Iterator[None]:
    """Within the block, a thread logs a sample every half minute.

    Parameters
    ----------
    kind : of the run; `SAMPLED_KINDS` are sampled
    log : takes the values and the moment, in seconds since 1970, which a resumed run does not repeat
    """
    if kind not in SAMPLED_KINDS:
        yield
        return
    stopped = threading.Event()
    thread = threading.Thread(target=_sample, args=(stopped, log), name="system metrics", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join()


def _sample(stopped: threading.Event, log: Callable[[Mapping[str, float], int], object]) -> None:
    psutil.cpu_percent()  # the first answer is of no time at all
    gpus = Gpus()
    while not stopped.wait(SAMPLE_SECONDS):
        try:
            log({f"{PREFIX}{name}": value for name, value in (machine() | gpus.sample()).items()}, int(time.time()))
        except TrackingError as trouble:  # what ends the run is raised where the run works
            _log.debug("no more samples of the machine: %s", trouble)
            return


def machine() -> dict[str, float]:
    """Use of all cores since the last call, use of memory, and the memory of this process.

    >>> sorted(machine())[:2]
    ['cpu_utilization_percentage', 'process_memory_usage_megabytes']
    """
    memory = psutil.virtual_memory()
    return {
        "cpu_utilization_percentage": psutil.cpu_percent(),
        "process_memory_usage_megabytes": psutil.Process().memory_info().rss / 1e6,
        "system_memory_usage_megabytes": memory.used / 1e6,
        "system_memory_usage_percentage": memory.percent,
    }


class Gpus:
    """The NVIDIA GPUs of this machine; none if the package nvidia-ml-py is not installed."""

    def __init__(self) -> None:
        self._nvml: Any = None
        self._handles: list[Any] = []
        try:
            nvml = importlib.import_module("pynvml")
        except ImportError:
            return
        try:
            nvml.nvmlInit()
            self._handles = [nvml.nvmlDeviceGetHandleByIndex(n) for n in range(nvml.nvmlDeviceGetCount())]
        except nvml.NVMLError as error:
            _log.debug("no GPU is sampled: %s", error)
            return
        self._nvml = nvml

    def sample(self) -> dict[str, float]:
        """Use, memory and power in watts of each GPU; values that it does not report are left out."""
        values: dict[str, float] = {}
        for number, handle in enumerate(self._handles):
            questions = {
                "utilization_percentage": lambda handle=handle: self._nvml.nvmlDeviceGetUtilizationRates(handle).gpu,
                "memory_usage_megabytes": lambda handle=handle: self._nvml.nvmlDeviceGetMemoryInfo(handle).used / 1e6,
                "power_usage_watts": lambda handle=handle: self._nvml.nvmlDeviceGetPowerUsage(handle) / 1000,
            }
            for name, ask in questions.items():
                try:
                    values[f"gpu_{number}_{name}"] = float(ask())  # type: ignore[no-untyped-call]
                except self._nvml.NVMLError as error:
                    _log.debug("GPU %d does not report its %s: %s", number, name, error)
        return values
