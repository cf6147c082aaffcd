"""Table 1: what subjects are like, by split; computed where the data are, and without counts of a few."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import polars as pl
from tableone import TableOne

from ehrtrack.data.splits import SPLITS
from ehrtrack.evaluation.groups import subject_groups
from ehrtrack.pipeline.prepare import CohortRecords
from ehrtrack.privacy import LEAST_COUNT, count_text, hide_parts, is_small

OVERALL, SMD = "overall", "smd"
COLUMNS = ("characteristic", "level", OVERALL, *SPLITS, SMD)
OUTCOME = "outcome during follow-up"
CLASS = "outcome"
CODED = {"sex": "sex", "race": "race"}
"""Attribute of `subject_groups` -> name in the table."""


def describe_subjects(records: CohortRecords) -> pl.DataFrame:
    """What is known of each subject at the index date, and what came after; of several prediction times, of the first.

    Returns
    -------
    A row a subject: split; age (years), events, visits, history (years); sex and race where recorded; follow-up (days)
    and the outcome.
    """
    subjects, store = records.cohort.subjects, records.store
    rows = np.arange(len(store))
    starts = store.offsets[:-1]
    ends = store.offsets[1:]
    n_visits = [int(store.visit[start:end].max(initial=0)) for start, end in zip(starts, ends, strict=True)]
    groups = subject_groups(store, records.vocabulary, rows)
    outcome = CLASS if records.cohort.has_classes else OUTCOME
    frame = pl.DataFrame(
        {
            "subject_id": store.subject_ids,
            "split": subjects["split"],
            "age (years)": store.end_age_years.astype(np.float64),
            "recorded events": (ends - starts).astype(np.float64),
            "visits": np.array(n_visits, dtype=np.float64),
            **{name: groups[attribute].cast(pl.String) for attribute, name in CODED.items() if attribute in groups},
            **({} if records.cohort.has_classes else {"follow-up (days)": subjects["follow_up_days"].cast(pl.Float64)}),
            outcome: pl.Series(np.where(subjects["is_event"].to_numpy(), "yes", "no")),
        }
    )
    has_event = pl.col(outcome).eq("yes").any().over("subject_id")
    frame = frame.with_columns(pl.when(has_event).then(pl.lit("yes")).otherwise(pl.lit("no")).alias(outcome))
    first = frame.unique("subject_id", keep="first", maintain_order=True)
    return first.drop("subject_id").with_columns(pl.col(pl.Float64).fill_nan(None))


def table_one(subjects: pl.DataFrame) -> pl.DataFrame:
    """Characteristics by split, as text; medians with quartiles of numbers, counts with shares of groups.

    Where a split has a few subjects of a group, or all but a few, no count of that characteristic is shown by split;
    where all splits together have, none at all but ``<11``.

    Parameters
    ----------
    subjects : split, and the characteristics: numbers or text

    Returns
    -------
    characteristic, level, overall, train, validation, test, smd: the standardised mean difference of training and test
    subjects

    Examples
    --------
    Twelve men and four women in each split:

    >>> splits = [split for split in SPLITS for _ in range(16)]
    >>> made = table_one(pl.DataFrame({"split": splits, "sex": (["M"] * 12 + ["F"] * 4) * 3}))
    >>> made.select("level", "overall", "test").rows()
    [('', '48', '16'), ('F', '12 (25.0)', '<11'), ('M', '36 (75.0)', '–')]
    """
    numbers = [name for name in subjects.columns if subjects[name].dtype.is_numeric()]
    groups = [name for name in subjects.columns if name not in (*numbers, "split")]
    found = _tabulated(subjects, numbers, groups)
    n_in_split = [subjects.filter(pl.col("split") == split).height for split in SPLITS]
    counts = [count_text(n) for n in (subjects.height, *hide_parts(n_in_split))]
    rows: list[tuple[str, ...]] = [("subjects", "", *counts, "")]
    for name in (name for name in subjects.columns if name != "split"):
        rows += _numbers(name, subjects, found) if name in numbers else _groups(name, subjects, found)
    return pl.DataFrame(rows, schema=dict.fromkeys(COLUMNS, pl.String), orient="row")


Tabulated = Mapping[tuple[str, str], Mapping[str, str]]
"""Characteristic and level -> column -> cell."""


def _tabulated(subjects: pl.DataFrame, numbers: Sequence[str], groups: Sequence[str]) -> Tabulated:
    """What tableone makes of it; characteristics without their unit of statistics."""
    frame = subjects.to_pandas()
    with np.errstate(invalid="ignore", divide="ignore"):  # the SMD of what is the same for everybody
        table = TableOne(
            frame,
            columns=[*numbers, *groups],
            categorical=list(groups),
            nonnormal=list(numbers),
            groupby="split",
            smd=True,
            pval=False,
            missing=False,
            label_suffix=False,
        ).tableone
    table.columns = [name for _, name in table.columns]
    return {(str(name), str(level)): row for (name, level), row in table.to_dict("index").items()}


def _numbers(name: str, subjects: pl.DataFrame, found: Tabulated) -> list[tuple[str, ...]]:
    row = found[name, ""]
    is_known = subjects[name].is_not_null()
    n_known = [int((is_known & (subjects["split"] == split)).sum()) for split in SPLITS]
    overall, *cells = (
        "–" if n < LEAST_COUNT else _spaced(row[column])
        for column, n in zip(("Overall", *SPLITS), (sum(n_known), *n_known), strict=True)
    )
    return [(name, "", overall, *cells, _smd(row))]


def _groups(name: str, subjects: pl.DataFrame, found: Tabulated) -> list[tuple[str, ...]]:
    levels = [level for of, level in found if of == name]
    counts = {
        level: [subjects.filter((pl.col(name) == level) & (pl.col("split") == split)).height for split in SPLITS]
        for level in levels
    }
    shown = hide_parts([sum(of_level) for of_level in counts.values()])
    hides_splits = any(is_small(n) for of_level in counts.values() for n in of_level)
    smd = _smd(found[name, levels[0]]) if levels and not hides_splits else ""  # it would tell of what is hidden
    rows = []
    for (level, of_level), total in zip(counts.items(), shown, strict=True):
        row = found[name, level]
        overall = row["Overall"] if total is not None and total.isdigit() else count_text(total)
        cells = [
            count_text(n) if is_small(n) else "–" if hides_splits else str(row[split])
            for split, n in zip(SPLITS, of_level, strict=True)
        ]
        rows.append((name, level, str(overall), *cells, smd))
        smd = ""
    return rows


def _spaced(cell: str) -> str:
    """``66.0 [54.0,77.0]`` with a space after the comma."""
    return str(cell).replace(",", ", ")


def _smd(row: Mapping[str, str]) -> str:
    """That of training and test subjects, without a sign."""
    names = [name for name in row if name.startswith("SMD") and "test" in name and "train" in name]
    value = str(row[names[0]]).removeprefix("<") if names else ""  # "<0.001" is as good as none
    return "" if value in ("", "nan") else f"{abs(float(value)):.2f}"
