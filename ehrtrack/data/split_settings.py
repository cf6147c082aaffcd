"""Settings of the split: who trains, validates and tests, by a hash, by time, by group, or as the dataset has it."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date as Date
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Discriminator, Field, Tag

from ehrtrack.errors import ConfigError
from ehrtrack.section import Mark, Section

Share = Annotated[float, Field(gt=0, lt=1)]


class SplitConfig(Section):
    """Split the subjects at random, by a hash of the subject and a seed. All others are the test subjects.

    Attributes
    ----------
    seed : another seed gives another split
    train, validation : the shares of training and of validation subjects; they add up to less than 1

    Examples
    --------
    >>> SplitConfig(train=0.6, validation=0.2).rule
    'hash'
    """

    remedy: ClassVar[str] = "change split.seed or the split's shares"

    rule: Annotated[Literal["hash"], Mark.ADDED_LATER] = "hash"
    seed: int = 0
    train: Share = 0.7
    validation: Share = 0.15

    def model_post_init(self, _context: object) -> None:
        if self.train + self.validation >= 1:
            raise ConfigError(
                f"split.train + split.validation is {self.train + self.validation:g}, "
                "which leaves no test subjects; make them add up to less than 1"
            )


class TimeSplit(Section):
    """Out of time: who is asked about before `train_before` trains or validates, who is from `test_from` on tests.

    The dates are compared, as 00:00 UTC, with the index date or prediction time, with `cohort.landmark_days` with the
    index date before the landmark. Between the two dates, and in another period than that of a subject's first time,
    rows are left out and counted. The follow-up of training and validation subjects ends at `test_from`: what came
    later was not known when the first test subject was asked about. Pretraining reads records up to their last event
    before `train_before`, of all subjects.

    Attributes
    ----------
    train_before : who is asked about before this date trains or validates
    test_from : who is asked about from this date on tests
    seed : another seed gives other validation subjects
    validation : the share of the subjects before `train_before` that validates, by a hash of the subject

    Examples
    --------
    ``[data.split] rule = "time"`` with two dates: the subjects of 2019 are in no split.

    >>> split = TimeSplit(rule="time", train_before="2019-01-01", test_from="2020-01-01")
    >>> (split.test_from - split.train_before).days
    365
    """

    remedy: ClassVar[str] = "move split.train_before or split.test_from, or change split.validation"

    rule: Literal["time"]
    train_before: Date
    test_from: Date
    seed: int = 0
    validation: Share = 0.2

    def model_post_init(self, _context: object) -> None:
        if self.test_from < self.train_before:
            raise ConfigError(
                f"split.test_from is {self.test_from}, before split.train_before, {self.train_before}: subjects would "
                "be in two splits; make it that date or a later one"
            )


class ColumnSplit(Section):
    """Whole groups of subjects, such as hospitals, or the stays of one patient, go to one split.

    A subject's group is in `column` of a table, or it is what follows `code_prefix` in the code of a static fact.
    Groups that neither validate nor test train. Subjects without a group are left out and counted.

    Attributes
    ----------
    column : the column of the table that has the groups
    path : the table, parquet or CSV, with a `subject_id`; by default the dataset's ``metadata/subjects.parquet``
    code_prefix : what comes before the group in a code, as ``HOSPITAL//`` in ``HOSPITAL//3``; in the place of `column`
    seed : another seed draws other groups
    validation, test : names of groups, or a share of the groups that are not named, drawn by a hash of the group

    Examples
    --------
    Hospitals 3 and 7 test, and of the others a fifth validates:

    >>> ColumnSplit(rule="column", code_prefix="HOSPITAL//", test=[3, 7], validation=0.2).test
    ('3', '7')
    """

    remedy: ClassVar[str] = "name other groups in split.test and split.validation, or change their shares or split.seed"

    rule: Literal["column"]
    column: str = ""
    path: Path | None = None
    code_prefix: str = ""
    seed: int = 0
    validation: float | tuple[str, ...] = 0.15
    test: float | tuple[str, ...] = 0.15

    def model_post_init(self, _context: object) -> None:
        if bool(self.column) == bool(self.code_prefix):
            raise ConfigError("split.rule = 'column' needs exactly one of split.column and split.code_prefix")
        if self.path is not None and not self.column:
            raise ConfigError(
                "split.path is a table, and split.column, the column of it that has the groups, is not set"
            )
        for name in ("validation", "test"):
            _check_part(name, getattr(self, name))
        if (shares := self.share("validation") + self.share("test")) >= 1:
            raise ConfigError(f"split.validation + split.test is {shares:g}, which leaves no group to train")
        if twice := sorted(set(self.named("validation")) & set(self.named("test"))):
            raise ConfigError(f"split.validation and split.test both name {', '.join(twice)}; keep each group in one")

    def share(self, part: Literal["validation", "test"]) -> float:
        """The share of the groups that are not named; 0 where the part's groups are named."""
        asked = getattr(self, part)
        return asked if isinstance(asked, float) else 0.0

    def named(self, part: Literal["validation", "test"]) -> tuple[str, ...]:
        """The groups that are named; none where a share is asked for."""
        asked = getattr(self, part)
        return () if isinstance(asked, float) else asked

    def identity(self) -> dict[str, Any]:
        """Without `path`: what decides is what the table holds, wherever it lies."""
        return {name: value for name, value in super().identity().items() if name != "path"}


def _check_part(name: str, asked: float | tuple[str, ...]) -> None:
    if isinstance(asked, float) and not 0 < asked < 1:
        raise ConfigError(f"split.{name} is {asked:g}; give a share between 0 and 1, or a list of groups")
    if not isinstance(asked, float) and (not asked or len(set(asked)) < len(asked)):
        raise ConfigError(f"split.{name} is {list(asked)}; name at least one group, and each once")


class DatasetSplit(Section):
    """The split of the dataset itself, in ``metadata/subject_splits.parquet``: train, tuning (validation) and held_out.

    Subjects who are not in that table, or who are in a split of another name, are left out and counted.

    Examples
    --------
    >>> DatasetSplit(rule="dataset").rule
    'dataset'
    """

    remedy: ClassVar[str] = 'split otherwise, such as by split.rule = "hash"'

    rule: Literal["dataset"]


def _rule_of(split: Any) -> Any:
    """The rule of a table of settings; one of before there were several is of the hash."""
    return split.get("rule", "hash") if isinstance(split, Mapping) else getattr(split, "rule", "hash")


Split = Annotated[
    Annotated[SplitConfig, Tag("hash")]
    | Annotated[TimeSplit, Tag("time")]
    | Annotated[ColumnSplit, Tag("column")]
    | Annotated[DatasetSplit, Tag("dataset")],
    Discriminator(
        _rule_of,
        custom_error_type="unknown_rule",
        custom_error_message="there is no such rule; there are: hash, time, column, dataset",
    ),
]
