"""Each term of the log hazard, on histories worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from ehrtrack.simulate.dictionary import CONCEPTS, DRUG, EARLY, FIRST_LAB, LATE, SYSTEMS
from ehrtrack.simulate.motifs import (
    History,
    LabTrend,
    Order,
    Pair,
    Recency,
    Stage,
    TreatmentTiming,
    concept,
    log_hazard,
    summarise_history,
)
from ehrtrack.simulate.world import load_world

LIVER_LAB = FIRST_LAB + SYSTEMS.index("liver")


def history(*events: tuple[int, int, float], until_day: int = 0) -> History:
    """The history of one subject out of (day, concept, value), in order of time."""
    days, concepts, values = (np.array(column) for column in zip(*events, strict=True))
    return summarise_history(
        np.zeros(len(days), dtype=np.int64),
        days.astype(np.int64) * 86_400,
        concepts.astype(np.int64),
        values.astype(np.float32),
        n_subjects=1,
        until_seconds=until_day * 86_400,
    )


def diagnosis(day: int, name: str, stage: int = EARLY) -> tuple[int, int, float]:
    return day, concept(name, stage), np.nan


def drug(day: int, name: str) -> tuple[int, int, float]:
    return day, concept(name, DRUG), np.nan


def test_first_and_last_days_and_values() -> None:
    seen = history((-300, LIVER_LAB, 2.5), diagnosis(-200, "lung-1"), (-100, LIVER_LAB, 4.0), diagnosis(-50, "lung-1"))
    assert CONCEPTS[LIVER_LAB] == ("liver/lab", "LAB")
    assert seen.first_days[0, concept("lung-1", EARLY)] == -200
    assert seen.last_days[0, concept("lung-1", EARLY)] == -50
    assert seen.first_lab[0, 3] == 2.5
    assert seen.last_lab[0, 3] == 4.0
    assert np.isnan(seen.first_lab[0, 0])


def test_what_comes_after_the_moment_is_not_seen() -> None:
    events = [diagnosis(-400, "lung-1"), diagnosis(-100, "lung-1"), diagnosis(20, "heart-1")]
    assert history(*events, until_day=-365).last_days[0, concept("lung-1", EARLY)] == -35
    assert not history(*events).is_diagnosed("heart-1")[0]
    assert history(*events, until_day=20).is_diagnosed("heart-1")[0]


@pytest.mark.parametrize(
    ("term", "events", "expected"),
    [
        (Stage("lung-1", 0.5, 0.25), [diagnosis(-9, "lung-1")], 0.5),
        (Stage("lung-1", 0.5, 0.25), [diagnosis(-9, "lung-1", LATE)], 0.75),
        (Stage("lung-1", 0.5, 0.25), [diagnosis(-9, "lung-2", LATE)], 0.0),
        (Order("lung-1", "lung-2", 0.5), [diagnosis(-9, "lung-1"), diagnosis(-8, "lung-2", LATE)], 0.5),
        (Order("lung-1", "lung-2", 0.5), [diagnosis(-9, "lung-2"), diagnosis(-8, "lung-1")], -0.5),
        (Order("lung-1", "lung-2", 0.5), [diagnosis(-9, "lung-1"), diagnosis(-9, "lung-2")], 0.0),
        (Order("lung-1", "lung-2", 0.5), [diagnosis(-9, "lung-1")], 0.0),
        (TreatmentTiming("lung-1", 0.5), [diagnosis(-500, "lung-1"), drug(-320, "lung-1")], -0.5),
        (TreatmentTiming("lung-1", 0.5), [diagnosis(-500, "lung-1"), drug(-319, "lung-1")], 0.5),
        (TreatmentTiming("lung-1", 0.5), [diagnosis(-500, "lung-1")], 0.5),
        (TreatmentTiming("lung-1", 0.5), [drug(-319, "lung-1")], 0.0),
        (Recency("lung-1", 0.5, 330), [diagnosis(-900, "lung-1"), diagnosis(-330, "lung-1")], 0.5 * (2 / np.e - 1)),
        (Recency("lung-1", 0.5), [diagnosis(-330, "lung-2")], 0.0),
        (LabTrend("liver", 0.5), [(-9, LIVER_LAB, 2.5), (-8, LIVER_LAB, 9.0), (-7, LIVER_LAB, 3.5)], 0.5),
        (LabTrend("liver", 0.5), [(-9, LIVER_LAB, 9.0), (-8, LIVER_LAB, 1.0)], -1.0),
        (LabTrend("liver", 0.5), [(-9, LIVER_LAB, 9.0)], 0.0),
        (LabTrend("liver", 0.5), [diagnosis(-9, "liver-1")], 0.0),
        (Pair("lung-1", "liver-1", 0.5), [diagnosis(-9, "lung-1"), diagnosis(-8, "liver-1")], 0.5),
        (Pair("lung-1", "liver-1", 0.5), [diagnosis(-9, "lung-1")], 0.0),
    ],
)  # fmt: skip
def test_a_term_on_a_history_worked_out_by_hand(
    term: Stage, events: list[tuple[int, int, float]], expected: float
) -> None:
    np.testing.assert_allclose(term.value(history(*events)), [expected])


def test_age_and_sex_carry_their_published_coefficients() -> None:
    nothing = history(diagnosis(-9, "lung-5"))
    world = load_world("target_site")
    woman_62, woman_72, man_62 = (
        float(log_hazard(nothing, np.array([age]), np.array([is_male]), world)[0])
        for age, is_male in ((62.0, False), (72.0, False), (62.0, True))
    )
    assert woman_62 == 0
    assert woman_72 == pytest.approx(np.log(1.45))
    assert man_62 == pytest.approx(0.20)


def test_dials_scale_the_signal_and_the_motifs() -> None:
    seen = history(diagnosis(-9, "heart-1"), diagnosis(-8, "lung-3"), diagnosis(-7, "heart-4"))
    age, woman = np.array([62.0]), np.array([False])
    values = [
        log_hazard(seen, age, woman, load_world("target_site", dials))[0]
        for dials in ((), ("signal=0.5",), ("motif_weight=0",))
    ]
    np.testing.assert_allclose(values, [0.85 + 0.8, (0.85 + 0.8) / 2, 0.85])
