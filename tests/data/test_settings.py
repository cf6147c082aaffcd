"""Code patterns in settings: taken exactly where polars can match them, though it is not asked of the plain ones."""

from __future__ import annotations

import polars as pl
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ehrtrack.data.settings import FirstCodeIndex, OutcomeConfig, VocabularyConfig, check_patterns
from ehrtrack.errors import ConfigError
from ehrtrack.section import Section


def is_taken(pattern: str) -> bool:
    try:
        return check_patterns((pattern,)) == (pattern,)
    except ConfigError:
        return False


def polars_can_match(pattern: str) -> bool:
    try:
        pl.Series([""]).str.contains(f"^(?:{pattern})")
    except pl.exceptions.ComputeError:
        return False
    return True


@given(st.text("aZ7_é/:., -[]()|^$*+?\\dwbp{}=<", min_size=1, max_size=10))
@example("ICD10//I2[12]")
@example(r"\p{L}+")  # which Python cannot compile
@example("(?=a)")  # which polars cannot
@example("a++")
@example(r"(a)\1")
@example("[[]")
@example("[a--b]")
@example("[z-a]")
@example("a{1000}{1000}")
@example("x**")
@example("a)")
@example("(" * 300 + ")" * 300)
def test_a_pattern_is_taken_exactly_where_polars_can_match_it(pattern: str) -> None:
    assert is_taken(pattern) == polars_can_match(pattern)


@pytest.mark.parametrize("pattern", ["(?=A)", "A(", "[z-a]"])
@pytest.mark.parametrize("section", [VocabularyConfig, OutcomeConfig, FirstCodeIndex])
def test_every_section_with_patterns_names_the_one_that_cannot_be_matched(section: type[Section], pattern: str) -> None:
    name = "exclude" if section is VocabularyConfig else "codes"
    rule = {"rule": "first_code"} if section is FirstCodeIndex else {}
    with pytest.raises(ConfigError) as refused:
        section.model_validate({name: ["B", pattern], **rule})
    assert f"code pattern {pattern!r} is no regular expression: " in str(refused.value)


def test_an_empty_pattern_is_refused() -> None:
    with pytest.raises(ConfigError, match="matches every code"):
        VocabularyConfig(exclude=("",))
