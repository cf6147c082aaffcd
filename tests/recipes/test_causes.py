"""Tables of causes that a comparison shows below its scores of any cause."""

from __future__ import annotations

from ehrtrack.compare import RunRow
from ehrtrack.recipes._causes import cause_table, causes_to_markdown

COX = RunRow("c" * 32, "baseline", "cox", "aaaa", test_c_index=0.6)
BEHRT = RunRow(
    run_id="b" * 32,
    kind="finetune",
    model="behrt",
    cohort_fingerprint="aaaa",
    strategy="scratch",
    size="tiny",
    test_c_index=0.7,
    test_lower=0.65,
    test_upper=0.75,
    causes={2: (0.5, None, None), 1: (0.8, 0.7, 0.9)},
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
