"""The section of a configuration that says where the events are, and how they become tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from ehrtrack.data.settings import Births, DelayHours, PretrainingRecords, VisitConfig, VocabularyConfig
from ehrtrack.data.split_settings import Split, SplitConfig
from ehrtrack.section import Mark, Section


class DataConfig(Section):
    """Where the events are, and how they become tokens.

    Attributes
    ----------
    path : folder of a MEDS dataset
    max_tokens : the longest history in tokens, [CLS] included; of a longer one the static facts and the most recent
        tokens are kept
    births : subjects without a birth date are ``left_out``, which is counted aloud; with ``unknown`` they are kept, and
        models learn what an unknown age means; with ``required`` one of them stops the run
    split : how subjects are divided into training, validation and test subjects; a table with a ``rule``
    delay_hours : how many hours after its time an event is known, by patterns that are matched at the code's start,
        such as ``{"LAB//" = 6}``; of several that match, the longest delay counts. An event that is not known yet at
        the index date or prediction time is not read. Pretraining reads whole records, in retrospect, without delay
    visits : which events are one visit
    vocabulary : which tokens there are
    pretraining_records : what pretraining reads of the subjects of the cohort, where its configuration has one: with
        ``cut`` their records up to the index date, with ``leave_out`` none of them, with ``whole`` all, outcomes
        included. A study tells its pretrainings the cohort of the fine-tunings that start from them
    fold : of the trials of a sweep that scores by folds, such as ``2/5``: training and validation subjects together are
        divided into five parts, of which the second validates and the others train

    Examples
    --------
    A laboratory's results are known six hours after the sample was taken:

    >>> data = DataConfig(path="data/meds", delay_hours={"LAB//": 6})
    >>> data.delay_hours["LAB//"], data.split.rule
    (6.0, 'hash')
    """

    path: Path
    max_tokens: int = Field(512, ge=8)
    births: Annotated[Births, Mark.ADDED_LATER] = "left_out"
    split: Split = SplitConfig()
    delay_hours: Annotated[DelayHours, Mark.ADDED_LATER] = Field(default_factory=dict)
    visits: VisitConfig = VisitConfig()
    vocabulary: VocabularyConfig = VocabularyConfig()
    pretraining_records: PretrainingRecords = "cut"
    fold: Annotated[
        str, Field(pattern=r"^([1-9]\d*/[1-9]\d*)?$", exclude_if=lambda fold: not fold), Mark.ADDED_LATER
    ] = ""

    def identity(self) -> dict[str, Any]:
        """Without what only pretraining asks for: where records were cut, the index dates are in its fingerprints."""
        return {name: value for name, value in super().identity().items() if name != "pretraining_records"}

    @property
    def may_lack_age(self) -> bool:
        """Whether models read subjects whose age is not known."""
        return self.births == "unknown"
