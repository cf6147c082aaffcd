"""Whatever is changed, added or deleted after the index, no token, age or gap moves."""

from __future__ import annotations

from datetime import datetime, timedelta

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ehrtrack.data import visits as visits_module
from ehrtrack.data.cohort import build_cohort
from ehrtrack.data.count_features import count_features
from ehrtrack.data.events import EVENT_SCHEMA, open_dataset
from ehrtrack.data.fitting import choose_tokens, count_names
from ehrtrack.data.histories import Histories, histories_of
from ehrtrack.data.settings import CohortConfig, VisitConfig, VocabularyConfig
from ehrtrack.data.split_settings import SplitConfig
from ehrtrack.data.store import TokenStore, build_store
from ehrtrack.data.value_edges import count_values, value_edges
from ehrtrack.data.visits import known_events, visit_tokens
from ehrtrack.data.vocabulary import NEVER_TOKENS, Vocabulary

SUBJECTS = range(1, 31)
INDEX = datetime(2020, 1, 1)
CUTOFFS = pl.DataFrame(
    {"subject_id": list(SUBJECTS), "cutoff": [INDEX + timedelta(days=subject) for subject in SUBJECTS]},
    schema={"subject_id": pl.Int64, "cutoff": pl.Datetime("us")},
)
CODES = ["A", "B", "C", "LAB", "MEDS_DEATH", "MEDS_BIRTH", "RARE"]


def random_events(seed: int, *, n_days: int = 400, codes: list[str] = CODES[:4], n_events: int = 900) -> pl.DataFrame:
    """Events at all hours from 300 days before the index dates on; encounters go on across them."""
    generator = np.random.default_rng(seed)
    subject = generator.choice(SUBJECTS, n_events)
    hours = generator.integers(0, n_days * 24, n_events)
    return pl.DataFrame(
        {
            "subject_id": subject,
            "time": [INDEX - timedelta(days=300) + timedelta(hours=int(hour)) for hour in hours],
            "code": generator.choice(codes, n_events),
            "numeric_value": generator.normal(size=n_events).astype(np.float32),
            "text_value": [None] * n_events,
            "visit_id": [str(encounter) if encounter else None for encounter in generator.integers(0, 9, n_events)],
        },
        schema=EVENT_SCHEMA,
    )


def births() -> pl.DataFrame:
    return pl.DataFrame(
        {"subject_id": list(SUBJECTS), "time": [datetime(1960, 2, 29)] * 30, "code": ["MEDS_BIRTH"] * 30},
        schema_overrides={"time": pl.Datetime("us")},
    )


def population(seed: int = 0) -> pl.DataFrame:
    return pl.concat([births(), random_events(seed)], how="diagonal").select(*EVENT_SCHEMA)


def split_at_cutoff(events: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    dated = events.join(CUTOFFS, on="subject_id")
    is_after = pl.col("time") > pl.col("cutoff")
    return dated.filter(~is_after).drop("cutoff"), dated.filter(is_after).drop("cutoff")


def perturb_the_future(events: pl.DataFrame, seed: int) -> pl.DataFrame:
    """Delete a part of what follows the cutoffs, change another, and add births, deaths and new codes."""
    generator = np.random.default_rng(seed)
    past, future = split_at_cutoff(events)
    kept = future.filter(pl.Series(generator.random(future.height) < generator.random()))
    changed = kept.with_columns(
        code=pl.Series(generator.choice(CODES, kept.height), dtype=pl.String),
        numeric_value=pl.Series(generator.normal(scale=100, size=kept.height), dtype=pl.Float32),
        visit_id=pl.Series(generator.integers(0, 9, kept.height)).cast(pl.String),
        time=pl.col("time") + pl.duration(minutes=int(generator.integers(0, 10_000))),
    )
    _, added = split_at_cutoff(random_events(seed + 1, codes=CODES, n_events=int(generator.integers(1, 400))))
    everything = pl.concat([past, changed, added])
    return everything.sample(fraction=1, shuffle=True, seed=seed)


def vocabulary_of(events: pl.DataFrame) -> Vocabulary:
    config = VocabularyConfig(min_subjects=1, min_values=10, n_value_bins=3)
    shard, training = histories_of(events), CUTOFFS.with_columns(split=pl.lit("train"))
    edges = value_edges([count_values(shard, training, NEVER_TOKENS)], config)
    return choose_tokens(count_names(shard, training, edges, NEVER_TOKENS, {}), edges, {}, config)


def tokens_of(events: pl.DataFrame, unit, vocabulary: Vocabulary | None = None) -> dict[str, list[float]]:
    tokens = visit_tokens(histories_of(events), CUTOFFS, vocabulary or vocabulary_of(events), VisitConfig(unit=unit))
    return {name: array.tolist() for name, array in vars(tokens).items()}


@pytest.mark.parametrize("unit", ["day", "hour", "encounter"])
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32 - 2))
def test_events_after_index_never_reach_tokens(unit, seed):
    events = population()
    changed = perturb_the_future(events, seed)
    assert tokens_of(changed, unit) == tokens_of(events, unit)
    assert vocabulary_of(changed) == vocabulary_of(events)


@pytest.mark.parametrize("unit", ["day", "hour", "encounter"])
def test_without_the_cutoff_filter_the_same_check_fails(unit, monkeypatch):
    """The check above can fail: with the guard out, the future shows in the tokens."""

    def everything(events: Histories, cutoffs: pl.DataFrame, _delay_hours: object) -> np.ndarray:
        return np.isin(events.subject_id, cutoffs["subject_id"])

    events, changed = population(), perturb_the_future(population(), 1)
    vocabulary = vocabulary_of(events)
    monkeypatch.setattr(visits_module, "is_known", everything)
    assert tokens_of(events, unit, vocabulary) != tokens_of(changed, unit, vocabulary)


def test_events_up_to_the_index_do_reach_tokens():
    events = population()
    past, future = split_at_cutoff(events)
    fewer = pl.concat([past.filter(pl.col("code") != "A"), future])
    vocabulary = vocabulary_of(events)
    assert tokens_of(events, "day", vocabulary) != tokens_of(fewer, "day", vocabulary)


def stored(events: pl.DataFrame, folder, vocabulary: Vocabulary) -> TokenStore:
    (folder / "data").mkdir(parents=True)
    events.sort("subject_id", "time").write_parquet(folder / "data" / "0.parquet")
    return build_store(open_dataset(folder), CUTOFFS, vocabulary, VisitConfig(), folder / "cache")


@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32 - 2))
def test_events_after_index_never_reach_the_store_or_the_features(seed, tmp_path_factory):
    events, vocabulary = population(), vocabulary_of(population())
    base = stored(events, tmp_path_factory.mktemp("base"), vocabulary)
    changed = stored(perturb_the_future(events, seed), tmp_path_factory.mktemp("changed"), vocabulary)
    for name in ("offsets", "token", "age_years", "visit", "gap_days", "end_age_years", "end_gap_days"):
        assert np.array_equal(getattr(base, name), getattr(changed, name)), name
    assert count_features(base, vocabulary).equals(count_features(changed, vocabulary))


def test_index_event_is_known_and_the_outcome_is_not(make_dataset):
    """Through the cohort: the index code is the last thing that is known, the outcome never is."""
    rows = [
        row
        for subject in SUBJECTS
        for row in [
            (subject, "1960-01-01", "MEDS_BIRTH"),
            (subject, "2020-01-01 10:00", "INDEX"),
            (subject, "2020-01-01 10:01", "OUTCOME"),
            (subject, "2021-01-01", "OUTCOME"),
        ]
    ]
    dataset = make_dataset(rows)
    config = CohortConfig.model_validate(
        {
            "index": {"rule": "first_code", "codes": ["INDEX"]},
            "outcome": {"codes": ["OUTCOME"]},
            "horizon_days": 9,
            "min_followed_share": 0,
        }
    )
    cohort = build_cohort(dataset, config, SplitConfig(train=0.4, validation=0.3))
    assert cohort.subjects["is_event"].all()
    known = known_events(dataset.scan(), cohort.cutoffs).collect()
    assert sorted(known["code"].unique()) == ["INDEX", "MEDS_BIRTH"]
