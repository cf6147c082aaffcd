from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import polars as pl
import pytest

from ehrtrack.errors import DataError
from ehrtrack.evaluation.benchmark import (
    SCHEMA,
    RunRow,
    benchmark_table,
    best_by_validation,
    group_by_cohort,
    to_markdown,
    verdict_of,
)
from ehrtrack.evaluation.paired import differences
from ehrtrack.privacy import Privacy
from ehrtrack.runlog import named
from ehrtrack.survival.bootstrap import paired_difference
from ehrtrack.survival.resampling import Interval

COX = RunRow(
    run_id="c" * 32,
    kind="baseline",
    model="cox",
    cohort_fingerprint="aaaa",
    n_parameters=41,
    n_trainable=41,
    seconds=0.84,
    metrics={
        "kept/c_index": 0.61,
        "test/c_index": 0.6321,
        "test/c_index_lower": 0.59,
        "test/c_index_upper": 0.67,
        "test/ibs": 0.1234,
    },
)
LORA = RunRow(
    run_id="b" * 32,
    kind="finetune",
    model="behrt",
    cohort_fingerprint="aaaa",
    strategy="lora",
    size="small",
    n_parameters=512_345,
    n_trainable=24_576,
    checkpoint_mb=0.31,
    seconds=1234.5,
    metrics={
        "kept/c_index": 0.71,
        "test/c_index": 0.7,
        "test/c_index_lower": 0.66,
        "test/c_index_upper": 0.74,
        "test/ibs": 0.119,
    },
)


def scored(row: RunRow, metrics: dict[str, float], **facts: Any) -> RunRow:
    """The same run with other scores, and other facts."""
    return dataclasses.replace(row, metrics={**row.metrics, **metrics}, **facts)


FROZEN = scored(LORA, {"kept/c_index": 0.69}, run_id="a" * 32, strategy="frozen", n_trainable=1_300)


def predictions(seed: int, noise: float) -> pl.DataFrame:
    rng = np.random.default_rng(0)
    risk = rng.normal(size=300)
    days = rng.exponential(np.exp(-risk))
    return pl.DataFrame(
        {
            "subject_id": np.arange(300),
            "follow_up_days": days,
            "is_event": rng.random(300) < 0.7,
            "risk": risk + np.random.default_rng(seed).normal(scale=noise, size=300),
        }
    )


def test_best_is_chosen_by_validation_and_not_by_test() -> None:
    lucky = scored(LORA, {"kept/c_index": 0.5, "test/c_index": 0.99}, run_id="d" * 32)
    assert best_by_validation([COX, lucky, LORA, FROZEN]) is LORA


def test_of_equal_runs_the_one_that_trains_less_is_best() -> None:
    assert best_by_validation([LORA, scored(FROZEN, {"kept/c_index": 0.71})]).strategy == "frozen"


@pytest.mark.parametrize("score", [None, float("nan")])
def test_a_run_without_a_validation_score_is_never_best(score: float | None) -> None:
    metrics = {name: value for name, value in LORA.metrics.items() if name != "kept/c_index"}
    unscored = dataclasses.replace(LORA, metrics=metrics if score is None else metrics | {"kept/c_index": score})
    assert best_by_validation([unscored, COX]) is COX
    with pytest.raises(DataError, match="none of 1 runs has a validation C-index"):
        best_by_validation([unscored])


def test_runs_are_grouped_by_cohort() -> None:
    other = dataclasses.replace(COX, cohort_fingerprint="bbbb")
    assert group_by_cohort([COX, other, LORA]) == {"aaaa": [COX, LORA], "bbbb": [other]}


@pytest.mark.parametrize("function", [benchmark_table, best_by_validation, lambda rows: differences(rows, {})])
def test_runs_of_different_cohorts_never_share_a_table(function: object) -> None:
    other = dataclasses.replace(COX, cohort_fingerprint="bbbb")
    with pytest.raises(DataError, match=r"runs of 2 cohorts cannot share a table: aaaa \(1 runs\), bbbb \(1 runs\)"):
        function([LORA, other])  # type: ignore[operator]


def test_no_runs_are_refused() -> None:
    with pytest.raises(DataError, match="no runs to compare"):
        benchmark_table([])


def test_table_has_a_line_a_run_best_validation_first() -> None:
    table = benchmark_table([COX, FROZEN, LORA])
    assert table.columns == list(SCHEMA)
    assert table["run_id"].to_list() == [LORA.run_id, FROZEN.run_id, COX.run_id]
    assert table["n_trainable"].to_list() == [24_576, 1_300, 41]
    assert table["difference"].to_list() == [None] * 3


def test_differences_are_paired_and_against_the_best_reference_by_validation() -> None:
    worse_cox = scored(COX, {"kept/c_index": 0.55}, run_id="e" * 32)
    mine, theirs = predictions(1, noise=0.1), predictions(2, noise=2.0)
    frames = {LORA.run_id: mine, COX.run_id: theirs, worse_cox.run_id: predictions(3, noise=9.0)}
    found = differences([worse_cox, LORA, COX, FROZEN], frames)
    assert found.keys() == {LORA.run_id, worse_cox.run_id}
    pairs = mine.with_columns(other=theirs["risk"]).sort("follow_up_days", "is_event", "risk", "other")
    assert found[LORA.run_id] == paired_difference(
        pairs["risk"], pairs["other"], pairs["follow_up_days"], pairs["is_event"]
    )
    assert found[LORA.run_id].lower > 0


def test_differences_match_subjects_by_id_and_not_by_row() -> None:
    mine, theirs = predictions(1, noise=0.1), predictions(2, noise=2.0)
    shuffled = theirs.sample(fraction=1.0, shuffle=True, seed=0)
    rows = [LORA, COX]
    assert differences(rows, {LORA.run_id: mine, COX.run_id: shuffled}) == differences(
        rows, {LORA.run_id: mine, COX.run_id: theirs}
    )


def test_differences_do_not_depend_on_the_key_of_the_hashes() -> None:
    raw = {LORA.run_id: predictions(1, noise=0.1), COX.run_id: predictions(2, noise=2.0)}
    of_raw = differences([LORA, COX], raw)
    for key in (b"0123456789abcdef", b"fedcba9876543210"):
        frames = {run_id: Privacy(key).table(frame) for run_id, frame in raw.items()}
        assert frames[COX.run_id]["subject_id"].dtype == pl.String
        assert differences([LORA, COX], frames) == of_raw
        ranked = {run_id: Privacy(key, hides_days=True).table(frame) for run_id, frame in raw.items()}
        assert "follow_up_days" not in ranked[COX.run_id].columns
        assert differences([LORA, COX], ranked) == of_raw


def test_runs_that_name_subjects_under_different_keys_are_refused_by_their_keys() -> None:
    frames = {LORA.run_id: predictions(1, 0.1), COX.run_id: predictions(2, 0.1)}
    rows = [dataclasses.replace(LORA, subject_key="1111"), dataclasses.replace(COX, subject_key="2222")]
    with pytest.raises(
        DataError, match=f"2 different keys .key 1111: {LORA.run_id}; key 2222: {COX.run_id}."
    ) as raised:
        differences(rows, frames)
    assert "Set the same EHRTRACK_SUBJECT_SECRET" in str(raised.value)


def several(seed: int, noise: float) -> pl.DataFrame:
    """Five predictions of each of 60 subjects, whose risks are alike: rows of 300 that say as much as 60."""
    rng = np.random.default_rng(0)
    risk = np.repeat(rng.normal(size=60), 5)
    days = np.repeat(rng.exponential(np.exp(-risk[::5])), 5)
    return pl.DataFrame(
        {
            "subject_id": np.repeat([f"{number:032x}" for number in rng.permutation(60)], 5),
            "prediction_number": np.tile(np.arange(1, 6), 60),
            "follow_up_days": days,
            "is_event": np.repeat(rng.random(60) < 0.7, 5),
            "risk": risk + np.repeat(np.random.default_rng(seed).normal(scale=noise, size=60), 5),
        }
    )


def test_predictions_at_several_times_are_paired_by_their_numbers_and_drawn_by_subject() -> None:
    tables = {COX.run_id: several(1, 2.0), LORA.run_id: several(2, 0.1)}
    found = differences([COX, LORA], tables, n_resamples=200)[LORA.run_id]
    shuffled = tables | {LORA.run_id: several(2, 0.1).sample(fraction=1, shuffle=True, seed=3)}
    assert differences([COX, LORA], shuffled, n_resamples=200)[LORA.run_id] == found
    once = {run_id: table.filter(prediction_number=1) for run_id, table in tables.items()}
    of_subjects = differences([COX, LORA], once, n_resamples=200)[LORA.run_id]
    assert found.upper - found.lower == pytest.approx(of_subjects.upper - of_subjects.lower, rel=0.1)
    columns = [tables[LORA.run_id]["risk"], tables[COX.run_id]["risk"], *several(1, 0)["follow_up_days", "is_event"]]
    of_rows = paired_difference(*columns, n_resamples=200)
    assert of_rows.upper - of_rows.lower < 0.6 * (found.upper - found.lower)


def test_other_prediction_times_of_the_same_subjects_are_refused() -> None:
    mine, theirs = several(1, 2.0), several(2, 0.1)
    with pytest.raises(DataError, match=r"300 and 240 prediction times, 60 of them in one run alone"):
        differences([COX, LORA], {COX.run_id: theirs.filter(pl.col("prediction_number") < 5), LORA.run_id: mine})
    with pytest.raises(DataError, match="one has several predictions a subject"):
        differences([COX, LORA], {COX.run_id: theirs.drop("prediction_number"), LORA.run_id: mine})


def test_without_a_reference_there_are_no_differences() -> None:
    assert differences([LORA, FROZEN], {LORA.run_id: predictions(1, 0.1)}) == {}
    assert differences([LORA, COX], {LORA.run_id: predictions(1, 0.1)}) == {}


def test_other_subjects_are_refused() -> None:
    frames = {LORA.run_id: predictions(1, 0.1), COX.run_id: predictions(2, 0.1).head(299)}
    with pytest.raises(DataError, match="predict for 300 and 299 subjects, 1 of them in one run alone"):
        differences([LORA, COX], frames)


def test_other_outcomes_are_refused() -> None:
    changed = predictions(2, 0.1).with_columns(is_event=~pl.col("is_event"))
    with pytest.raises(DataError, match="disagree on the outcome"):
        differences([LORA, COX], {LORA.run_id: predictions(1, 0.1), COX.run_id: changed})


@pytest.mark.parametrize(
    ("lower", "upper", "verdict"),
    [(0.01, 0.05, "better"), (-0.05, -0.01, "worse"), (-0.01, 0.05, "no difference"), (0.0, 0.05, "no difference")],
)
def test_a_claim_needs_an_interval_that_excludes_zero(lower: float, upper: float, verdict: str) -> None:
    assert verdict_of(Interval((lower + upper) / 2, lower, upper)) == verdict


def test_markdown_is_aligned_and_complete() -> None:
    table = benchmark_table([COX, LORA], {LORA.run_id: Interval(0.0679, 0.0123, 0.1)})
    assert to_markdown(table) == (
        "| model | strategy | size  | parameters | trainable |   MB | seconds | val C-index "
        "| test C-index (95 % interval) | test IBS | difference to cox (95 % interval) | verdict | run      |\n"
        "| ----- | -------- | ----- | ---------: | --------: | ---: | ------: | ----------: "
        "| ---------------------------- | -------: | --------------------------------- | ------- | -------- |\n"
        "| behrt | lora     | small |    512,345 |    24,576 | 0.31 | 1,234.5 |       0.710 "
        "| 0.700 [0.660, 0.740]         |   0.1190 | +0.068 [+0.012, +0.100]           | better  | bbbbbbbb |\n"
        "| cox   |          |       |         41 |        41 |      |     0.8 |       0.610 "
        "| 0.632 [0.590, 0.670]         |   0.1234 |                                   |         | cccccccc |\n"
    )


def with_oracle(row: RunRow, share: float) -> RunRow:
    attained = {"attainable": share, "attainable_lower": share - 0.1, "attainable_upper": share + 0.1}
    oracle = {"oracle_c_index": 0.8, "oracle_c_index_lower": 0.78, "oracle_c_index_upper": 0.82}
    return scored(row, named("test", attained | oracle))


def test_the_oracle_has_one_line_of_its_own_after_the_runs() -> None:
    table = benchmark_table([with_oracle(COX, 0.44), with_oracle(LORA, 0.667)])
    assert table["model"].to_list() == ["behrt", "cox", "oracle"]
    assert table["attainable"].to_list() == [0.667, 0.44, 1.0]
    oracle = table.row(2, named=True)
    assert (oracle["test_c_index"], oracle["test_lower"], oracle["test_upper"]) == (0.8, 0.78, 0.82)
    assert (oracle["val_c_index"], oracle["n_parameters"], oracle["verdict"]) == (None, None, None)
    lines = to_markdown(table).splitlines()
    assert "| % of attainable (95 % interval) |" in lines[0]
    assert "| 67% [57%, 77%]" in lines[2]
    assert "0.800 [0.780, 0.820]" in lines[4]
    assert "| 100%" in lines[4]


def test_records_without_a_known_truth_have_no_oracle() -> None:
    table = benchmark_table([COX, LORA])
    assert "oracle" not in table["model"]
    assert "attainable" not in to_markdown(table)


def test_columns_that_nobody_fills_are_left_out_of_markdown() -> None:
    text = to_markdown(benchmark_table([scored(COX, {"test/ibs": float("nan")})]))
    assert "IBS" not in text
    assert "difference" not in text
    assert "strategy" not in text


def test_label_names_model_strategy_and_size() -> None:
    assert LORA.label == "behrt · lora · small"
    assert COX.label == "cox"
