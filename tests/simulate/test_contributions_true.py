"""What codes contribute to the true log hazard, on records worked out by hand."""

from __future__ import annotations

from datetime import datetime, timedelta

import polars as pl
import pytest

from ehrtrack.simulate.contributions import true_contributions
from ehrtrack.simulate.dictionary import DRUG, EARLY, FIRST_LAB, SYSTEMS
from ehrtrack.simulate.motifs import HEART_FAILURE, concept
from ehrtrack.simulate.world import load_world

NOW = datetime(2020, 1, 1)
CONCEPTS = {
    "DX//heart": concept("heart-1", EARLY),
    "DX//heart-again": concept("heart-1", EARLY),
    "DX//pair-1": concept("heart-4", EARLY),
    "DX//pair-2": concept("lung-3", EARLY),
    "DX//lung": concept("lung-2", EARLY),
    "RX//lung": concept("lung-2", DRUG),
    "LAB//kidney": FIRST_LAB + SYSTEMS.index("kidney"),
}


def contributions(*events: tuple[int, str, float | None], motif_weight: float = 1.0) -> dict[str, float]:
    frame = pl.DataFrame(
        [(NOW - timedelta(days=days), code, value) for days, code, value in events],
        schema={"time": pl.Datetime("us"), "code": pl.String, "numeric_value": pl.Float32},
        orient="row",
    ).sort("time", maintain_order=True)
    codes = sorted({code for _, code, _ in events})
    world = load_world("target-site", [f"motif_weight={motif_weight}"])
    return dict(zip(codes, true_contributions(frame, NOW, codes, CONCEPTS, world), strict=True))


def test_a_stage_that_one_code_tells_is_that_codes_and_of_two_neithers() -> None:
    assert contributions((50, "DX//heart", None), (20, "DX//noise", None)) == pytest.approx(
        {"DX//heart": HEART_FAILURE, "DX//noise": 0.0}
    )
    both = contributions((50, "DX//heart", None), (20, "DX//heart-again", None))
    assert both == pytest.approx({"DX//heart": 0.0, "DX//heart-again": 0.0})


def test_either_code_of_a_pair_carries_all_of_it() -> None:
    found = contributions((50, "DX//pair-1", None), (20, "DX//pair-2", None))
    assert found == pytest.approx({"DX//pair-1": 0.8, "DX//pair-2": 0.8})
    assert contributions((50, "DX//pair-1", None)) == pytest.approx({"DX//pair-1": 0.0})


def test_a_prompt_drug_lowers_the_hazard_by_both_signs_of_its_motif() -> None:
    found = contributions((400, "DX//lung", None), (380, "RX//lung", None))
    assert found == pytest.approx({"RX//lung": -1.4, "DX//lung": -0.7})


def test_a_trend_is_of_its_test_and_the_motifs_weight_scales_it() -> None:
    values = ((300, "LAB//kidney", 2.0), (10, "LAB//kidney", 3.0))
    assert contributions(*values) == pytest.approx({"LAB//kidney": 0.6})
    assert contributions(*values, motif_weight=0) == pytest.approx({"LAB//kidney": 0.0})


def test_what_comes_after_the_index_date_contributes_nothing() -> None:
    assert contributions((-5, "DX//heart", None)) == pytest.approx({"DX//heart": 0.0})
