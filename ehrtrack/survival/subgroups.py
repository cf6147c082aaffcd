"""Is a model as good for some subjects as for others: scores within groups, and the gap between them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import polars as pl

from ehrtrack.errors import DataError
from ehrtrack.survival.bootstrap import Interval, c_index_interval, difference_between_groups
from ehrtrack.survival.calibration_curve import observed_to_expected
from ehrtrack.survival.censoring import FollowUp

MIN_GROUP_EVENTS = 5
"""With fewer events a group's interval is as wide as the scale."""

SUBGROUP_SCHEMA: dict[str, type[pl.DataType]] = {
    "attribute": pl.String,
    "group": pl.String,
    "n_subjects": pl.Int64,
    "n_events": pl.Int64,
    "c_index": pl.Float64,
    "lower": pl.Float64,
    "upper": pl.Float64,
    "observed_to_expected": pl.Float64,
    "left_out": pl.String,
}
GAP_SCHEMA: dict[str, type[pl.DataType]] = {
    "attribute": pl.String,
    "highest": pl.String,
    "lowest": pl.String,
    "gap": pl.Float64,
    "lower": pl.Float64,
    "upper": pl.Float64,
}


def subgroup_table(
    risk: npt.ArrayLike,
    follow_up: FollowUp,
    groups: Mapping[str, npt.NDArray[np.str_]],
    *,
    horizon_days: float,
    n_resamples: int = 500,
    seed: int = 0,
) -> pl.DataFrame:
    """Harrell's C with its bootstrap interval, and observed over expected risk, of all subjects and of each group.

    Parameters
    ----------
    risk : (B,) predicted probability of the event up to the horizon
    groups : attribute -> (B,) the group of each subject

    Returns
    -------
    Table by `SUBGROUP_SCHEMA`; where a number has no value it is null, and ``left_out`` says why.
    """
    scores = np.asarray(risk, dtype=np.float64)
    everybody = {"all": np.full(scores.size, "all")}
    rows = []
    for attribute, of_subject in (everybody | dict(groups)).items():
        for name in np.unique(of_subject):
            members = of_subject == name
            row = _group_row(scores, follow_up, members, horizon_days=horizon_days, n_resamples=n_resamples, seed=seed)
            rows.append({"attribute": attribute, "group": str(name)} | row)
    return pl.DataFrame(rows, schema=SUBGROUP_SCHEMA)


def _group_row(
    scores: npt.NDArray[np.float64],
    follow_up: FollowUp,
    members: npt.NDArray[np.bool_],
    *,
    horizon_days: float,
    n_resamples: int,
    seed: int,
) -> dict[str, object]:
    group = FollowUp(
        follow_up.days[members], follow_up.is_event[members], follow_up.train_days, follow_up.train_is_event
    )
    n_events = int(group.has_event_by(horizon_days).sum())
    row: dict[str, object] = {"n_subjects": int(members.sum()), "n_events": n_events}
    try:
        if n_events < MIN_GROUP_EVENTS:
            raise DataError(f"{n_events} events, fewer than {MIN_GROUP_EVENTS}")
        c_index = c_index_interval(scores[members], group.days, group.is_event, n_resamples=n_resamples, seed=seed)
        row |= {"c_index": c_index.estimate, "lower": c_index.lower, "upper": c_index.upper}
        row["observed_to_expected"] = observed_to_expected(scores[members], group, horizon_days=horizon_days)
    except DataError as error:
        row["left_out"] = str(error)
    return row


def subgroup_gaps(
    risk: npt.ArrayLike,
    follow_up: FollowUp,
    groups: Mapping[str, npt.NDArray[np.str_]],
    table: pl.DataFrame,
    *,
    n_resamples: int = 500,
    seed: int = 0,
) -> pl.DataFrame:
    """For each attribute, the C-index of its best group minus that of its worst, with a bootstrap interval.

    The two groups are chosen on the same subjects, so among many groups some gap is always found: only an interval
    that excludes 0 by much is a finding.

    Parameters
    ----------
    table : from `subgroup_table`, of the same risks and groups

    Returns
    -------
    Table by `GAP_SCHEMA`; attributes with fewer than two scored groups are not in it.
    """
    rows = []
    for attribute, of_subject in groups.items():
        scored = table.filter(pl.col("attribute") == attribute, pl.col("c_index").is_not_null()).sort("c_index")
        if scored.height < 2:
            continue
        highest, lowest = scored["group"][-1], scored["group"][0]
        gap: Interval = difference_between_groups(
            risk,
            follow_up.days,
            follow_up.is_event,
            is_first=of_subject == highest,
            is_second=of_subject == lowest,
            n_resamples=n_resamples,
            seed=seed,
        )
        rows.append(
            {"attribute": attribute, "highest": highest, "lowest": lowest, "gap": gap.estimate}
            | {"lower": gap.lower, "upper": gap.upper}
        )
    return pl.DataFrame(rows, schema=GAP_SCHEMA)
