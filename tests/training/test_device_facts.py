"""What a GPU's driver tells, of a made-up driver: the device itself is the matter of `tests/gpu`."""

from __future__ import annotations

import pytest
import torch

from ehrtrack.training.device_facts import Meter, meter_of, peak_flops, speed_facts


class Driver:
    """As `pynvml`: busy in turn, 100 J a question, and of nothing where it is silent."""

    class NVMLError(Exception):
        pass

    def __init__(self, *, is_silent: bool = False) -> None:
        self.is_silent = is_silent
        self.joules = 5000
        self.gpu = 0

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: str) -> int:  # noqa: N802
        if self.is_silent:
            raise self.NVMLError("not supported")
        self.joules += 100
        return 1000 * self.joules

    def nvmlDeviceGetUtilizationRates(self, handle: str) -> Driver:  # noqa: N802
        if self.is_silent:
            raise self.NVMLError("not supported")
        self.gpu += 20
        return self


def test_looks_are_a_second_apart_and_the_last_comes_in_any_case() -> None:
    now = [0.0]
    meter = Meter(Driver(), "gpu", clock=lambda: now[0])
    told = []
    for now[0] in (0.4, 1.1, 1.2, 2.2):
        told.append(meter.look())
    told.append(meter.look(is_last=True))
    looks = [{"busy": share, "looks": 1.0, "joules": 100.0} for share in (0.2, 0.4, 0.6)]
    assert told == [{}, looks[0], {}, looks[1], looks[2]]


def test_what_a_driver_does_not_tell_is_left_out() -> None:
    assert Meter(Driver(is_silent=True), "gpu").look(is_last=True) == {}
    assert meter_of(torch.device("cpu")).look(is_last=True) == {}


def test_an_unknown_device_has_no_utilisation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA Nonesuch")
    assert peak_flops(torch.device("cuda"), is_bf16=True) is None
    assert peak_flops(torch.device("cpu"), is_bf16=True) is None
    assert "utilisation" not in speed_facts({"seconds": 1.0, "flops": 1e12}, None)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200")
    peak = peak_flops(torch.device("cuda"), is_bf16=True)
    assert speed_facts({"seconds": 1.0, "flops": 98.94e12, "busy": 1.5, "looks": 2.0}, peak) == pytest.approx(
        {"tflops_per_second": 98.94, "utilisation": 0.1, "gpu_busy": 0.75}
    )
