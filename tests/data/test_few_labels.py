"""Training on few labels: how many of which class are drawn, that draws are nested, and what stays as it is."""

from __future__ import annotations

from datetime import datetime
from itertools import pairwise
from typing import Any

import polars as pl
import pytest

from ehrtrack.config import parse_config
from ehrtrack.data.cohort import Cohort, build_cohort
from ehrtrack.data.few_labels import draw_labels
from ehrtrack.data.settings import CohortConfig
from ehrtrack.data.split_settings import SplitConfig
from ehrtrack.errors import ConfigError, DataError

RULES = {
    "index": {"rule": "first_code", "codes": ["A"]},
    "outcome": {"codes": ["X"]},
    "horizon_days": 100,
    "min_followed_share": 0,
}


def rows_of(n: dict[str, int], n_events: dict[str, int]) -> pl.DataFrame:
    """Rows of each split, the first of them with the outcome."""
    table = [(split, number < n_events[split]) for split in n for number in range(n[split])]
    return pl.DataFrame(
        {
            "subject_id": list(range(len(table))),
            "index_date": [datetime(2020, 1, 1)] * len(table),
            "is_event": [is_event for _, is_event in table],
            "split": [split for split, _ in table],
        }
    )


MANY = {"train": 700, "validation": 150, "test": 150}
EVENTS = {"train": 140, "validation": 30, "test": 30}


def drawn(n_labels: int, seed: int = 0, rows: pl.DataFrame | None = None) -> pl.DataFrame:
    rows = rows_of(MANY, EVENTS) if rows is None else rows
    return rows.filter(draw_labels(rows, n_labels, seed=seed))


@pytest.mark.parametrize(
    ("n_labels", "counts"),
    [
        # a fifth has the outcome; of validation 150 of 700: 13.7 of 64, 27.4 of 128, 149.8 of 699
        (64, {"train": (64, 13), "validation": (14, 3), "test": (150, 30)}),
        (128, {"train": (128, 26), "validation": (27, 5), "test": (150, 30)}),
        (2, {"train": (2, 1), "validation": (2, 1), "test": (150, 30)}),
        (700, {"train": (700, 140), "validation": (150, 30), "test": (150, 30)}),
    ],
)
def test_few_labels_have_the_share_of_events_of_all_and_validation_keeps_its_ratio(n_labels, counts):
    table = drawn(n_labels).group_by("split").agg(n=pl.len(), events=pl.col("is_event").sum())
    assert {split: (n, events) for split, n, events in table.iter_rows()} == counts


def test_draws_are_nested_and_another_seed_draws_others():
    sets = [set(drawn(n)["subject_id"]) for n in (2, 3, 5, 8, 64, 65, 128, 512, 700)]
    assert all(smaller < larger for smaller, larger in pairwise(sets))
    other = set(drawn(64, seed=1).filter(pl.col("split") == "train")["subject_id"])
    same = set(drawn(64).filter(pl.col("split") == "train")["subject_id"])
    assert len(other & same) < 20  # of 64, some 6 by chance


def test_few_labels_that_are_not_there_or_of_one_class_are_refused():
    with pytest.raises(DataError, match="n_labels is 701, and there are 700 training rows"):
        drawn(701)
    for split, n_events in (("train", 0), ("validation", 150)):
        with pytest.raises(DataError, match=rf"of {MANY[split]} {split} rows {n_events} have the outcome"):
            drawn(8, rows=rows_of(MANY, EVENTS | {split: n_events}))
    with pytest.raises(ConfigError, match="n_labels"):
        parse_config({"study": "s", "data": {"path": "d"}, "cohort": {"labels": "l", "n_labels": 1}})


def test_few_labels_are_a_step_of_the_cohort_that_leaves_test_subjects_and_the_horizon(make_dataset):
    rows = [row for s in range(1, 201) for row in [(s, "2020-01-01", "A"), (s, "2021-01-01", "B")]]
    rows += [(s, "2020-01-31", "X") for s in range(1, 201, 2)]
    dataset = make_dataset(rows)

    def make(**settings: Any) -> Cohort:
        return build_cohort(dataset, CohortConfig.model_validate({**RULES, **settings}), SplitConfig())

    whole, few = make(), make(n_labels=16)
    n = dict(whole.subjects["split"].value_counts().iter_rows())
    n_validation = round(16 * n["validation"] / n["train"])
    lost = 200 - 16 - n_validation - n["test"]
    assert few.attrition.rows()[-1] == ("drawn by cohort.n_labels, or for testing", 200 - lost, lost)
    assert few.subjects.filter(pl.col("split") == "test").equals(whole.subjects.filter(pl.col("split") == "test"))
    assert few.subjects.filter(pl.col("split") == "train")["is_event"].sum() == 8
    assert (whole.n_pool, few.n_pool) == (None, n["train"])
    assert set(few.subjects["subject_id"]) < set(make(n_labels=32).subjects["subject_id"])
    prints = {make(**settings).fingerprint for settings in ({}, {"n_labels": 16}, {"n_labels": 16, "labels_seed": 1})}
    assert len(prints) == 3
    assert make(labels_seed=5).fingerprint == whole.fingerprint  # draws nothing


def test_the_horizon_of_labels_is_that_of_all_training_rows_however_few_are_drawn(make_dataset, tmp_path):
    rows = [row for s in range(1, 201) for row in [(s, "2020-01-01", "A"), (s, "2021-01-01", "B")]]
    lines = [f"{s},2020-01-01,{10 + s},{s % 2}" for s in range(1, 201)]
    (tmp_path / "labels.csv").write_text("\n".join(["subject_id,prediction_time,follow_up_days,is_event", *lines]))
    dataset = make_dataset(rows)
    whole, few = (
        build_cohort(dataset, CohortConfig(labels=tmp_path / "labels.csv", n_labels=n), SplitConfig())
        for n in (None, 8)
    )
    assert few.horizon_days == whole.horizon_days
    assert few.subjects.height < whole.subjects.height
