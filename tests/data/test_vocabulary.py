"""Tokens and value bins come from training events, in a fixed order, and survive a round trip."""

from __future__ import annotations

import json

import numpy as np
import polars as pl
import pytest

from ehrtrack.data import value_edges as value_edges_module
from ehrtrack.data.fitting import (
    add_counts,
    choose_tokens,
    count_names,
    read_groups,
    share_known,
)
from ehrtrack.data.histories import Histories, histories_of
from ehrtrack.data.settings import VocabularyConfig
from ehrtrack.data.value_edges import count_values, value_edges
from ehrtrack.data.vocabulary import MASK, NEVER_TOKENS, PAD, SPECIAL_TOKENS, UNK, Vocabulary, slot_names, slots
from ehrtrack.errors import CheckpointError, ConfigError, DataError

DAY = "2020-01-01"


def all_training(*shards: Histories) -> pl.DataFrame:
    """Cutoffs after everything, of subjects that are all in the training split."""
    subjects = sorted({int(subject) for events in shards for subject in events.subjects})
    return pl.DataFrame({"subject_id": subjects}).with_columns(cutoff=pl.datetime(2100, 1, 1), split=pl.lit("train"))


def fit_shards(*shards: Histories, named: dict[str, str] | None = None, **config) -> Vocabulary:
    settings = VocabularyConfig(**{"min_subjects": 1, "min_values": 1, **config})
    exclude, cutoffs = NEVER_TOKENS + settings.exclude, all_training(*shards)
    edges, groups = {}, named or {}
    if settings.n_value_bins > 1:
        edges = value_edges((count_values(events, cutoffs, exclude) for events in shards), settings, groups)
    counts = add_counts(count_names(events, cutoffs, edges, exclude, groups) for events in shards)
    return choose_tokens(counts, edges, groups, settings)


def fit(frame, rows, **config) -> Vocabulary:
    return fit_shards(histories_of(frame(rows)), **config)


def values(code: str, numbers) -> list:
    return [(subject, DAY, code, float(number), None) for subject, number in enumerate(numbers)]


def token_names(frame, rows, vocabulary: Vocabulary) -> list[str]:
    """Tokens of the events that are not excluded, sorted by subject and code."""
    events = histories_of(frame(rows).sort("subject_id", "time", "code", maintain_order=True))
    slot, is_kept = slots(events, vocabulary.value_edges, vocabulary.exclude)
    _, names = slot_names(events.codes, vocabulary.value_edges, vocabulary.groups)
    return [vocabulary.tokens[vocabulary.known.get(names[place], UNK)] for place in slot[is_kept]]


def test_tokens_follow_the_specials_by_count_then_name(frame):
    rows = [(1, DAY, "B"), (1, DAY, "B"), (2, DAY, "C"), (3, DAY, "A"), (1, None, "GENDER//F")]
    vocabulary = fit(frame, rows)
    assert vocabulary.tokens == (*SPECIAL_TOKENS, "B", "A", "C", "GENDER//F")
    assert vocabulary.counts == (0, 0, 0, 0, 2, 1, 1, 1)
    assert len(vocabulary) == 8
    assert vocabulary.index["A"] == 5
    assert len({PAD, UNK, MASK}) == 3


def test_birth_death_and_observation_periods_never_become_tokens(frame):
    codes = ["MEDS_BIRTH", "MEDS_DEATH", "OBSERVATION_PERIOD//END", "MEDS_BIRTHDAY_CARD"]
    assert fit(frame, [(1, DAY, code) for code in codes]).tokens[4:] == ("MEDS_BIRTHDAY_CARD",)


def test_token_needs_enough_subjects_not_enough_events(frame):
    rows = [(1, DAY, "A")] * 10 + [(1, DAY, "B"), (2, DAY, "B")]
    vocabulary = fit(frame, rows, min_subjects=2)
    assert vocabulary.tokens[4:] == ("B",)
    assert token_names(frame, [(9, DAY, "A"), (9, DAY, "B")], vocabulary) == ["[UNK]", "B"]


def test_excluded_codes_leave_no_trace_not_even_unk(frame):
    rows = [(1, DAY, "LAB//1"), (1, DAY, "BILL//2"), (1, DAY, "X")]
    vocabulary = fit(frame, rows, exclude=("BILL",))
    assert vocabulary.tokens[4:] == ("LAB//1", "X")
    assert token_names(frame, [*rows, (1, DAY, "BILLS"), (1, DAY, "Y")], vocabulary) == [
        "LAB//1",
        "X",
        "[UNK]",
    ]


def test_edges_are_the_quantiles_of_the_training_values(frame):
    numbers = np.random.default_rng(0).normal(size=500).astype(np.float32)
    edges = fit(frame, values("HR", numbers), n_value_bins=5).value_edges["HR"]
    assert edges == pytest.approx(np.quantile(numbers.astype(float), [0.2, 0.4, 0.6, 0.8]), abs=1e-12)


def test_a_value_at_an_edge_belongs_to_the_bin_above_it(frame):
    vocabulary = fit(frame, values("HR", [10, 20, 30, 40, 50]), n_value_bins=2)
    assert vocabulary.value_edges == {"HR": (30.0,)}
    new = values("HR", [-1e9, 29.999, 30, 1e9])
    assert token_names(frame, new, vocabulary) == ["HR//Q1", "HR//Q1", "HR//Q2", "HR//Q2"]


@pytest.mark.parametrize(
    ("numbers", "edges"),
    [
        ([0] * 90 + [1, 2, 3, 4, 5, 6, 7, 8, 9, 10], None),  # all quantiles are the lowest value
        ([0] * 50 + [1] * 50, (1.0,)),
        ([7] * 100, None),
    ],
)
def test_equal_edges_are_merged_and_no_bin_is_empty(frame, numbers, edges):
    vocabulary = fit(frame, values("LAB", numbers), n_value_bins=5)
    assert vocabulary.value_edges.get("LAB") == edges
    n_bins = 1 if edges is None else len(edges) + 1
    assert len(vocabulary) == 4 + n_bins


def test_edges_of_values_in_two_shards_are_those_of_all_of_them(frame):
    numbers = np.random.default_rng(1).normal(size=501).astype(np.float32)
    rows = values("HR", numbers)
    shards = [histories_of(frame(rows[part::2])) for part in (0, 1)]
    assert fit_shards(*shards) == fit_shards(*shards[::-1]) == fit(frame, rows)
    assert fit(frame, rows).value_edges["HR"] == pytest.approx(np.quantile(numbers.astype(float), [0.2, 0.4, 0.6, 0.8]))


@pytest.mark.parametrize("n_shards", [1, 2, 5])
def test_too_many_distinct_values_are_rounded_whatever_the_shards(frame, monkeypatch, n_shards):
    monkeypatch.setattr(value_edges_module, "MOST_DISTINCT_VALUES", 100)
    numbers = np.random.default_rng(2).normal(size=400, scale=50).astype(np.float32)
    rows = values("HR", numbers) + values("FEW", [1.1, 2.7, 3.3] * 40)
    shards = [histories_of(frame(rows[part::n_shards])) for part in range(n_shards)]
    edges = fit_shards(*shards, n_value_bins=2).value_edges
    assert edges["FEW"] == pytest.approx((2.7,), rel=1e-7)
    exact = float(np.median(numbers.astype(float)))
    assert edges["HR"] == pytest.approx((exact,), abs=50 / 1024)
    assert edges["HR"] != (exact,)
    assert edges == fit(frame, rows, n_value_bins=2).value_edges


def test_negative_values_and_infinities_lie_in_their_order(frame):
    vocabulary = fit(frame, values("BASE", [-5, -1, 0, 2]), n_value_bins=2)
    assert vocabulary.value_edges == {"BASE": (-0.5,)}
    new = values("BASE", [-np.inf, -0.6, -0.5, np.inf])
    assert token_names(frame, new, vocabulary) == ["BASE//Q1", "BASE//Q1", "BASE//Q2", "BASE//Q2"]


def test_subjects_of_a_name_that_two_codes_share_are_counted_once(frame):
    rows = [*values("LAB", [1, 2, 3, 4]), *values("X", [1, 1, 1]), (0, DAY, "LAB//Q1")]
    assert "LAB//Q1" in fit(frame, rows, n_value_bins=2, min_subjects=2).tokens  # subjects 0 and 1
    assert "LAB//Q1" not in fit(frame, rows, n_value_bins=2, min_subjects=3).tokens


def test_code_with_too_few_values_keeps_its_plain_token(frame):
    rows = values("LAB", range(9))
    assert fit(frame, rows, min_values=10).tokens[4:] == ("LAB",)
    assert fit(frame, rows, min_values=9, n_value_bins=2).tokens[4:] == ("LAB//Q2", "LAB//Q1")


def test_binned_code_without_a_value_is_its_plain_token(frame):
    rows = [*values("LAB", [1, 2]), (5, DAY, "LAB"), (6, DAY, "LAB", float("nan"), None)]
    vocabulary = fit(frame, rows, n_value_bins=2)
    assert vocabulary.value_edges == {"LAB": (1.5,)}
    assert vocabulary.tokens[4:] == ("LAB", "LAB//Q1", "LAB//Q2")


def test_values_of_other_codes_do_not_mix(frame):
    rows = values("LOW", [1, 2, 3, 4]) + values("HIGH", [100, 200, 300, 400])
    vocabulary = fit(frame, rows, n_value_bins=2)
    assert vocabulary.value_edges == {"HIGH": (250.0,), "LOW": (2.5,)}
    both = [(1, DAY, "HIGH", 240.0, None), (1, DAY, "LOW", 240.0, None)]
    assert token_names(frame, both, vocabulary) == ["HIGH//Q1", "LOW//Q2"]


def test_code_spelt_like_a_special_token_does_not_become_it(frame):
    vocabulary = fit(frame, [(1, DAY, "[MASK]"), (1, DAY, "A")])
    assert vocabulary.tokens == (*SPECIAL_TOKENS, "A")
    assert token_names(frame, [(1, DAY, "[MASK]")], vocabulary) == ["[UNK]"]


def test_round_trip_keeps_everything(frame, tmp_path):
    vocabulary = fit(frame, [*values("HR", np.linspace(0, 1, 7)), (1, DAY, "Ärzte//ü")], exclude=("Z",))
    vocabulary.save(tmp_path / "vocabulary.json")
    loaded = Vocabulary.load(tmp_path / "vocabulary.json")
    assert loaded == vocabulary
    assert loaded.fingerprint == vocabulary.fingerprint


def test_fingerprint_follows_tokens_and_edges(frame):
    base = fit(frame, values("HR", [1, 2, 3]))
    assert fit(frame, values("HR", [1, 2, 4])).fingerprint != base.fingerprint
    assert fit(frame, values("HR", [1, 2, 3]), exclude=("Z",)).fingerprint != base.fingerprint
    assert fit(frame, values("HR", [1, 2, 3])[::-1]).fingerprint == base.fingerprint


def test_coverage_tells_known_from_unknown_for_each_split(frame):
    vocabulary = fit(frame, [(1, DAY, "A"), (1, DAY, "B")], exclude=("SKIP",))
    rows = [(1, DAY, "A"), (1, DAY, "B"), (2, DAY, "A"), (2, DAY, "N1"), (2, DAY, "N2"), (2, DAY, "N2")]
    rows += [(2, DAY, "SKIP"), (3, DAY, "A")]
    events = histories_of(frame(rows))
    cutoffs = all_training(events).filter(pl.col("subject_id") < 3)
    cutoffs = cutoffs.with_columns(split=pl.Series(["train", "test"]))
    counts = add_counts([count_names(events, cutoffs, vocabulary.value_edges, vocabulary.exclude, {})])
    assert share_known(counts, vocabulary).rows() == [
        ("train", 2, 1.0, 0.0, 0),
        ("test", 4, 0.25, 0.75, 2),
    ]


def test_training_events_with_no_common_code_are_refused(frame):
    with pytest.raises(DataError, match="min_subjects = 5"):
        fit(frame, [(1, DAY, "A")], min_subjects=5)


def test_pattern_that_cannot_be_matched_is_refused():
    with pytest.raises(ConfigError, match="look-around"):
        VocabularyConfig(exclude=("(?=A)",))


@pytest.mark.parametrize("text", ["{", "[]", '{"tokens": []}', Vocabulary(("A",), {}).to_json()])
def test_text_that_is_no_vocabulary_is_refused(text):
    with pytest.raises(CheckpointError, match="vocabulary"):
        Vocabulary.from_json(text)


def test_vocabulary_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="cannot read the vocabulary"):
        Vocabulary.load(tmp_path / "vocabulary.json")


def test_codes_of_a_group_become_its_token_and_count_a_subject_once(frame):
    rows = [(1, DAY, "I10"), (1, DAY, "401.9"), (2, DAY, "401.9"), (3, DAY, "J45")]
    vocabulary = fit(frame, rows, named={"401.9": "HYPERTENSION", "I10": "HYPERTENSION"}, min_subjects=2)
    assert vocabulary.tokens == (*SPECIAL_TOKENS, "HYPERTENSION")
    assert vocabulary.counts[-1] == 3
    assert token_names(frame, rows, vocabulary) == ["HYPERTENSION"] * 3 + ["[UNK]"]
    with pytest.raises(DataError, match="min_subjects = 3"):
        fit(frame, rows, named={"401.9": "HYPERTENSION", "I10": "HYPERTENSION"}, min_subjects=3)


def test_values_of_a_group_are_cut_together(frame):
    rows = values("HR", [60, 70, 80, 90]) + values("PULSE", [100, 110, 120, 130])
    vocabulary = fit(frame, rows, named={"HR": "HEART_RATE", "PULSE": "HEART_RATE"}, n_value_bins=2)
    assert vocabulary.value_edges == {"HEART_RATE": (95.0,), "HR": (95.0,), "PULSE": (95.0,)}
    assert dict(zip(vocabulary.tokens, vocabulary.counts, strict=True)) == {
        **dict.fromkeys(SPECIAL_TOKENS, 0),
        "HEART_RATE//Q1": 4,
        "HEART_RATE//Q2": 4,
    }


def test_a_vocabulary_knows_the_values_of_codes_that_another_dataset_has_for_its_groups(frame):
    """Fitted to one hospital, with a table that also names the other's codes."""
    here, there = values("LAB//glucose", [80, 90, 110, 120]), values("CHEM//GLU", [85, 115]) + values("GLUCOSE", [115])
    named = {"LAB//glucose": "GLUCOSE", "CHEM//GLU": "GLUCOSE"}
    vocabulary = Vocabulary.from_json(fit(frame, here, named=named, n_value_bins=2).to_json())
    assert token_names(frame, there, vocabulary) == ["GLUCOSE//Q1", "GLUCOSE//Q2", "GLUCOSE//Q2"]


def test_a_group_has_enough_values_where_none_of_its_codes_has(frame):
    rows = values("A", [1, 2]) + values("B", [3, 4])
    assert fit(frame, rows, min_values=4, n_value_bins=2).value_edges == {}
    together = fit(frame, rows, named={"A": "G", "B": "G"}, min_values=4, n_value_bins=2)
    assert together.value_edges["A"] == together.value_edges["B"] == (2.5,)


def test_a_vocabulary_in_which_codes_of_a_group_have_edges_of_their_own_is_read_as_it_was(frame):
    old = Vocabulary((*SPECIAL_TOKENS, "G//Q1", "G//Q2"), {"A": (10.0,)}, groups={"A": "G", "B": "G"})
    old = Vocabulary.from_json(old.to_json())
    assert token_names(frame, values("A", [5, 20]) + values("B", [20]), old) == ["G//Q1", "[UNK]", "G//Q2"]


@pytest.mark.parametrize(("factor", "is_told"), [(1.0, False), (18.0, True)])
def test_codes_of_a_group_whose_values_hardly_meet_are_told(frame, capsys, factor, is_told):
    mmol = np.linspace(4, 12, 20)
    rows = values("MMOL_L", mmol) + values("OTHER", mmol * factor)
    fit(frame, rows, named={"OTHER": "GLUCOSE", "MMOL_L": "GLUCOSE"}, n_value_bins=2)
    assert ("in different units" in capsys.readouterr().out) == is_told


def test_a_bin_can_be_in_a_group_of_its_own(frame):
    rows = values("LAB", [1, 2, 3, 4])
    vocabulary = fit(frame, rows, named={"LAB//Q2": "HIGH"}, n_value_bins=2)
    assert set(vocabulary.tokens[len(SPECIAL_TOKENS) :]) == {"LAB//Q1", "HIGH"}


def test_groups_are_part_of_the_vocabulary_and_come_back(frame):
    rows = [(1, DAY, "A"), (2, DAY, "B")]
    plain, grouped = fit(frame, rows, min_subjects=1), fit(frame, rows, named={"B": "A"}, min_subjects=1)
    assert plain.fingerprint != grouped.fingerprint
    assert Vocabulary.from_json(grouped.to_json()) == grouped
    of_before = {name: value for name, value in json.loads(plain.to_json()).items() if name != "groups"}
    assert Vocabulary.from_json(json.dumps(of_before)).fingerprint == plain.fingerprint


def test_a_table_of_groups_is_read(tmp_path):
    (tmp_path / "groups.csv").write_text("code,group\n401.9,I10\nI10,I10\n250,E11\n250,E11\n")
    assert read_groups(tmp_path / "groups.csv") == {"401.9": "I10", "250": "E11"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("code,class\nA,B\n", "lacks group .it has code, class."),
        ("code,group\nA,\n", "rows without a code or a group"),
        ("code,group\nA,B\nA,C\n", "puts 'A' in B and in C"),
        (None, "does not exist"),
    ],
)
def test_a_table_of_groups_that_cannot_be_used_says_why(tmp_path, text, message):
    file = tmp_path / "groups.csv"
    if text is not None:
        file.write_text(text)
    with pytest.raises(DataError, match=message):
        read_groups(file)


def test_bins_of_grouped_codes_are_levels_of_their_group() -> None:
    edges = {"LAB//A": (1.0, 2.0), "LAB//B": (10.0,), "LAB//C": (5.0,)}
    tokens = (*SPECIAL_TOKENS, "LAB//B//Q3", "LAB//B//Q1", "LAB//B", "LAB//C//Q2", "odd")
    groups = {"LAB//A": "LAB//B", "LAB//B": "LAB//B", "LAB//C//Q1": "odd"}
    vocabulary = Vocabulary(tokens, edges, groups=groups)
    assert vocabulary.bins.names == ("LAB//B", "LAB//C")
    assert vocabulary.bins.code[4:].tolist() == [0, 0, -1, 1, -1]
    assert vocabulary.bins.n_bins.tolist() == [3, 2]  # A has three, and B two
    np.testing.assert_allclose(vocabulary.bins.level[4:], [1, -1, 0, 1, 0])
    assert vocabulary.code_of_token[4:] == ("LAB//B", "LAB//B", "LAB//B", "LAB//C", "odd")
