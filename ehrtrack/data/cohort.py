"""Who is in the study: index date, eligibility, outcome, follow-up, and the subjects lost at every step."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import polars as pl

from ehrtrack.arrays import Floats
from ehrtrack.data.eligibility import Rule, birth_rules, living_rules, outcome_rule, study_rules
from ehrtrack.data.events import MedsDataset, fingerprint_of, life_spans
from ehrtrack.data.few_labels import draw_labels
from ehrtrack.data.histories import damage_named
from ehrtrack.data.horizon import check_horizon, longest_horizon
from ehrtrack.data.index_rules import check_births, index_dates
from ehrtrack.data.labels import CAUSE, read_labels
from ehrtrack.data.observation import add_observation
from ehrtrack.data.outcomes import add_follow_up, add_outcome, clip_follow_up, midnight
from ehrtrack.data.settings import Births, CohortConfig
from ehrtrack.data.split_rules import with_splits
from ehrtrack.data.split_settings import Split, TimeSplit
from ehrtrack.data.splits import SPLITS
from ehrtrack.data.visits import DAYS_PER_YEAR, MICROSECONDS_PER_DAY, days_after
from ehrtrack.errors import ConfigError, DataError

SAFE_EVENTS = 3.0
"""Events expected in a split that has one in 19 of 20 draws: of a Poisson number with this mean, exp(-3) are 0."""

Task = Literal["survival", "classification"]
"""What labels tell of the outcome: when it comes, or only whether it does."""

CLASS_DAYS = 1.0
"""Follow-up and horizon of those of whom only the class is known: everybody is followed to it, nobody is censored."""


@dataclass(frozen=True)
class Cohort:
    """The subjects of a study, and how they were arrived at."""

    subjects: pl.DataFrame
    """A row a subject and index date: subject_id i64, index_date datetime[us], follow_up_days f64 (> 0, <=
    horizon_days), is_event bool, split str; sorted by subject_id and index_date. Labels that have a cause i64 keep it,
    before the split. All rows of a subject are in one split."""
    horizon_days: float
    attrition: pl.DataFrame
    """step str, n_subjects i64 (remaining), n_dropped i64 (of whom no row is left); where subjects have several rows
    also n_times i64 (rows remaining), n_times_dropped i64 and n_subjects_with_dropped i64, whose rows those were."""
    fingerprint: str
    is_horizon_cut: bool = False
    """No horizon was given, and the longest follow-up is longer than what enough training subjects reach."""
    task: Task = "survival"
    """Of a classification follow_up_days and horizon_days are `CLASS_DAYS`, and is_event is the class."""
    n_pool: int | None = None
    """Training subjects from whom `n_labels` rows were drawn; None where all are there."""

    @property
    def has_several_times(self) -> bool:
        """Whether a subject is there at more than one index date."""
        return bool(self.subjects["subject_id"].is_duplicated().any())

    @property
    def has_classes(self) -> bool:
        """Whether its labels tell whether the outcome comes, and not when."""
        return self.task == "classification"

    @property
    def cutoffs(self) -> pl.DataFrame:
        """Until when each subject's events are known: subject_id, cutoff datetime[us], split."""
        return self.subjects.select("subject_id", pl.col("index_date").alias("cutoff"), "split")


def build_cohort(dataset: MedsDataset, config: CohortConfig, split: Split, *, births: Births = "required") -> Cohort:
    """Find the subjects, their index dates, and what followed.

    Parameters
    ----------
    births : with ``left_out``, subjects without a birth are a step of the attrition; with ``unknown`` they stay

    Raises
    ------
    DataError
        If nobody is left (naming the step that lost the last), all are censored, a split lacks subjects or
        events, or too few are followed to the horizon; if the labels cannot be read; if an age is needed and a birth
        is missing.
    """
    with damage_named(dataset.shards):
        if config.labels is None:
            flow = _from_rules(dataset, config, births)
        else:
            flow = _from_labels(dataset, config.labels, config, births)
        _divide(flow, dataset, config, split)
    training = flow.subjects.filter(pl.col("split") == "train")["follow_up_days"].to_numpy()
    longest_days = float(flow.subjects["follow_up_days"].to_numpy().max())
    horizon_days = config.horizon_days or _default_horizon(training, longest_days, config.min_followed_share)
    if config.labels is not None:
        flow.subjects = clip_follow_up(flow.subjects, horizon_days)
    _check_events(flow.subjects, split)
    check_horizon(flow.subjects.filter(pl.col("split") == "train"), horizon_days, config.min_followed_share)
    n_pool = None
    if config.n_labels is not None:
        n_pool = n_people(flow.subjects.filter(pl.col("split") == "train"))
        is_drawn = draw_labels(flow.subjects, config.n_labels, seed=config.labels_seed)
        flow.subjects = flow.subjects.with_columns(is_drawn)
        flow.keep("drawn by cohort.n_labels, or for testing", pl.col(is_drawn.name))
    columns = ["subject_id", "index_date", "follow_up_days", "is_event"]
    columns += [CAUSE] if CAUSE in flow.subjects.columns else []
    subjects = flow.subjects.sort("subject_id", "index_date").select(*columns, "split")
    # Of the labels the table holds what the file says, wherever it lies; of the share, what it cut.
    rules = {name: rule for name, rule in config.identity().items() if name not in ("labels", "min_followed_share")}
    of_task = () if flow.task == "survival" else (flow.task,)
    return Cohort(
        subjects=subjects,
        horizon_days=horizon_days,
        attrition=flow.table(),
        fingerprint=fingerprint_of("cohort", dataset.fingerprint(), rules, split, subjects, *of_task),
        is_horizon_cut=config.horizon_days is None and horizon_days < longest_days,
        task=flow.task,
        n_pool=n_pool,
    )


def summarise_cohort(cohort: Cohort) -> pl.DataFrame:
    """Events and follow-up of each split.

    Returns
    -------
    split, n_subjects, n_events, event_rate, median_follow_up_days, person_years; in the order of `SPLITS`. Where
    subjects have several rows also n_times (rows, of which the events are counted) and n_subjects_with_event. Classes
    are of no follow-up.
    """
    person = pl.col("subject_id")
    of_rows = {
        "n_times": pl.len().cast(pl.Int64),
        "n_subjects_with_event": person.filter("is_event").n_unique().cast(pl.Int64),
    }
    of_follow_up = {
        "median_follow_up_days": pl.col("follow_up_days").median(),
        "person_years": pl.col("follow_up_days").sum() / DAYS_PER_YEAR,
    }
    table = cohort.subjects.group_by("split").agg(
        n_subjects=person.n_unique().cast(pl.Int64),
        **(of_rows if cohort.has_several_times else {}),
        n_events=pl.col("is_event").sum().cast(pl.Int64),
        event_rate=pl.col("is_event").mean(),
        **({} if cohort.has_classes else of_follow_up),
    )
    return pl.DataFrame({"split": SPLITS}).join(table, on="split", how="left", maintain_order="left")


class _Attrition:
    """Keeps the rows that pass each step, and counts them, and their subjects, and those that do not."""

    def __init__(self, step: str, subjects: pl.DataFrame, task: Task = "survival") -> None:
        self.task = task
        self.subjects = subjects
        self.rows = [(step, n_people(subjects), 0, subjects.height, 0, 0)]
        self._check_left(step, 0)

    def keep(self, step: str, condition: pl.Expr) -> None:
        """Keep the rows for which the condition is true; an unknown (null) one drops them."""
        before, n_before = self.subjects, self.rows[-1][1]
        self.subjects = before.filter(condition)
        n_left = n_people(self.subjects)
        n_with_dropped = n_people(before.filter(~condition.fill_null(False)))
        n_dropped, n_rows_dropped = n_before - n_left, before.height - self.subjects.height
        self.rows.append((step, n_left, n_dropped, self.subjects.height, n_rows_dropped, n_with_dropped))
        self._check_left(step, n_before)

    def keep_by(self, *rules: Rule) -> None:
        """Keep the rows that pass each rule."""
        for rule in rules:
            self.keep(rule.step, rule.holds)

    def keep_born(self, births: Births, moment: str) -> None:
        """Keep the subjects whose birth is as it should be; a step that nobody fails is not told."""
        for rule in birth_rules(births, "index_date", moment):
            if not self.subjects.select(rule.holds.fill_null(False).all()).item():
                self.keep_by(rule)

    def table(self) -> pl.DataFrame:
        schema = {
            "step": pl.String,
            "n_subjects": pl.Int64,
            "n_dropped": pl.Int64,
            "n_times": pl.Int64,
            "n_times_dropped": pl.Int64,
            "n_subjects_with_dropped": pl.Int64,
        }
        table = pl.DataFrame(self.rows, schema=schema, orient="row")
        has_several = (table["n_times"] > table["n_subjects"]).any()
        return table if has_several else table.select("step", "n_subjects", "n_dropped")

    def _check_left(self, step: str, before: int) -> None:
        if self.subjects.is_empty():
            flow = "; ".join(f"{name}: {n}" for name, n, *_ in self.rows)
            raise DataError(
                f"the cohort is empty: the step {step!r} dropped the last {before} subjects ({flow}); "
                "look at that step's settings in the [cohort] table, and at data.path"
            )


def n_people(rows: pl.DataFrame) -> int:
    """How many different subjects there are in the rows; one whose id is not known (null) is another each time."""
    ids = rows["subject_id"]
    return ids.drop_nulls().n_unique() + ids.null_count()


def _from_rules(dataset: MedsDataset, config: CohortConfig, births: Births) -> _Attrition:
    assert config.index is not None
    assert config.outcome is not None
    assert config.horizon_days is not None
    spans = life_spans(dataset.scan()).collect(engine="streaming")
    aged = spans.drop_nulls("birth") if births == "left_out" else spans
    dates = index_dates(dataset.scan(), aged, config.index)
    flow = _Attrition("subjects in the dataset", spans.join(dates, on="subject_id", how="left"))
    index = pl.col("index_date")
    flow.keep_born(births, "index date")
    flow.keep("has an index date", index.is_not_null())
    flow.keep_by(*living_rules("index_date", "index date"))
    flow.subjects = add_observation(flow.subjects, dataset.scan())
    is_in_study = (index < midnight(config.end_of_study)).fill_null(True)
    is_observed = (pl.col("last_time") >= index) & pl.col("is_observed").fill_null(True)
    flow.keep("under observation at the index date", is_observed & is_in_study)
    _keep_eligible(flow, config)
    flow.subjects = add_outcome(flow.subjects, dataset.scan(), config.outcome)
    if config.exclude_prior_outcome:
        flow.keep_by(outcome_rule("index date"))
    until_days = config.landmark_days + config.gap_days + config.horizon_days
    flow.subjects = add_follow_up(flow.subjects, horizon_days=until_days, end_of_study=config.end_of_study)
    flow.keep("follow-up after the index date", pl.col("follow_up_days") > 0)
    _move_to_landmark(flow, config.landmark_days)
    _leave_gap(flow, config.gap_days)
    rounded = pl.col("follow_up_days").clip(upper_bound=config.horizon_days)  # .1 + .2 is more than .3
    flow.subjects = flow.subjects.with_columns(rounded)
    return flow


def _from_labels(dataset: MedsDataset, path: Path, config: CohortConfig, births: Births) -> _Attrition:
    spans = life_spans(dataset.scan()).with_columns(is_in_dataset=pl.lit(True)).collect(engine="streaming")
    labels = read_labels(path, dataset)
    task: Task = "survival" if "follow_up_days" in labels.columns else "classification"
    if task == "classification":
        _check_no_time(path, config)
        labels = labels.with_columns(follow_up_days=pl.lit(CLASS_DAYS))
    flow = _Attrition("subjects in the labels", labels.join(spans, on="subject_id", how="left"), task)
    flow.keep("in the dataset", pl.col("is_in_dataset"))
    flow.keep_born(births, "prediction time")
    flow.keep_by(*living_rules("index_date", "prediction time"))
    _keep_eligible(flow, config)
    if task == "survival":
        flow.keep("follow-up after the prediction time", pl.col("follow_up_days") > 0)
    _move_to_landmark(flow, config.landmark_days)
    _leave_gap(flow, config.gap_days)
    return flow


def _check_no_time(path: Path, config: CohortConfig) -> None:
    """Classes are of no time, so that there is nothing for a horizon, a gap or a landmark to cut."""
    given = {
        "cohort.horizon_days": config.horizon_days,
        "cohort.gap_days": config.gap_days or None,
        "cohort.landmark_days": config.landmark_days or None,
    }
    found = [f"{name} is {days:g}" for name, days in given.items() if days is not None]
    if found:
        raise ConfigError(
            f"{' and '.join(found)}, and {path} tells whether the outcome comes and not when, so no day of it is "
            "known: leave the setting out, or give labels with follow_up_days (or censor_time) and is_event"
        )


def _divide(flow: _Attrition, dataset: MedsDataset, config: CohortConfig, split: Split) -> None:
    """Give each row its split; by time, follow-up that is learnt from ends when the first test subject is asked about.

    A row's time is that of the index date, also at a landmark: subjects stay in their split however late it is.
    """
    rows = flow.subjects.with_columns(time=days_after("index_date", -config.landmark_days))
    flow.subjects, steps = with_splits(dataset, rows, split)
    for step in steps:
        flow.keep(step.name, step.holds)
    if isinstance(split, TimeSplit) and flow.task == "survival":
        _end_learning(flow, midnight(split.test_from), config.gap_days)


def _end_learning(flow: _Attrition, end: pl.Expr, gap_days: float) -> None:
    """End the follow-up of training and validation subjects, which begins after the gap, at a moment."""
    is_test = pl.col("split") == "test"
    days = (end - pl.col("index_date")).dt.total_microseconds() / MICROSECONDS_PER_DAY - gap_days
    most_days = pl.when(is_test).then(math.inf).otherwise(days)
    flow.keep("follow-up before split.test_from, or for testing", most_days > 0)
    n_longer = int(flow.subjects.select((pl.col("follow_up_days") > most_days).sum()).item())
    n_learning = int(flow.subjects.select((~is_test).sum()).item())
    print(
        f"cohort: the follow-up of {n_longer:,} of {n_learning:,} training and validation rows is cut at "
        "split.test_from: what came later was not known then",
        flush=True,
    )
    flow.subjects = clip_follow_up(flow.subjects, most_days)


def _default_horizon(training: Floats, longest: float, min_share: float) -> float:
    """The longest follow-up that enough training subjects reach; says so where that is not the longest of all."""
    horizon_days = longest_horizon(training, min_share) if len(training) else longest
    if horizon_days < longest:
        print(
            f"cohort: the horizon is {horizon_days:g} days, as fewer than {min_share:.1%} of the training subjects are "
            f"followed for longer (the longest follow-up is {longest:g} days); set cohort.horizon_days to choose it",
            flush=True,
        )
    return horizon_days


def _move_to_landmark(flow: _Attrition, landmark_days: float) -> None:
    if not landmark_days:
        return
    flow.keep("follow-up after the landmark", pl.col("follow_up_days") > landmark_days)
    flow.subjects = flow.subjects.with_columns(
        index_date=days_after("index_date", landmark_days),
        follow_up_days=pl.col("follow_up_days") - landmark_days,
    )


def _leave_gap(flow: _Attrition, gap_days: float) -> None:
    """Have follow-up begin so many days later than what is known ends."""
    if not gap_days:
        return
    is_within = pl.col("follow_up_days") <= gap_days
    flow.keep("no outcome within gap_days", ~(pl.col("is_event") & is_within))
    flow.keep("follow-up after gap_days", ~is_within)
    flow.subjects = flow.subjects.with_columns(pl.col("follow_up_days") - gap_days)


def _keep_eligible(flow: _Attrition, config: CohortConfig) -> None:
    for rule in study_rules(config):
        if rule.needs_birth:
            check_births(flow.subjects, rule.needs_birth)
        flow.keep_by(rule)


def _check_events(subjects: pl.DataFrame, split: Split) -> None:
    """Every split must teach or judge something: it needs subjects, and events among them."""
    subjects = subjects.group_by("subject_id").agg(pl.col("is_event").any(), pl.col("split").first())
    n_events = int(subjects["is_event"].sum())
    if n_events == 0:
        raise DataError(
            f"all {subjects.height} subjects of the cohort are censored, and a survival model needs events; "
            "look at cohort.outcome and cohort.horizon_days, or at is_event (or boolean_value) in the labels"
        )
    for name in SPLITS:
        part = subjects.filter(pl.col("split") == name)
        if not part["is_event"].any():
            n_safe = math.ceil(SAFE_EVENTS * subjects.height / n_events)
            raise DataError(
                f"the {name} split has no events ({part.height} subjects; {n_events} events among all "
                f"{subjects.height} subjects). Needed is at least 1 in each split, which splits of {n_safe} subjects "
                f"have in 19 of 20 draws at this rate; {split.remedy}, or widen the cohort"
            )
