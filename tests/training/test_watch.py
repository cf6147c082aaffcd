"""What is said while an epoch lasts, where there is no terminal."""

from __future__ import annotations

import pytest

from ehrtrack.training.watch import watched_epoch


def test_a_line_comes_once_a_minute_with_the_share_and_the_time_left(capsys: pytest.CaptureFixture[str]) -> None:
    now = 0.0
    with watched_epoch(
        "epoch 2/3", n_done=10, n_batches=100, epochs_left=1, has_terminal=False, clock=lambda: now
    ) as told:
        for done in range(11, 41):
            now += 5.0  # a batch takes five seconds
            told(done, 1.0 / done)
    lines = capsys.readouterr().out.splitlines()
    # after 60 s, 120 s, of 30 batches in 150 s; 78 and 100 batches are left at 60 s: 890 s
    assert lines == [
        "epoch 2/3   22 %  train/loss 0.0455  at most 15 min left",
        "epoch 2/3   34 %  train/loss 0.0294  at most 14 min left",
    ]


@pytest.mark.parametrize("shown", [{"has_terminal": True}, {"is_silent": True}])
def test_no_line_is_printed_in_a_terminal_or_by_other_ranks(
    shown: dict[str, bool], capsys: pytest.CaptureFixture[str]
) -> None:
    now = 0.0
    with watched_epoch("epoch 1/1", n_done=0, n_batches=3, epochs_left=0, clock=lambda: now, **shown) as told:
        for done in (1, 2, 3):
            now += 100.0
            told(done, 1.0)
    assert capsys.readouterr().out == ""
