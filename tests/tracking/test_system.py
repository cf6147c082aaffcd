"""Samples of the machine: in the journal, so that they survive a server that is away."""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from ehrtrack.errors import TrackingError
from ehrtrack.tracking import system
from ehrtrack.tracking.client import queries
from ehrtrack.tracking.outbox.sync import sync
from ehrtrack.tracking.run import tracked_run


class NVMLError(Exception):
    pass


def fake_nvml(n_gpus: int, *, watts: float | None = 300.0) -> SimpleNamespace:
    def power(handle: int) -> float:
        if watts is None:
            raise NVMLError("not supported")
        return watts * 1000

    return SimpleNamespace(
        NVMLError=NVMLError,
        nvmlInit=lambda: None,
        nvmlDeviceGetCount=lambda: n_gpus,
        nvmlDeviceGetHandleByIndex=lambda number: number,
        nvmlDeviceGetUtilizationRates=lambda handle: SimpleNamespace(gpu=80 + handle),
        nvmlDeviceGetMemoryInfo=lambda handle: SimpleNamespace(used=2e9),
        nvmlDeviceGetPowerUsage=power,
    )


def test_a_gpu_tells_its_use_memory_and_watts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", fake_nvml(2))
    assert system.Gpus().sample() == {
        "gpu_0_utilization_percentage": 80.0,
        "gpu_0_memory_usage_megabytes": 2000.0,
        "gpu_0_power_usage_watts": 300.0,
        "gpu_1_utilization_percentage": 81.0,
        "gpu_1_memory_usage_megabytes": 2000.0,
        "gpu_1_power_usage_watts": 300.0,
    }


def test_what_a_gpu_does_not_tell_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", fake_nvml(1, watts=None))
    assert system.Gpus().sample().keys() == {"gpu_0_utilization_percentage", "gpu_0_memory_usage_megabytes"}


def test_without_the_package_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert system.Gpus().sample() == {}


def test_without_a_driver_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def init() -> None:
        raise NVMLError("driver not loaded")

    nvml = fake_nvml(1)
    nvml.nvmlInit = init
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    assert system.Gpus().sample() == {}


def test_samples_survive_a_server_that_is_away(
    http_store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(system, "SAMPLE_SECONDS", 0.01)
    monkeypatch.setattr(system, "time", SimpleNamespace(time=iter(range(100, 10**6)).__next__))
    has_sampled = threading.Event()
    with monkeypatch.context() as away:
        away.setenv("EHRTRACK_OFFLINE", "1")
        with tracked_run(experiment="sampled", name="a", kind="finetune", journal=tmp_path / "journal") as run:
            log = run.log_metrics
            away.setattr(run, "log_metrics", lambda *rows, **step: (log(*rows, **step), has_sampled.set()))
            assert has_sampled.wait(60)
    assert [one.problem for one in sync(tmp_path, is_shared=False)] == [""]
    (record,) = queries.search_runs("sampled")
    assert record.metrics["system/process_memory_usage_megabytes"] > 1
    assert min(queries.metric_history(record.run_id, "system/cpu_utilization_percentage")) >= 100


@pytest.mark.parametrize(("kind", "is_sampled"), [("baseline", True), ("sweep", False)])
def test_runs_that_train_are_sampled(kind: str, is_sampled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(system, "SAMPLE_SECONDS", 0.0)
    came = threading.Event()
    with system.sampled(kind, lambda values, moment: came.set()):
        assert came.wait(60 if is_sampled else 0) == is_sampled


def test_a_run_that_can_no_longer_be_written_ends_the_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(system, "SAMPLE_SECONDS", 0.0)
    calls: list[int] = []

    def log(values: object, moment: int) -> None:
        calls.append(moment)
        raise TrackingError("the disk is full")

    stopped = threading.Event()
    system._sample(stopped, log)
    assert len(calls) == 1
