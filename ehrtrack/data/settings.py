"""Settings of the data: splits, visits, vocabulary, and the cohort's index date and outcome.

Apart from the code that reads them, which imports polars: a configuration is checked before that is imported.
"""

from __future__ import annotations

import re
from datetime import date as Date
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from ehrtrack.errors import ConfigError
from ehrtrack.section import Mark, Section

SAME_IN_EVERY_ENGINE = re.compile(
    r"""(?: (?: [\w\ /:.,-] | \\[dswDSW.$^|()\[\]*+?{}\\-] | \[\^?(?:\w(?:-\w)?|[\ /:.])+\] | \) ) [*+?]?
          | [$^|] | \( (?:\?:)? )*""",
    re.VERBOSE,
)
"""Characters, escapes, classes, groups and alternatives: where Python's `re` can compile those, polars can too."""


def check_patterns(patterns: tuple[str, ...]) -> tuple[str, ...]:
    """The patterns themselves, if each is a regular expression that polars can match (no look-around).

    Raises
    ------
    ConfigError
        If one is empty or cannot be compiled.

    Examples
    --------
    A plain prefix is a regular expression too:

    >>> check_patterns(("LAB//", "ICD10//I2[0-5]"))
    ('LAB//', 'ICD10//I2[0-5]')
    """
    for pattern in patterns:
        if not pattern:
            raise ConfigError("an empty code pattern matches every code; give a prefix or a regular expression")
        if not _is_plain(pattern):
            _check_with_polars(pattern)
    return patterns


def _is_plain(pattern: str) -> bool:
    if len(pattern) > 200 or not SAME_IN_EVERY_ENGINE.fullmatch(pattern):  # polars bounds the compiled size
        return False
    try:
        re.compile(pattern)
    except re.error:
        return False
    return True


def _check_with_polars(pattern: str) -> None:
    import polars as pl  # takes 0.3 s, and hardly any pattern needs it

    try:
        pl.Series([""]).str.contains(f"^(?:{pattern})")
    except pl.exceptions.ComputeError as error:
        reason = str(error).split("\n\n")[0]
        raise ConfigError(f"code pattern {pattern!r} is no regular expression: {reason}") from error


Patterns = Annotated[tuple[str, ...], AfterValidator(check_patterns)]
"""Regular expressions that are matched at the code's start; a plain prefix is one."""

MAX_YEARS, MAX_DAYS = 1000, 365_250.0
"""Beyond a thousand years, dates and the times between them overflow."""


Births = Literal["left_out", "unknown", "required"]
"""What becomes of subjects whose birth is not known: left out and counted, kept with an age that is unknown (never age
0), or the run stops."""

PretrainingRecords = Literal["cut", "leave_out", "whole"]
"""What pretraining reads of a cohort's subjects: their records up to the index date, none of them, or all."""

KEEP_UNKNOWN = 'data.births = "unknown" keeps subjects without an age'

Hours = Annotated[float, Field(ge=0, le=24 * MAX_DAYS)]


def _check_delays(delay_hours: dict[str, float]) -> dict[str, float]:
    check_patterns(tuple(delay_hours))
    return delay_hours


DelayHours = Annotated[dict[str, Hours], AfterValidator(_check_delays)]
"""How many hours after its time an event is known, by patterns that are matched at the code's start."""


VisitUnit = Literal["encounter", "day", "hour"]
"""What makes events one visit: the source's encounter (else the day), the calendar day, or the hour, both in UTC."""


class VisitConfig(Section):
    """Which events are one visit.

    Attributes
    ----------
    unit : ``encounter`` (of the source, or else the day), ``day`` or ``hour``, both in UTC

    Examples
    --------
    ``[data.visits] unit = "hour"``:

    >>> VisitConfig(unit="hour").unit
    'hour'
    """

    unit: VisitUnit = "day"


class VocabularyConfig(Section):
    """The tokens of the vocabulary.

    Attributes
    ----------
    min_subjects : a token that fewer training subjects have is [UNK]
    n_value_bins : the most bins into which the numeric values of a code are cut, at their training quantiles
    min_values : a code, or a group, with fewer numeric values has no bins
    exclude : patterns of codes that are left out, matched at the code's start
    groups : a table (parquet or CSV) with the columns `code` and `group`. The codes of a group, such as those that
        different hospitals have for the same thing, become one token, and their values are cut at the quantiles of all
        of them together: they have to be in one unit. `ehrtrack embed --groups` finds some; phecodes, CCS and ATC
        classes are others

    Examples
    --------
    ``[data.vocabulary] min_subjects = 20`` and ``exclude = ["ADMIN//"]``:

    >>> vocabulary = VocabularyConfig(min_subjects=20, exclude=["ADMIN//"])
    >>> vocabulary.exclude, vocabulary.n_value_bins
    (('ADMIN//',), 5)
    """

    min_subjects: int = Field(default=5, ge=1)
    n_value_bins: int = Field(default=5, ge=1, le=1000)
    min_values: int = Field(default=100, ge=1)
    exclude: Patterns = ()
    groups: Path | None = None


class FirstCodeIndex(Section):
    """The subject's first event with one of the codes.

    Attributes
    ----------
    codes : regular expressions that are matched at the code's start

    Examples
    --------
    The first diagnosis of type 2 diabetes in ICD-10, at any of its subcodes:

    >>> FirstCodeIndex(rule="first_code", codes=["ICD10//E11"]).codes
    ('ICD10//E11',)
    """

    rule: Literal["first_code"]
    codes: Annotated[Patterns, Field(min_length=1)]


class AgeIndex(Section):
    """The start (00:00) of the birthday on which the subject turns `years`.

    A birthday on 29 February falls on 28 February in common years.

    Attributes
    ----------
    years : the age

    Examples
    --------
    ``[cohort.index] rule = "age"`` and ``years = 65``:

    >>> AgeIndex(rule="age", years=65).years
    65
    """

    rule: Literal["age"]
    years: int = Field(gt=0, le=MAX_YEARS)


class DateIndex(Section):
    """The start (00:00) of a calendar date, the same for all subjects.

    Attributes
    ----------
    date : the date, such as ``2020-01-01``

    Examples
    --------
    >>> DateIndex(rule="date", date="2020-01-01").date.isoformat()
    '2020-01-01'
    """

    rule: Literal["date"]
    date: Date


class VisitIndex(Section):
    """The end (last event) of the subject's `number`-th visit, counted from 1 by the visits' first events.

    Attributes
    ----------
    number : which visit; 1 is the first
    unit : what is one visit, as in ``data.visits.unit``

    Examples
    --------
    The end of the first encounter, such as a discharge from hospital:

    >>> VisitIndex(rule="visit", number=1, unit="encounter").unit
    'encounter'
    """

    rule: Literal["visit"]
    number: int = Field(ge=1)
    unit: VisitUnit = "day"


Index = Annotated[FirstCodeIndex | AgeIndex | DateIndex | VisitIndex, Field(discriminator="rule")]


class OutcomeConfig(Section):
    """Death, or the first event with one of the codes.

    Attributes
    ----------
    death : whether the outcome is death
    codes : regular expressions that are matched at the code's start

    Examples
    --------
    ``[cohort.outcome] codes = ["ICD10//I21"]``, or ``death = true``, but not both:

    >>> OutcomeConfig(codes=["ICD10//I21"]).death
    False
    """

    death: bool = False
    codes: Patterns = ()

    def model_post_init(self, _context: object) -> None:
        if self.death == bool(self.codes):
            raise ConfigError("cohort.outcome needs exactly one of death = true and codes = [...]")


class CohortConfig(Section):
    """Either `labels`, a file or folder of subjects, times and outcomes, or `index` + `outcome` + `horizon_days`.

    Labels that tell whether the outcome comes and not when (`boolean_value`, in MEDS's schema) go with neither
    `horizon_days` nor `landmark_days`. Ages are completed years at the index date. Who is eligible is judged at the
    index date, not at the landmark.

    Attributes
    ----------
    labels : a parquet or CSV file, or a folder of them, with a row for each subject and prediction time
    index : how the index date of a subject is found; a table with a ``rule``
    outcome : what the outcome is
    horizon_days : the end of the follow-up that risks are stated for. With labels it defaults to the longest follow-up
        that `min_followed_share` of the training subjects reach
    min_history_days : who has been observed for fewer days before the index date is left out
    min_age_years, max_age_years : ages at the index date, the bound included; others are left out
    end_of_study : the follow-up of everybody ends at the start (00:00) of this date
    min_followed_share : a horizon to which a smaller share of the training subjects is followed is refused, as nothing
        would tell of risks up to it; 0 takes any
    landmark_days : moves everybody's index date that far on, to a landmark (van Houwelingen 2007, "Dynamic Prediction
        by Landmarking in Event History Analysis", Scand J Stat 34): what came by then is known, and those whose
        follow-up has ended by then are left out
    gap_days : moves the start of follow-up alone: what is known still ends at the index date (or the landmark), and the
        horizon counts from the end of the gap. Those who have the outcome, or whose follow-up ends, within the gap (its
        last moment included) are left out and counted
    n_labels : number of training rows that are drawn, by a hash of `labels_seed` and the row, with as many events among
        them as among all training rows; those of 64 are among those of 128. Validation rows are drawn alike, as many as
        keep their ratio to the training rows, and the test rows stay as they are. Horizon and splits are decided before
    labels_seed : another seed draws other rows
    exclude_prior_outcome : whether who has the outcome already at the index date is left out

    Examples
    --------
    Readmission from the third day on, told at discharge, learnt from 64 labels:

    >>> CohortConfig(labels="discharges.csv", horizon_days=28, gap_days=2, n_labels=64, labels_seed=1).gap_days
    2.0
    """

    labels: Path | None = None
    index: Index | None = None
    outcome: OutcomeConfig | None = None
    horizon_days: float | None = Field(default=None, gt=0, le=MAX_DAYS)
    min_history_days: float | None = Field(default=None, ge=0, le=MAX_DAYS)
    min_age_years: int | None = Field(default=None, ge=0, le=MAX_YEARS)
    max_age_years: int | None = Field(default=None, ge=0, le=MAX_YEARS)
    end_of_study: Date | None = None
    min_followed_share: float = Field(default=0.01, ge=0, lt=1)
    landmark_days: float = Field(default=0, ge=0, le=MAX_DAYS)
    gap_days: Annotated[float, Mark.ADDED_LATER] = Field(default=0, ge=0, le=MAX_DAYS)
    n_labels: Annotated[int | None, Mark.ADDED_LATER] = Field(default=None, ge=2)
    labels_seed: Annotated[int, Mark.ADDED_LATER] = 0
    exclude_prior_outcome: bool = True

    def model_post_init(self, _context: object) -> None:
        ways = "give either labels = FILE, or index, outcome and horizon_days"
        rules = {"index": self.index, "outcome": self.outcome, "end_of_study": self.end_of_study}
        given = [f"cohort.{name}" for name, value in rules.items() if value is not None]
        if self.labels is not None and given:
            raise ConfigError(f"cohort.labels and {', '.join(given)} are both set; {ways}")
        needed = {"index": self.index, "outcome": self.outcome, "horizon_days": self.horizon_days}
        missing = [f"cohort.{name}" for name, value in needed.items() if value is None]
        if self.labels is None and missing:
            raise ConfigError(f"{', '.join(missing)} is not set, and neither is cohort.labels; {ways}")

    def with_all_labels(self) -> CohortConfig:
        """The cohort from which few labels may be drawn: everybody in it is known to be of the study.

        >>> drawn = CohortConfig(labels="labels.csv", n_labels=64, labels_seed=1)
        >>> drawn.with_all_labels() == CohortConfig(labels="labels.csv")
        True
        """
        drawn = {"n_labels", "labels_seed"}
        return self.model_validate({name: getattr(self, name) for name in self.model_fields_set - drawn})

    def identity(self) -> dict[str, Any]:
        """Without `labels_seed` where nothing is drawn by it."""
        unused = {"labels_seed"} if self.n_labels is None else set()
        return {name: value for name, value in super().identity().items() if name not in unused}
