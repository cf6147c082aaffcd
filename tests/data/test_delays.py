"""Delays in availability: an event is known so many hours after its time, wherever records are cut."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import numpy as np
import polars as pl
import pytest

from ehrtrack.config import parse_config
from ehrtrack.data.count_features import count_features
from ehrtrack.data.fitting import count_tokens, coverage, fit_vocabulary
from ehrtrack.data.histories import histories_of
from ehrtrack.data.settings import VisitConfig, VocabularyConfig
from ehrtrack.data.shards import ShardWork
from ehrtrack.data.store import build_store
from ehrtrack.data.timing_features import timing_features
from ehrtrack.data.value_edges import count_values
from ehrtrack.data.visits import is_known, known_events, visit_tokens
from ehrtrack.data.vocabulary import NEVER_TOKENS, SPECIAL_TOKENS, Vocabulary
from ehrtrack.errors import ConfigError

INDEX = datetime(2020, 1, 10, 12)
VOCABULARY = Vocabulary(
    tokens=(*SPECIAL_TOKENS, "LAB//a", "DIAGNOSIS//b", "OTHER", "GENDER//F"), value_edges={}, exclude=NEVER_TOKENS
)
ROWS = [
    (1, "1970-01-01", "MEDS_BIRTH"),
    (1, None, "GENDER//F"),
    (1, "2020-01-01", "OTHER"),
    (1, "2020-01-10 07:00", "LAB//a", 1.5, None),  # five hours before the index
    (1, "2020-01-10 11:59", "DIAGNOSIS//b"),
    (1, "2020-01-10 13:00", "OTHER"),
]
CUTOFFS = pl.DataFrame(
    {"subject_id": [1], "cutoff": [INDEX], "split": ["train"]}, schema_overrides={"cutoff": pl.Datetime("us")}
)


def known(frame, delay_hours: dict[str, float], rows: Any = ROWS) -> list[str]:
    return known_events(frame(rows).lazy(), CUTOFFS, delay_hours).collect()["code"].to_list()


ALL = ["GENDER//F", "MEDS_BIRTH", "OTHER", "LAB//a", "DIAGNOSIS//b"]


@pytest.mark.parametrize(
    ("delay_hours", "lost"),
    [
        ({}, set()),
        ({"LAB//": 4}, set()),
        ({"LAB//": 5}, set()),  # known at the index itself
        ({"LAB//": 5.001}, {"LAB//a"}),
        ({"LAB//*": 6}, {"LAB//a"}),
        ({"LAB//*": 6, "DIAGNOSIS//*": 24}, {"LAB//a", "DIAGNOSIS//b"}),
        ({"LAB//": 6, "LAB//a$": 1}, {"LAB//a"}),  # the longest counts
        ({"LAB//a$": 1, "LAB//": 6}, {"LAB//a"}),
        ({"a": 6}, set()),  # at the code's start
        ({".": 300}, {"LAB//a", "DIAGNOSIS//b", "OTHER"}),  # static facts and birth have none
    ],
)
def test_an_event_is_known_once_its_delay_is_over(frame, delay_hours, lost):
    assert known(frame, delay_hours) == [code for code in ALL if code not in lost]


def test_birth_and_death_have_no_delay(frame):
    rows = [
        (1, "2020-01-10 11:30", "MEDS_BIRTH"),
        (1, "2020-01-10 11:40", "MEDS_DEATH"),
        (1, "2020-01-10 11:50", "OTHER"),
    ]
    assert known(frame, {"MEDS_": 24}, rows) == ["MEDS_BIRTH", "MEDS_DEATH"]


def test_values_are_counted_once_they_are_known(frame):
    values = {
        hours: count_values(histories_of(frame(ROWS)), CUTOFFS, (), delay_hours={"LAB//": hours})["code"].to_list()
        for hours in (4, 6)
    }
    assert values == {4: ["LAB//a"], 6: []}


def test_an_event_that_is_not_known_moves_no_token(frame):
    def tokens(rows: Any, hours: float) -> dict[str, list[Any]]:
        found = visit_tokens(histories_of(frame(rows)), CUTOFFS, VOCABULARY, VisitConfig(), {"LAB//*": hours})
        return {name: array.tolist() for name, array in vars(found).items()}

    without = [row for row in ROWS if row[2] != "LAB//a"]
    assert tokens(ROWS, 6) == tokens(without, 6)
    assert tokens(ROWS, 4) != tokens(without, 4)
    assert VOCABULARY.index["LAB//a"] in tokens(ROWS, 4)["token"]
    assert tokens(ROWS, 0) == tokens(ROWS, 4)  # what is known lies at its own time


def test_store_features_and_vocabulary_see_no_more_than_is_known(make_dataset, tmp_path):
    dataset, config = make_dataset(ROWS), VocabularyConfig(min_subjects=1, min_values=1)
    stores = {
        hours: build_store(
            dataset, CUTOFFS, VOCABULARY, VisitConfig(unit="hour"), tmp_path / "s", delay_hours={"LAB//": hours}
        )
        for hours in (4, 6)
    }
    assert np.isin(4, stores[4].token)
    assert not np.isin(4, stores[6].token)
    for features in (count_features, timing_features):
        assert features(stores[4], VOCABULARY)["LAB//a"].item() == 1
        assert features(stores[6], VOCABULARY)["LAB//a"].item() == 0
    work = ShardWork(tmp_path / "w")
    for hours, is_there in ((4, True), (6, False)):
        delay_hours = {"LAB//": hours}
        assert ("LAB//a" in fit_vocabulary(dataset, CUTOFFS, config, work, delay_hours=delay_hours).tokens) == is_there
        counts = count_tokens(dataset, CUTOFFS, VOCABULARY, work, delay_hours=delay_hours)
        assert ("LAB//a" in counts["code"].to_list()) == is_there
        n_events = coverage(dataset, CUTOFFS, VOCABULARY, work, delay_hours=delay_hours)["n_events"].item()
        assert n_events == 3 + is_there


def test_a_delay_is_part_of_the_stores_fingerprint_where_there_is_one(make_dataset, tmp_path):
    dataset = make_dataset(ROWS)
    prints = [
        build_store(dataset, CUTOFFS, VOCABULARY, VisitConfig(), tmp_path, **asked).fingerprint
        for asked in ({}, {"delay_hours": {}}, {"delay_hours": {"LAB//": 6}}, {"delay_hours": {"LAB//": 4}})
    ]
    assert prints[0] == prints[1]
    assert len(set(prints)) == 3


def test_without_the_delay_the_same_check_fails(frame, monkeypatch):
    """The checks above can fail: where the guard hears of no delay, the event is among the tokens."""
    from ehrtrack.data import visits as visits_module

    monkeypatch.setattr(visits_module, "is_known", lambda events, cutoffs, _delay_hours: is_known(events, cutoffs))
    found = visit_tokens(histories_of(frame(ROWS)), CUTOFFS, VOCABULARY, VisitConfig(), {"LAB//": 6})
    assert VOCABULARY.index["LAB//a"] in found.token


def settings(delay_hours: Any) -> Any:
    return parse_config({"study": "s", "data": {"path": "d", "delay_hours": delay_hours}})


def test_delays_are_settings_that_go_to_files_and_params(tmp_path):
    from ehrtrack.config import load_config, to_toml

    config = settings({"LAB//*": 6, "DIAGNOSIS//I2[0-5].9$": 24})
    (tmp_path / "run.toml").write_text(to_toml(config))
    assert load_config(tmp_path / "run.toml").data.delay_hours == config.data.delay_hours
    assert parse_config(config.to_json()) == config
    params = config.to_params(["data"])
    assert params["data.delay_hours"] == '{"LAB//*": 6.0, "DIAGNOSIS//I2[0-5].9$": 24.0}'
    assert "data.delay_hours" not in settings({}).to_params(["data"])
    assert "delay_hours" not in settings({}).identity()["data"]


@pytest.mark.parametrize(
    ("delay_hours", "reason"),
    [
        ({"LAB//(": 6}, "is no regular expression"),
        ({"": 6}, "an empty code pattern"),
        ({"LAB//": -1}, "greater than or equal to 0"),
        ({"LAB//": "soon"}, "valid number"),
    ],
)
def test_a_delay_that_cannot_be_meant_is_refused(delay_hours, reason):
    with pytest.raises(ConfigError, match=reason):
        settings(delay_hours)
