"""Table 1: what it says of splits by hand, and that nothing tells of a few."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
import simulated

from ehrtrack.pipeline.prepare import prepare_cohort
from ehrtrack.reporting.table_one import OUTCOME, describe_subjects, table_one


def _subjects(**counts: tuple[int, int, int]) -> pl.DataFrame:
    """Subjects with a level each, by level -> number in train, validation and test."""
    rows = [
        (split, level)
        for level, of_level in counts.items()
        for split, n in zip(("train", "validation", "test"), of_level, strict=True)
        for _ in range(n)
    ]
    return pl.DataFrame(rows, schema=["split", "group"], orient="row")


def _cells(found: pl.DataFrame, level: str) -> list[str]:
    row = found.filter(pl.col("level") == level).row(0, named=True)
    return [row[name] for name in ("overall", "train", "validation", "test", "smd")]


def test_medians_and_counts_by_hand() -> None:
    ages = [float(age) for age in range(20, 31)]  # median 25, quartiles 22.5 and 27.5
    subjects = pl.DataFrame(
        {
            "split": ["train"] * 11 + ["validation"] * 11 + ["test"] * 22,
            "age": ages + [age + 10 for age in ages] + [age + 20 for age in ages for _ in range(2)],
        }
    )
    found = table_one(subjects)
    age = found.row(1, named=True)
    assert (age["train"], age["validation"]) == ("25.0 [22.5, 27.5]", "35.0 [32.5, 37.5]")
    # tableone's: the difference of means over the root of the mean of both variances, 20 / sqrt((11 + 10.476) / 2)
    assert age["smd"] == f"{20 / np.sqrt((11 + 220 / 21) / 2):.2f}" == "6.10"
    assert found.row(0)[2:6] == ("44", "11", "11", "22")


def test_counts_and_shares_where_none_is_small() -> None:
    found = table_one(_subjects(F=(30, 20, 20), M=(70, 20, 20)))
    assert _cells(found, "F")[:4] == ["70 (38.9)", "30 (30.0)", "20 (50.0)", "20 (50.0)"]


def test_a_few_in_one_split_hide_all_counts_by_split() -> None:
    found = table_one(_subjects(F=(30, 20, 20), M=(70, 20, 4)))
    assert _cells(found, "F") == ["70 (42.7)", "–", "–", "–", ""]
    assert _cells(found, "M") == ["94 (57.3)", "–", "–", "<11", ""]


def test_a_few_in_all_hide_another_level_too() -> None:
    found = table_one(_subjects(F=(30, 20, 20), M=(70, 20, 20), X=(2, 1, 1)))
    assert _cells(found, "X") == ["<11", "<11", "<11", "<11", ""]
    assert _cells(found, "F")[0] == "–"  # or else all subjects, less the others, would tell
    assert _cells(found, "M")[0] == "110 (59.8)"


def test_numbers_of_a_few_are_not_shown() -> None:
    subjects = pl.DataFrame(
        {"split": ["train"] * 40 + ["validation"] * 20 + ["test"] * 20, "age": [50.0] * 70 + [None] * 10}
    )
    age = table_one(subjects).row(1, named=True)
    assert (age["train"], age["validation"], age["test"]) == ("50.0 [50.0, 50.0]", "50.0 [50.0, 50.0]", "–")


def test_subjects_of_a_cohort(tmp_path: Path) -> None:
    simulated.write_dataset(tmp_path / "data", simulated.Population(n_subjects=120))
    records = prepare_cohort(simulated.study(tmp_path / "data", tmp_path / "cache"))
    found = describe_subjects(records)
    assert found.height == records.cohort.subjects["subject_id"].n_unique()
    assert found[OUTCOME].eq("yes").sum() == records.cohort.subjects["is_event"].sum()
    first = records.store.token[: records.store.offsets[1]]
    assert found["recorded events"][0] == len(first)
    assert set(found["sex"]) == {"F", "M"}


@pytest.mark.parametrize("name", ["age (years)", "visits", "follow-up (days)"])
def test_table_of_a_cohort_has_what_is_known(tmp_path: Path, name: str) -> None:
    simulated.write_dataset(tmp_path / "data", simulated.Population(n_subjects=120))
    found = table_one(describe_subjects(prepare_cohort(simulated.study(tmp_path / "data", tmp_path / "cache"))))
    assert found.filter(pl.col("characteristic") == name).height == 1
