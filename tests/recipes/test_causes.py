"""Tables of causes that a comparison shows below its scores of any cause."""

from __future__ import annotations

from ehrtrack.evaluation.benchmark import RunRow
from ehrtrack.evaluation.causes import cause_table, causes_to_markdown

COX = RunRow("c" * 32, "baseline", "cox", "aaaa", metrics={"test/c_index": 0.6})
BEHRT = RunRow(
    run_id="b" * 32,
    kind="finetune",
    model="behrt",
    cohort_fingerprint="aaaa",
    strategy="scratch",
    size="tiny",
    metrics={
        "test/c_index": 0.7,
        "test/c_index_lower": 0.65,
        "test/c_index_upper": 0.75,
        "test/c_index_cause_2": 0.5,
        "test/c_index_cause_1": 0.8,
        "test/c_index_cause_1_lower": 0.7,
        "test/c_index_cause_1_upper": 0.9,
    },
)


def test_any_cause_comes_first_and_runs_of_one_outcome_are_left_out() -> None:
    table = cause_table([COX, BEHRT])
    assert table.select("model", "cause", "c_index", "lower").rows() == [
        ("behrt", "any", 0.7, 0.65),
        ("behrt", "1", 0.8, 0.7),
        ("behrt", "2", 0.5, None),
    ]
    assert cause_table([COX]).is_empty()


def test_the_text_names_any_cause_so() -> None:
    lines = causes_to_markdown(cause_table([BEHRT])).splitlines()
    assert lines[0].startswith("The scores above are of any cause")
    assert [line.split("|")[4].strip() for line in lines[4:]] == ["any cause", "1", "2"]
    assert [line.split("|")[5].strip() for line in lines[4:]] == [
        "0.700 [0.650, 0.750]",
        "0.800 [0.700, 0.900]",
        "0.500",
    ]
