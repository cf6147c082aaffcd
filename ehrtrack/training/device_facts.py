"""What a GPU can do, and what it did: the most operations a second, how busy it was, and the energy it took."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

import psutil
import torch

LOOK_SECONDS = 1.0
"""Between two looks at how busy a GPU is."""

PEAK_TFLOPS: dict[str, tuple[float, float]] = {
    "NVIDIA H200": (989.4, 66.9),
    "NVIDIA H100 80GB HBM3": (989.4, 66.9),
    "NVIDIA H100 PCIe": (756.0, 51.0),
    "NVIDIA A100-SXM4-80GB": (312.0, 19.5),
    "NVIDIA A100-SXM4-40GB": (312.0, 19.5),
    "NVIDIA A100 80GB PCIe": (312.0, 19.5),
    "NVIDIA A100-PCIE-40GB": (312.0, 19.5),
    "NVIDIA L40S": (362.0, 91.6),
    "NVIDIA L4": (121.0, 30.3),
}
"""Name -> 10^12 operations a second of dense products at most, in bfloat16 and in float32 without its short form, as
the maker's data sheets have them. A device that is not here has no utilisation: none is guessed."""


def peak_flops(device: torch.device, *, is_bf16: bool) -> float | None:
    """The most operations a second of a device; None where it is not known."""
    if device.type != "cuda":
        return None
    return peak_flops_named(torch.cuda.get_device_name(device), is_bf16=is_bf16)


def peak_flops_named(name: str, *, is_bf16: bool) -> float | None:
    """The most operations a second of a GPU, by the name that its driver gives.

    >>> peak_flops_named("NVIDIA L4", is_bf16=True), peak_flops_named("NVIDIA L400", is_bf16=True)
    (121000000000000.0, None)
    """
    bf16, f32 = PEAK_TFLOPS.get(name, (None, None))
    found = bf16 if is_bf16 else f32
    return None if found is None else found * 1e12


class Meter:
    """How busy a GPU is and how much energy it takes, as far as its driver tells.

    Parameters
    ----------
    nvml : the driver's library (package ``nvidia-ml-py``); without it nothing is told
    handle : of the device
    clock : seconds, of which only differences count
    """

    def __init__(self, nvml: Any = None, handle: Any = None, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._nvml, self._handle, self._clock = nvml, handle, clock
        self._last_look = clock()
        self._joules = self._ask(lambda: nvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1000)

    def begin(self) -> None:
        """Begin an epoch: the next look is a while from now, so that it sees nothing of the validation before."""
        self._last_look = self._clock()

    def look(self, *, is_last: bool = False) -> dict[str, float]:
        """What there is to add up, if the last look was a while ago or this is the last one.

        Returns
        -------
        ``busy``, the share of time in which a kernel ran lately, with ``looks``, which is 1; and ``joules`` since the
        last look. Lately is the driver's sample period, which is between a sixth of a second and a second, and a kernel
        is one of any process.
        """
        if self._nvml is None or (self._clock() - self._last_look < LOOK_SECONDS and not is_last):
            return {}
        self._last_look = self._clock()
        told: dict[str, float] = {}
        busy = self._ask(lambda: self._nvml.nvmlDeviceGetUtilizationRates(self._handle).gpu / 100)
        if busy is not None:
            told |= {"busy": busy, "looks": 1.0}
        joules = self._ask(lambda: self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle) / 1000)
        if joules is not None and self._joules is not None:
            told["joules"] = joules - self._joules
        self._joules = joules
        return told

    def _ask(self, question: Callable[[], float]) -> float | None:
        """The driver's answer; None where it has none, as of a part of a GPU, and of energy before Volta."""
        if self._nvml is None:
            return None
        try:
            return question()
        except self._nvml.NVMLError:
            return None


def meter_of(device: torch.device) -> Meter:
    """The meter of a device, which tells nothing without a GPU, its driver, or the package ``nvidia-ml-py``."""
    if device.type != "cuda":
        return Meter()
    try:
        nvml = import_module("pynvml")
        nvml.nvmlInit()
    except ImportError:
        return Meter()
    uuid = torch.cuda.get_device_properties(device).uuid
    return Meter(nvml, nvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}"))


def memory_mb(device: torch.device) -> float:
    """Peak memory on the GPU, or the process's resident memory now, in MB."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    return float(psutil.Process().memory_info().rss) / 1e6


def speed_facts(sums: Mapping[str, float], peak: float | None) -> dict[str, float]:
    """What an epoch's sums tell of the device.

    ``gpu_busy`` is the share of kernels in the time of an epoch, from a look a second. A profiler's would be of a few
    steps, which it slows down, and all that come after them.

    Parameters
    ----------
    sums : of seconds, of operations where they were counted (``flops``), and of what a `Meter` told
    peak : operations a second that the device does at most; None where it is not known

    Examples
    --------
    >>> speed_facts({"seconds": 2.0, "flops": 6e12, "joules": 900.0}, peak=10e12)
    {'tflops_per_second': 3.0, 'utilisation': 0.3, 'joules': 900.0}
    """
    facts = {}
    if "flops" in sums:
        per_second = sums["flops"] / sums["seconds"]
        facts["tflops_per_second"] = per_second / 1e12
        if peak is not None:
            facts["utilisation"] = per_second / peak
    if "looks" in sums:
        facts["gpu_busy"] = sums["busy"] / sums["looks"]
    if "joules" in sums:
        facts["joules"] = sums["joules"]
    return facts
