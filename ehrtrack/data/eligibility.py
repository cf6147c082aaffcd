"""Who may be in a study, and who may be scored by its model: the same rules, in the same words."""

from __future__ import annotations

from typing import NamedTuple

import polars as pl

from ehrtrack.data.events import Events, life_spans
from ehrtrack.data.histories import damage_named
from ehrtrack.data.index_rules import birthday
from ehrtrack.data.outcomes import add_outcome
from ehrtrack.data.settings import Births, CohortConfig
from ehrtrack.data.visits import DAYS_PER_YEAR, MAX_AGE_YEARS, days_after, days_between

REASON = "reason"
"""The column of predictions that says why a subject has no risk; null where there is one."""

NOT_IN_DATASET = "not in the dataset"


class Rule(NamedTuple):
    """What is asked of a subject.

    Attributes
    ----------
    step : as the flow of subjects into a cohort names it
    reason : what predictions say of a subject that fails it
    holds : over the columns of `life_spans` and a date; null where it cannot be known
    needs_birth : the setting for which every subject has to have a birth, if any

    Examples
    --------
    >>> rule = Rule("has a birth", "no birth in the dataset", pl.col("birth").is_not_null())
    >>> pl.DataFrame({"birth": [None, "1950-06-01"]}).select(rule.holds).to_series().to_list()
    [False, True]
    """

    step: str
    reason: str
    holds: pl.Expr
    needs_birth: str = ""


def living_rules(column: str, moment: str) -> list[Rule]:
    """What holds for every study: the subject has a record by then, is alive, and of an age that people reach.

    Parameters
    ----------
    column : the date at which they are asked
    moment : what that date is called

    Examples
    --------
    >>> for rule in living_rules("index_date", "index date"):
    ...     print(rule.step)
    has an event at or before the index date
    alive at the index date
    age of at most 120 years at the index date
    """
    date = pl.col(column)
    return [
        Rule(
            f"has an event at or before the {moment}",
            f"no event at or before the {moment}",
            pl.col("first_time") <= date,
        ),
        Rule(f"alive at the {moment}", f"dead at the {moment}", (pl.col("death") > date).fill_null(True)),
        Rule(
            f"age of at most {MAX_AGE_YEARS} years at the {moment}",
            f"older than {MAX_AGE_YEARS} years at the {moment}",
            (birthday(MAX_AGE_YEARS + 1) > date.dt.truncate("1d")).fill_null(True),
        ),
    ]


def birth_rules(births: Births, column: str, moment: str) -> list[Rule]:
    """What is asked of births: nothing where one that is missing stops the run.

    Parameters
    ----------
    column : the date by which a subject has to be born
    moment : what that date is called

    Examples
    --------
    >>> [rule.step for rule in birth_rules("left_out", "index_date", "index date")]
    ['has a birth', 'born by the index date']
    """
    if births == "required":
        return []
    is_born = pl.col("birth") <= pl.col(column)
    # Where one of the two is not there, another rule says so.
    born = Rule(f"born by the {moment}", f"born after the {moment}", is_born.fill_null(True))
    if births == "unknown":
        return [born]
    return [
        Rule("has a birth", "no birth in the dataset, and the model reads ages", pl.col("birth").is_not_null()),
        born,
    ]


def study_rules(config: CohortConfig) -> list[Rule]:
    """What a study's settings ask, from columns `birth`, `first_time` and `index_date`.

    Examples
    --------
    A subject of 17 years is left out by ``min_age_years = 18``:

    >>> from datetime import datetime
    >>> [rule] = study_rules(CohortConfig(labels="labels.csv", min_age_years=18))
    >>> dates = {"birth": [datetime(2000, 5, 1)] * 2, "index_date": [datetime(2018, 4, 30), datetime(2018, 5, 1)]}
    >>> pl.DataFrame(dates).select(rule.holds).to_series().to_list()
    [False, True]
    """
    index_day = pl.col("index_date").dt.truncate("1d")
    rules = []
    if config.min_history_days is not None:
        history_days = days_between("first_time", "index_date")
        rules.append(
            Rule(
                "history of at least min_history_days",
                f"history shorter than cohort.min_history_days = {config.min_history_days:g}",
                history_days >= config.min_history_days,
            )
        )
    if config.min_age_years is not None:
        rules.append(
            Rule(
                "age of at least min_age_years",
                f"younger than cohort.min_age_years = {config.min_age_years}",
                birthday(config.min_age_years) <= index_day,
                needs_birth="cohort.min_age_years",
            )
        )
    if config.max_age_years is not None:
        rules.append(
            Rule(
                "age of at most max_age_years",
                f"older than cohort.max_age_years = {config.max_age_years}",
                birthday(config.max_age_years + 1) > index_day,
                needs_birth="cohort.max_age_years",
            )
        )
    return rules


def outcome_rule(moment: str) -> Rule:
    """That the outcome is still to come, from the column of `add_outcome`.

    Examples
    --------
    >>> outcome_rule("index date").step
    'no outcome at or before the index date'
    """
    step = f"outcome at or before the {moment}"
    return Rule(f"no {step}", step, ~pl.col("has_prior_outcome"))


def with_reasons(
    dataset: Events, times: pl.DataFrame, config: CohortConfig, births: Births = "left_out"
) -> pl.DataFrame:
    """The asked subjects with a `reason` why their record is none of those that the model was trained for, or null.

    They are judged by what a cohort asks of labels, and by the study's own settings. With a landmark a study's settings
    are asked at the index date before it, as in training.

    Parameters
    ----------
    times : subject_id, prediction_time, in any order, with any other columns; each pair once
    config : of the study that the model was trained in
    births : with ``unknown`` the model was trained on subjects without a birth too

    Returns
    -------
    The same rows in the same order.
    """
    events = dataset.scan().join(times.lazy().select("subject_id"), on="subject_id", how="semi")
    with damage_named(dataset.shards):
        spans = life_spans(events).with_columns(is_in_dataset=pl.lit(True))
        # Events that are in memory are few, and the streaming engine takes three times as long to begin.
        spans_of_all = spans.collect(engine="streaming" if dataset.shards else "in-memory")
    asked = times.join(spans_of_all, on="subject_id", how="left", maintain_order="left")
    asked = asked.with_columns(index_date="prediction_time")
    moment = "prediction time"
    rules = [
        Rule("in the dataset", NOT_IN_DATASET, pl.col("is_in_dataset")),
        *birth_rules("unknown" if births == "unknown" else "left_out", "prediction_time", moment),
        *living_rules("prediction_time", moment),
        *study_rules(config),
    ]
    if config.exclude_prior_outcome and config.outcome is not None and config.outcome.codes:
        asked = add_outcome(asked, events, config.outcome)
        rules.append(outcome_rule(moment))
    asked = asked.with_columns(index_date=days_after("prediction_time", -config.landmark_days))
    first_failed = pl.coalesce(pl.when(~rule.holds.fill_null(False)).then(pl.lit(rule.reason)) for rule in rules)
    return asked.select(*times.columns, first_failed.alias(REASON))


def silence_reason(limit_days: float) -> str:
    """What predictions say of a record that went silent long before the prediction time.

    Examples
    --------
    >>> silence_reason(730.5)
    'no event in the 2 years before the prediction time'
    """
    return f"no event in the {limit_days / DAYS_PER_YEAR:g} years before the prediction time"
