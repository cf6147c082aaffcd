"""Two real processes that train together (gloo, on the CPU), against one that does the same alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from two_devices import differences, run

TIMES = {
    "train/tokens_per_second",
    "train/tflops_per_second",
    "train/epoch_seconds",
    "train/memory_mb",
    "train/batches",
}


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return run(tmp_path_factory.mktemp("one") / "found.json", n_ranks=1)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return run(tmp_path_factory.mktemp("two") / "found.json", n_ranks=2)


@pytest.mark.parametrize("case", ["survival full", "survival lora", "mlm full"])
def test_gradients_of_two_processes_equal_one_process_with_the_doubled_batch(case: str, one: Any, two: Any) -> None:
    alone, together = one[case], two[case]
    assert alone.keys() == together.keys()
    assert max(np.abs(gradient).max() for gradient in alone.values()) > 1e-3
    for name, gradient in alone.items():
        np.testing.assert_allclose(together[name], gradient, atol=1e-5, rtol=1e-5, err_msg=name)


def without_times(history: list[dict[str, float]]) -> list[dict[str, float]]:
    return [{name: value for name, value in epoch.items() if name not in TIMES} for epoch in history]


@pytest.mark.parametrize("part", ["history", "resumed", "phases"])
def test_two_processes_log_the_metrics_of_one_also_when_resumed_and_where_the_encoder_begins_to_learn_later(
    part: str, one: Any, two: Any
) -> None:
    alone, together = without_times(one[part]), without_times(two[part])
    assert len(alone) == (2 if part == "history" else 4)
    for epoch, other in zip(alone, together, strict=True):
        assert other == pytest.approx(epoch, rel=1e-3, abs=1e-5)


def test_the_check_of_two_devices_finds_these_the_same_and_others_not(one: Any, two: Any) -> None:
    assert differences(one, two) == []
    other = two | {"mlm full": {name: (np.array(g) + 1).tolist() for name, g in two["mlm full"].items()}}
    other["history"] = [epoch | {"train/loss": epoch["train/loss"] + 0.01} for epoch in two["history"]]
    found = differences(one, other)
    assert len(found) == len(two["mlm full"]) + len(two["history"])
