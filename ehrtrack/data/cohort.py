"""Who is in the study: index date, eligibility, outcome, follow-up, and the subjects lost at every step."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from ehrtrack.data.eligibility import Rule, living_rules, outcome_rule, study_rules
from ehrtrack.data.events import MedsDataset, fingerprint_of, life_spans
from ehrtrack.data.histories import damage_named
from ehrtrack.data.horizon import check_horizon, longest_horizon
from ehrtrack.data.index_rules import check_births, index_dates
from ehrtrack.data.labels import CAUSE, read_labels
from ehrtrack.data.observation import add_observation
from ehrtrack.data.outcomes import add_follow_up, add_outcome, clip_to_horizon, midnight
from ehrtrack.data.settings import CohortConfig, SplitConfig
from ehrtrack.data.splits import SPLITS, assign_splits
from ehrtrack.data.visits import DAYS_PER_YEAR, days_after
from ehrtrack.errors import DataError

SAFE_EVENTS = 3.0
"""Events expected in a split that has one in 19 of 20 draws: of a Poisson number with this mean, exp(-3) are 0."""


@dataclass(frozen=True)
class Cohort:
    """The subjects of a study, and how they were arrived at."""

    subjects: pl.DataFrame
    """subject_id i64, index_date datetime[us], follow_up_days f64 (> 0, <= horizon_days), is_event bool,
    split str; sorted by subject_id. Labels that have a cause i64 keep it, before the split."""
    horizon_days: float
    attrition: pl.DataFrame
    """step str, n_subjects i64 (remaining), n_dropped i64."""
    fingerprint: str
    is_horizon_cut: bool = False
    """No horizon was given, and the longest follow-up is longer than what enough training subjects reach."""

    @property
    def cutoffs(self) -> pl.DataFrame:
        """Until when each subject's events are known: subject_id, cutoff datetime[us], split."""
        return self.subjects.select("subject_id", pl.col("index_date").alias("cutoff"), "split")


def build_cohort(dataset: MedsDataset, config: CohortConfig, split: SplitConfig) -> Cohort:
    """Find the subjects, their index dates, and what followed.

    Raises
    ------
    DataError
        If nobody is left (naming the step that lost the last), all are censored, a split lacks subjects or
        events, or too few are followed to the horizon; if the labels cannot be read; if an age is needed and a birth
        is missing.
    """
    is_cut = False
    with damage_named(dataset.shards):
        if config.labels is not None:
            subjects, attrition = _from_labels(dataset, config.labels, config)
            longest_days = float(subjects["follow_up_days"].to_numpy().max())
            horizon_days = config.horizon_days or _default_horizon(subjects, config.min_followed_share, split)
            is_cut = config.horizon_days is None and horizon_days < longest_days
            subjects = clip_to_horizon(subjects, horizon_days)
        else:
            subjects, attrition, horizon_days = _from_rules(dataset, config)
    columns = ["subject_id", "index_date", "follow_up_days", "is_event"]
    subjects = subjects.sort("subject_id").select(*columns, *([CAUSE] if CAUSE in subjects.columns else []))
    subjects = subjects.with_columns(assign_splits(subjects["subject_id"], split))
    _check_events(subjects)
    check_horizon(subjects.filter(pl.col("split") == "train"), horizon_days, config.min_followed_share)
    # Of the labels the table holds what the file says, wherever it lies; of the share, what it cut.
    rules = config.model_dump(mode="json", exclude={"labels", "min_followed_share"})
    return Cohort(
        subjects=subjects,
        horizon_days=horizon_days,
        attrition=attrition,
        fingerprint=fingerprint_of("cohort", dataset.fingerprint(), rules, split, subjects),
        is_horizon_cut=is_cut,
    )


def summarise_cohort(cohort: Cohort) -> pl.DataFrame:
    """Events and follow-up of each split.

    Returns
    -------
    split, n_subjects, n_events, event_rate, median_follow_up_days, person_years; in the order of `SPLITS`
    """
    table = cohort.subjects.group_by("split").agg(
        n_subjects=pl.len().cast(pl.Int64),
        n_events=pl.col("is_event").sum().cast(pl.Int64),
        event_rate=pl.col("is_event").mean(),
        median_follow_up_days=pl.col("follow_up_days").median(),
        person_years=pl.col("follow_up_days").sum() / DAYS_PER_YEAR,
    )
    return pl.DataFrame({"split": SPLITS}).join(table, on="split", how="left", maintain_order="left")


class _Attrition:
    """Keeps the subjects that pass each step, and counts those that do not."""

    def __init__(self, step: str, subjects: pl.DataFrame) -> None:
        self.subjects = subjects
        self.rows = [(step, subjects.height, 0)]
        self._check_left(step, 0)

    def keep(self, step: str, condition: pl.Expr) -> None:
        """Keep the subjects for which the condition is true; an unknown (null) one drops them."""
        before = self.subjects.height
        self.subjects = self.subjects.filter(condition)
        self.rows.append((step, self.subjects.height, before - self.subjects.height))
        self._check_left(step, before)

    def keep_by(self, *rules: Rule) -> None:
        """Keep the subjects that pass each rule."""
        for rule in rules:
            self.keep(rule.step, rule.holds)

    def table(self) -> pl.DataFrame:
        schema = {"step": pl.String, "n_subjects": pl.Int64, "n_dropped": pl.Int64}
        return pl.DataFrame(self.rows, schema=schema, orient="row")

    def _check_left(self, step: str, before: int) -> None:
        if self.subjects.is_empty():
            flow = "; ".join(f"{name}: {n}" for name, n, _ in self.rows)
            raise DataError(
                f"the cohort is empty: the step {step!r} dropped the last {before} subjects ({flow}); "
                "look at that step's settings in the [cohort] table, and at data.path"
            )


def _from_rules(dataset: MedsDataset, config: CohortConfig) -> tuple[pl.DataFrame, pl.DataFrame, float]:
    assert config.index is not None
    assert config.outcome is not None
    assert config.horizon_days is not None
    spans = life_spans(dataset.scan()).collect(engine="streaming")
    dates = index_dates(dataset.scan(), spans, config.index)
    flow = _Attrition("subjects in the dataset", spans.join(dates, on="subject_id", how="left"))
    index = pl.col("index_date")
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
    until_days = config.landmark_days + config.horizon_days
    flow.subjects = add_follow_up(flow.subjects, horizon_days=until_days, end_of_study=config.end_of_study)
    flow.keep("follow-up after the index date", pl.col("follow_up_days") > 0)
    _move_to_landmark(flow, config.landmark_days)
    rounded = pl.col("follow_up_days").clip(upper_bound=config.horizon_days)  # .1 + .2 is more than .3
    return flow.subjects.with_columns(rounded), flow.table(), config.horizon_days


def _from_labels(dataset: MedsDataset, path: Path, config: CohortConfig) -> tuple[pl.DataFrame, pl.DataFrame]:
    spans = life_spans(dataset.scan()).with_columns(is_in_dataset=pl.lit(True)).collect(engine="streaming")
    labels = read_labels(path, dataset).join(spans, on="subject_id", how="left")
    flow = _Attrition("subjects in the labels", labels)
    flow.keep("in the dataset", pl.col("is_in_dataset"))
    flow.keep_by(*living_rules("index_date", "prediction time"))
    _keep_eligible(flow, config)
    flow.keep("follow-up after the prediction time", pl.col("follow_up_days") > 0)
    _move_to_landmark(flow, config.landmark_days)
    return flow.subjects, flow.table()


def _default_horizon(subjects: pl.DataFrame, min_share: float, split: SplitConfig) -> float:
    """The longest follow-up that enough training subjects reach; says so where that is not the longest of all."""
    days, is_training = subjects["follow_up_days"].to_numpy(), assign_splits(subjects["subject_id"], split) == "train"
    training = days[is_training.to_numpy()]
    longest = float(days.max())
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


def _keep_eligible(flow: _Attrition, config: CohortConfig) -> None:
    for rule in study_rules(config):
        if rule.needs_birth:
            check_births(flow.subjects, rule.needs_birth)
        flow.keep_by(rule)


def _check_events(subjects: pl.DataFrame) -> None:
    """Every split must teach or judge something: it needs subjects, and events among them."""
    n_events = int(subjects["is_event"].sum())
    if n_events == 0:
        raise DataError(
            f"all {subjects.height} subjects of the cohort are censored, and a survival model needs events; "
            "look at cohort.outcome and cohort.horizon_days, or at is_event in the labels"
        )
    for split in SPLITS:
        part = subjects.filter(pl.col("split") == split)
        if not part["is_event"].any():
            n_safe = math.ceil(SAFE_EVENTS * subjects.height / n_events)
            raise DataError(
                f"the {split} split has no events ({part.height} subjects; {n_events} events among all "
                f"{subjects.height} subjects). Needed is at least 1 in each split, which splits of {n_safe} subjects "
                "have in 19 of 20 draws at this rate; change split.seed or the split's shares, or widen the cohort"
            )
