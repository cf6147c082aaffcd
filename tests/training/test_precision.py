"""Which GPUs multiply in bfloat16. Their answers are stand-ins: none of these GPUs is here."""

from __future__ import annotations

from typing import Literal

import pytest
import torch

from ehrtrack.errors import ConfigError
from ehrtrack.training.ranks import multiplies_in_bf16

CUDA = torch.device("cuda")


@pytest.mark.parametrize(
    ("capability", "precision", "expected"),
    [
        ((9, 0), "auto", True),
        ((8, 0), "auto", True),
        ((8, 6), "bf16", True),
        ((8, 6), "f32", False),
        ((7, 5), "auto", False),
        ((7, 0), "f32", False),
    ],
)
def test_a_gpu_without_units_for_bfloat16_gets_float32(
    capability: tuple[int, int],
    precision: Literal["auto", "f32", "bf16"],
    expected: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert multiplies_in_bf16(precision, CUDA) is expected


def test_bfloat16_on_a_gpu_without_units_for_it_is_refused_with_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    with pytest.raises(ConfigError, match=r"Tesla T4 \(compute capability 7\.5\).*8\.0 is needed: set runtime\.precis"):
        multiplies_in_bf16("bf16", CUDA)


def test_a_cpu_takes_bfloat16_only_when_it_is_asked_for() -> None:
    cpu = torch.device("cpu")
    assert [multiplies_in_bf16(precision, cpu) for precision in ("auto", "f32", "bf16")] == [False, False, True]
